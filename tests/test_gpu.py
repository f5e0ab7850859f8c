"""What a GPU alone can show, for a machine that has one, within ten minutes:

    python -m pytest -s tests/test_gpu.py

It prints images per second as it goes.  Skipped without CUDA; and as part of the whole suite, which hides GPUs.
"""
import copy
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from scnet_minimal import SCBottleneck, SCConv
from scnet_minimal.lab import benchmark, detection, train_imagenet
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.device import describe_machine, set_deterministic, synchronize, to_device
from scnet_minimal.lab.study import explain
from scnet_minimal.lab.study.timing import settled
from scnet_minimal.lab.train import Trainer, evaluate, fit, processes
from scnet_minimal.lab.train.checkpoint import Keeper, read_checkpoint
from scnet_minimal.lab.train.classify import classification, compile_for
from scnet_minimal.lab.train.loop import step_decay
from scnet_minimal.lab.zoo import create_model, trained
from scnet_minimal.weights import load_weights

DEVICE = torch.device("cuda", 0)
ON_CUDA = DEVICE.type == "cuda"                 # with another device the rest can be tried on any machine
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_cuda = pytest.mark.skipif(not ON_CUDA, reason="has no meaning elsewhere")


@pytest.fixture(autouse=True)
def exact():
    """float32 is float32, and cuDNN's choices are those of a run without --seed."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    set_deterministic(False)
    yield
    torch.backends.cudnn.allow_tf32 = before
    set_deterministic(False)


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def amp(request, monkeypatch):
    """Trainer's argument for a precision, whatever the card would choose."""
    if ON_CUDA and request.param == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card has no bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: request.param != "float16")
    return request.param != "float32"


@pytest.fixture(scope="module")
def toynette():
    """64 px, in batches of 48: 20 of them and a smaller last one."""
    return load_data("toynette", size=64, batch_size=48, device=DEVICE)


@pytest.fixture(scope="module", autouse=True)
def machine():
    print(f"\n{describe_machine(DEVICE)}")


def new_trainer(data, arch="scnet_toy", classes=10, amp=None, lr=0.05):
    torch.manual_seed(0)
    model = to_device(create_model(arch, classes), DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, fused=ON_CUDA)
    return Trainer(model, data.train, classification(data, 0.1, amp), optimizer, step_decay(lr), epochs=1, amp=amp,
                   quiet=True)


def apart(a, b):
    """The length of the difference, relative to b's."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return ((a - b).norm() / b.norm()).item()


# --- the same numbers -----------------------------------------------------------------------------------------------

def both(model, x):
    """How far outputs and gradients on the device are from the CPU's, relative to their length."""
    model.zero_grad()
    there = to_device(copy.deepcopy(model), DEVICE)
    outputs = model(x), there(x.to(DEVICE))
    for y in outputs:
        y.logsumexp(1).mean().backward()
    gradients = [torch.cat([p.grad.cpu().flatten() for p in net.parameters()]) for net in (model, there)]
    return apart(outputs[1], outputs[0]), apart(gradients[1], gradients[0])


@pytest.mark.parametrize("arch", ["scnet50", "scnet50_v1d", "resnet50"])
def test_outputs_and_gradients_are_the_cpus(arch):
    torch.manual_seed(0)
    model, x = settled(create_model(arch, 10)).eval(), torch.randn(4, 3, 64, 64)
    assert both(model, x)[0] < 1e-4                 # not the gradients: 50 layers of random weights amplify rounding
    assert max(both(model.double(), x.double())) < 1e-9


@pytest.mark.parametrize("block, channels", [(SCConv, (64,)), (SCBottleneck, (256, 64))])
def test_a_blocks_outputs_and_gradients_are_the_cpus_in_float32(block, channels):
    torch.manual_seed(0)
    assert max(both(block(*channels), torch.randn(4, channels[0], 28, 28))) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype):
    if ON_CUDA and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this card has no bfloat16")
    model = to_device(load_weights(create_model("scnet_toy", 10), trained("scnet_toy")).eval(), DEVICE)
    x, y = next(iter(load_data("toynette", size=96, batch_size=100, device=DEVICE).val))
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast(DEVICE.type, dtype):
            half = model(x)
    assert half.dtype == dtype and 1e-5 < apart(half, exact) < 0.05
    assert ((half.argmax(1) == y).sum() - (exact.argmax(1) == y).sum()).abs() <= 3


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0, "workers": 2}], ids=["in memory", "streamed"])
def test_batches_are_the_cpus(way):
    alone, there = (load_data("toynette", size=64, batch_size=64, device=device, **way) for device in ("cpu", DEVICE))
    for epoch in range(2):
        for one, other in ((alone.train, there.train), (alone.val, there.val)):
            one.set_epoch(epoch)
            other.set_epoch(epoch)
            found = list(other)                         # all first: a buffer that is used again too early would show
            for (x, y), (their_x, their_y) in zip(one, found, strict=True):
                assert their_x.device == their_y.device == DEVICE and torch.equal(y, their_y.cpu())
                torch.testing.assert_close(x, their_x.cpu(), rtol=0, atol=1e-3)


