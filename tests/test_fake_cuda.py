"""Every tensor where it belongs, without a GPU: torch's fake tensors know their device, and mixed devices are an error.

tests/test_gpu.py computes on a real one.
"""
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from scnet_minimal import SCConv, fuse
from scnet_minimal.lab.data import batches
from scnet_minimal.lab.data.batches import Data, InMemory, Streamed
from scnet_minimal.lab.data.images import ImageList
from scnet_minimal.lab.data.sampler import EpochSampler
from scnet_minimal.lab.detect.models import build_detector
from scnet_minimal.lab.device import to_device
from scnet_minimal.lab.study import count, explain
from scnet_minimal.lab.study.treatments import prepare
from scnet_minimal.lab.train import Trainer, classify, predict
from scnet_minimal.lab.train.classify import classification
from scnet_minimal.lab.train.loop import step_decay
from scnet_minimal.lab.zoo import create_model

CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(nn.Module, "_apply", converted)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    # The backward pass asks the driver for streams: gradients are made up, of the right shape in the right place.
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x: (torch.zeros_like(x),))
    batches._mean_and_std.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    batches._mean_and_std.cache_clear()


def converted(module, convert, recurse=True):
    """What .to() does, with new parameters in place of the old: fake ones cannot be changed in place."""
    for child in module.children():
        child._apply(convert)
    for tensors in (module._parameters, module._buffers):
        for name, t in tensors.items():
            if t is not None and (new := convert(old := t.detach())) is not old:
                tensors[name] = nn.Parameter(new, t.requires_grad) if tensors is module._parameters else new
    return module


def network(classes=10):
    return to_device(create_model("scnet_toy", classes), CUDA)


def split(seed, n=7):
    images, labels = torch.zeros(n, 3, 40, 40, dtype=torch.uint8, device=CUDA), torch.zeros(n, dtype=torch.int64)
    return InMemory(images, labels.to(CUDA), EpochSampler(n, 3, seed=seed), 32, (0.5, 1.0))


def test_mixed_devices_are_an_error():
    """What every test here rests on."""
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=CUDA) + torch.ones(2)


def test_batches_in_memory_stay_on_the_device():
    for one in (split(0), split(None)):
        for x, y in one:
            assert x.device == y.device == CUDA and x.dtype == torch.float32


def test_streamed_batches_are_moved_as_bytes():
    images = ImageList([b""] * 4, lambda item, key: torch.zeros(3, 32, 32, dtype=torch.uint8))
    one = Streamed(images, torch.zeros(4, dtype=torch.int64, device=CUDA), EpochSampler(4, 2), 32, (0.5, 1.0))
    x, y = one._move((torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2)))
    assert x.device == y.device == CUDA and x.dtype == torch.float32


def test_a_step_of_training_and_an_evaluation(monkeypatch):
    data, model = Data("", ["a"] * 10, split(0), split(None), []), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)        # a fake has no fused kernel
    task = classification(data, 0.1, amp=False)
    trainer = Trainer(model, data.train, task, optimizer, step_decay(0.1), epochs=1, amp=False)
    for batch in data.train:
        trainer._train_step(batch)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert trainer.sums["loss"].device == trainer.sums["top1"].device == CUDA
    assert all(state["momentum_buffer"].device == CUDA for state in optimizer.state.values())
    summed = []
    monkeypatch.setattr(classify, "all_sum", lambda sums: summed.append(sums.device) or Four())
    classify.evaluate(model, data.val, amp=False)
    assert summed == [CUDA]
    assert all(t.device.type == "cpu" for t in predict(model, data.val, amp=False))


class Four:
    """Stands for the sums of an evaluation, for fake tensors have no values."""

    def tolist(self):
        return [1.0, 1.0, 1.0, 4.0]


def test_one_by_one_kernels_have_the_strides_that_cudnn_gives_their_gradients():
    model = network()
    kernels = [p for p in model.parameters() if p.ndim == 4]
    assert all(p.stride(1) == 1 for p in kernels) and all(p.is_contiguous(memory_format=torch.channels_last)
                                                          for p in kernels)
    small = [p for p in kernels if p.shape[2:] == (1, 1)]
    assert small and all(p.stride() == (p.shape[1], 1, p.shape[1], p.shape[1]) for p in small)


def test_grad_cam_and_gates(monkeypatch):
    monkeypatch.setattr(FakeTensor, "__bool__", lambda t: False, raising=False)         # classes are within range
    model, x = network(), torch.zeros(2, 3, 64, 64, device=CUDA)
    assert explain.grad_cam(model, "layer4", x, torch.tensor([1, 2], device=CUDA)).device == CUDA
    assert all(gate.device == CUDA for gate in explain.gates(model, x).values())
    cam, mask = torch.zeros(2, 8, 8, device=CUDA), torch.zeros(2, 8, 8, dtype=torch.bool, device=CUDA)
    assert explain.energy_inside(cam, mask).device == explain.points_at(cam, mask).device == CUDA


def test_counting_costs_and_folding_norms():
    model = network().eval()
    assert count.cost(model, 3, 64, 64).parameters == sum(p.numel() for p in model.parameters())
    assert all(t.device == CUDA for t in fuse(model).state_dict().values())
    assert fuse(SCConv(8).to(CUDA).eval())(torch.zeros(1, 8, 16, 16, device=CUDA)).device == CUDA


@pytest.mark.parametrize("chain", ["straightforward", "fused + channels_last + bfloat16", "training step"])
def test_the_benchmarks_treatments(chain):
    x = torch.zeros(2, 3, 64, 64, device=CUDA)
    assert prepare(network(), chain, x)().device == CUDA


def test_a_segmenters_predictions():
    model = build_detector("segment", "scnet_toy", 3, size=64).to(CUDA).eval()
    assert model([torch.zeros(3, 64, 64, device=CUDA)] * 2)[0]["classes"].device == CUDA