def test_explanations_are_the_cpus():
    torch.manual_seed(0)
    alone = settled(create_model("scnet_toy", 10)).eval()
    there, x = copy.deepcopy(alone).to(DEVICE), torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(explain.grad_cam(there, "layer4", x.to(DEVICE)).cpu(),
                               explain.grad_cam(alone, "layer4", x), rtol=1e-3, atol=1e-3)
    fields = [explain.effective_field(model, "layer2", images, draws=4)
              for model, images in ((alone, x), (there, x.to(DEVICE)))]
    assert apart(fields[1], fields[0]) < 1e-3
    assert explain.field_side(fields[1]) == pytest.approx(explain.field_side(fields[0]), rel=1e-2)
    gates = explain.gates(there, x.to(DEVICE))
    for name, gate in explain.gates(alone, x).items():
        torch.testing.assert_close(gates[name].cpu(), gate, rtol=1e-3, atol=1e-4)


# --- training -------------------------------------------------------------------------------------------------------

@needs_cuda
@pytest.mark.parametrize("way", [{}, {"memory_limit": 0, "workers": 2}], ids=["in memory", "streamed"])
def test_no_step_waits_for_the_gpu(way, amp):
    data = load_data("toynette", size=64, batch_size=48, device=DEVICE, **way)
    trainer = new_trainer(data, amp=amp)
    batches = iter(data.train)
    for _ in range(3):                                  # what is set up once may wait
        trainer._train_step(next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            trainer._train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_training_learns_in_each_precision(toynette, amp):
    torch.manual_seed(0)
    model = create_model("scnet_toy", 10)
    history = fit(model, toynette, epochs=3, lr=0.1, amp=amp, quiet=True)
    assert history[-1]["train_loss"] < history[0]["train_loss"] - 0.1 and history[-1]["val_loss"] < 3
    assert all(p.dtype == torch.float32 and p.device == DEVICE for p in model.parameters())


def test_a_run_goes_on_in_another_precision(toynette, tmp_path, monkeypatch):
    keeper = Keeper(tmp_path, {"arch": "scnet_toy"})
    keeper.open()
    for epochs, kind in enumerate(("float16", "float32", "bfloat16", "float16"), 1):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda kind=kind, **_: kind == "bfloat16")
        torch.manual_seed(epochs)
        state = read_checkpoint(tmp_path) if epochs > 1 else None
        history = fit(create_model("scnet_toy", 10), toynette, epochs=epochs, recipe="paper", lr=0.02, quiet=True,
                      amp=kind != "float32", keeper=keeper, resume=state)
    assert len(history) == 4 and history[-1]["train_loss"] < history[0]["train_loss"]
    content = torch.load(tmp_path / "last.pt", weights_only=True)               # on no particular device
    assert {t.device.type for t in content["state_dict"].values()} == {"cpu"}


def test_a_seeded_run_repeats_itself(toynette):
    def weights():
        set_deterministic(True)
        torch.manual_seed(0)
        model = create_model("scnet_toy", 10)
        fit(model, toynette, epochs=1, quiet=True)
        return model.state_dict()

    first, second = weights(), weights()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@needs_cuda
def test_scnet50_trains_in_less_than_4_gb(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    data = load_data("toynette", size=128, batch_size=64, device=DEVICE, memory_limit=0, workers=2)
    trainer = new_trainer(data, "scnet50", amp=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _, batch in zip(range(3), data.train):
        trainer._train_step(batch)
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"\nscnet50, 128 px, batch 64, float16: {peak:.2f} GB at most")
    assert peak < 4


@needs_cuda
@pytest.mark.parametrize("arch", ["scnet50", "resnet50"])
def test_images_per_second(arch, amp, request):
    data = load_data("toynette", size=128, batch_size=64, device=DEVICE)
    precision = request.node.callspec.params["amp"]
    for compiled in (False, True)[:1 + (precision == "bfloat16")]:          # the compiler takes a minute for each
        trainer = new_trainer(data, arch, amp=amp)
        if compiled:
            compile_for(trainer.model, 64)
        batches = iter(data.train)
        for _ in range(4):
            trainer._train_step(next(batches))
        synchronize(DEVICE)
        start, n = time.perf_counter(), 0
        for x, y in batches:
            if len(y) == 64:
                trainer._train_step((x, y))
                n += 64
        synchronize(DEVICE)
        print(f"\n{arch}, training, 128 px, batch 64, {precision}"
              f"{', compiled' if compiled else ''}: {n / (time.perf_counter() - start):,.0f} images/s (one run)")
        assert trainer.sums["loss"].isfinite()


@needs_cuda
def test_compiled_training_compiles_for_no_ragged_batch(toynette):
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model = create_model("scnet_toy", 10)
    compile_for(model, toynette.train.batch_size)
    assert len(toynette.train.labels) % toynette.train.batch_size and len(toynette.val.labels) % 48
    history = fit(model, toynette, epochs=2, quiet=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2           # training, evaluation
    assert history[-1]["train_loss"] < history[0]["train_loss"]


# --- several processes ----------------------------------------------------------------------------------------------

def stop_and_resume(rank, world, backend, port, path):
    """An uninterrupted run of two epochs, and one that is stopped after 4 of its 8 steps and resumed."""
    torch.cuda.set_device(DEVICE) if ON_CUDA else None
    dist.init_process_group(backend, f"tcp://127.0.0.1:{port}", world_size=world, rank=rank,
                            device_id=DEVICE if backend == "nccl" else None)
    set_deterministic(True)
    warnings.filterwarnings("error", message="Grad strides do not match")
    data = load_data("toynette", size=32, batch_size=256, device=DEVICE, shard=(rank, world))

    def run(state=None, stop=None):
        step, steps = Trainer._train_step, []

        def counted(trainer, batch):
            steps.append(1)
            trainer.interrupts.pending |= len(steps) == stop and rank == world - 1      # as a signal would
            step(trainer, batch)

        torch.manual_seed(rank)
        model = create_model("scnet_toy", 10)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_train_step", counted)
            fit(model, data, epochs=2, quiet=True, print_freq=1, keeper=Keeper(path, {"arch": "scnet_toy"}),
                resume=state, sync_norms=backend == "nccl")
        return {name: t.cpu() for name, t in model.state_dict().items()}, evaluate(model, data.val)

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=4)
    processes.wait()
    state = read_checkpoint(path)
    resumed = run(state)
    torch.save((straight, resumed, (state["epoch"], state["step"])), path / f"found{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("world, backend", [(2, "gloo"), pytest.param(1, "nccl", marks=needs_cuda)])
def test_processes_on_one_card_stop_together_and_resume(tmp_path, world, backend):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(stop_and_resume, (world, backend, port, tmp_path), nprocs=world)
    found = [torch.load(tmp_path / f"found{rank}", weights_only=True) for rank in range(world)]
    for (weights, results), (resumed, later), position in found:
        assert position == (0, 4)
        assert all(torch.equal(weights[name], found[0][0][0][name]) for name in weights)        # in all processes
        assert max(apart(resumed[name], t) for name, t in weights.items() if t.is_floating_point()) < 1e-4
        assert later["top1"] == pytest.approx(results["top1"], abs=0.02)


def test_two_processes_are_started_on_one_card(tmp_path):
    on = ["--gpu", "0"] if ON_CUDA else []
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                          train_imagenet.MODULE, "toynette", "-a", "scnet_toy", "--crop", "32", "--epochs", "1", "-j",
                          "2", "--output", str(tmp_path / "x"), "--dist-backend", "gloo", *on],
                         env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
                         text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert f"on 2 x {DEVICE}" in run.stdout and re.search("best: epoch 1, top-1", run.stdout)


# --- commands and notebooks -----------------------------------------------------------------------------------------

def test_the_benchmark_measures_every_treatment(capsys):
    small = ["--device", str(DEVICE), "--networks", "scnet_toy", "resnet_toy", "--size", "64", "--rounds", "3",
             "--batch", "8"]
    chains = benchmark.CHAINS if ON_CUDA else ["straightforward", "fused + channels_last"]
    assert benchmark.main([*small, "--only", *chains]) == 0
    assert benchmark.main([*small, "--train", "--only", "channels_last + training step"]) == 0
    said = capsys.readouterr().out
    print(f"\n{said}")
    left_out = re.findall(r"left out: (.*): ", said)
    assert not [what for what in left_out if not re.search("ONNX|exported|bfloat16", what)]


@pytest.mark.parametrize("task", ["segment", "mask"])
def test_detectors_and_segmenters_train_in_half_precision(tmp_path, task):
    if task == "mask":
        pytest.importorskip("pycocotools")
    small = ["toynette", "--task", task, "--size", "64", "--channels", "8", "--pictures", "8", "4", "-b", "4",
             "--epochs", "2", "--seed", "1", "-j", "2", "--amp"]
    assert detection.main([*small, "--output", str(tmp_path / "x")]) == 0
    state = read_checkpoint(tmp_path / "x")
    assert len(state["history"]) == 2 and all(t.isfinite().all() for t in state["state_dict"].values())
    assert detection.main([*small, "--epochs", "3", "--resume", str(tmp_path / "x")]) == 0


@needs_cuda
def test_a_notebook_that_uses_the_gpu_gives_its_stored_outputs():
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "--nbval", "notebooks/05_train_imagenette.ipynb"],
                         cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-4000:]


def test_dropout_is_resumed(toynette):
    """CUDA has a generator of its own: its state is saved, and set again."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 10)).to(DEVICE)
    trainer = Trainer(body, toynette.train, classification(toynette), torch.optim.SGD(body.parameters(), 0.1),
                      step_decay(0.1), epochs=1)
    batch = next(iter(toynette.train))
    state = copy.deepcopy(trainer.state())
    trainer._train_step(batch)
    first = [p.clone() for p in body.parameters()]
    trainer.resume(state)
    trainer._train_step(batch)
    assert all(torch.equal(p, q) for p, q in zip(first, body.parameters()))
