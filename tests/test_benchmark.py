"""The benchmark: what it times is right, and it says what it cannot time."""
import json
import math
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scnet_minimal import fuse
from scnet_minimal.lab import benchmark
from scnet_minimal.lab.study import timing, treatments
from scnet_minimal.lab.zoo import create_model

SMALL = ["--device", "cpu", "--networks", "scnet_toy", "resnet_toy", "--size", "32", "--rounds", "3", "--batch", "2"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_environment(monkeypatch):
    """The command sets variables for its own process: take them back."""
    for name in ("TORCHINDUCTOR_FREEZING", "KINETO_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))


@pytest.mark.parametrize("chain", ["fused", "fused + channels_last"])
def test_a_treatment_gives_the_same_as_the_straightforward_network(chain):
    torch.manual_seed(0)
    network, x = create_model("scnet_toy"), torch.randn(2, 3, 32, 32)
    plain, treated = (treatments.prepare(network, c, x)() for c in ("straightforward", chain))
    torch.testing.assert_close(treated, plain, rtol=1e-4, atol=1e-5)
    assert network.training                                          # only a copy was touched


@pytest.mark.slow
@pytest.mark.parametrize("step", ["exported", "ONNX Runtime"])
def test_an_exported_network_takes_any_batch_and_gives_the_same(step):
    if reason := treatments.missing(step, "cpu"):
        pytest.skip(reason)
    torch.manual_seed(0)
    network = create_model("scnet_toy", num_classes=10).eval()
    run, _ = treatments.STEPS[step](fuse(network), torch.randn(1, 3, 32, 32))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            y = network(x)
            assert (run(x) - y).abs().max() < 1e-4 * y.abs().max()


def test_a_training_step_leaves_gradients_and_changes_no_weight():
    torch.manual_seed(0)
    network, x = create_model("scnet_toy"), torch.randn(4, 3, 32, 32)
    run, _ = treatments.STEPS["training step"](network, x)
    before = [p.clone() for p in network.parameters()]
    run(x)
    run(x)
    assert all(p.grad is not None and torch.equal(p, b) for p, b in zip(network.parameters(), before))


def test_every_run_runs_once_a_round_and_keeps_its_place():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(runs, 8)
    assert [*times] == ["a", "b", "c"] and {len(t) for t in times.values()} == {8}
    rounds = ["".join(order[i:i + 3]) for i in range(0, 24, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"} and len(set(rounds)) > 1


def test_ratios_are_taken_within_a_round():
    assert timing.ratio([10, 100, 1000], [5, 50, 500]) == 2       # the machine slowed down, the ratio did not


def test_the_interval_of_a_ratio_holds_the_median_in_95_of_100_experiments():
    assert timing.ratio_interval([2, 3, 4, 5, 6, 7, 8, 9, 90], [1] * 9) == (3, 9)      # 96 %: 1 - 2 * (1 + 9) / 2**9
    assert timing.ratio_interval([9, 2, 7, 4, 5, 6], [1] * 6) == (2, 9)                # 97 %
    draws, held = random.Random(0), 0
    for _ in range(2000):
        low, high = timing.ratio_interval([draws.expovariate(1) for _ in range(15)], [1] * 15)
        held += low <= math.log(2) <= high
    assert 0.95 <= held / 2000 <= 0.98                                                 # exactly 96.5 %
    with pytest.raises(ValueError, match="at least 6 rounds, found 5"):
        timing.ratio_interval([1] * 5, [1] * 5)


def test_peak_memory_counts_what_lives_at_once():
    def once():
        a = torch.ones(1_000_000)                                    # 4 MB
        a = a + 1                                                    # two of them
        return a.sum()
    assert 8 <= timing.peak_megabytes(once, CPU) < 8.1


def test_what_this_machine_cannot_do_has_a_reason(monkeypatch):
    monkeypatch.setattr(treatments.shutil, "which", lambda name: None)
    assert "C++ compiler" in treatments.missing("compiled", "cpu")
    assert "CUDA" in treatments.missing("CUDA graph", "cpu")
    assert "GPU" in treatments.missing("float16", "cpu")
    assert treatments.missing("float16", "cuda:1") == treatments.missing("compiled", "cuda:1") == ""
    assert treatments.missing("fused", "cpu") == ""
    monkeypatch.setattr(treatments, "has_bfloat16", lambda device: False)
    assert "bfloat16" in treatments.missing("bfloat16", "cpu")


def test_devices_are_told_apart_by_their_type_not_their_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert treatments.missing("CUDA graph", "cuda:1") == treatments.missing("bfloat16", torch.device("cuda:1")) == ""
    assert treatments.missing("CUDA graph", "mps") and treatments.missing("bfloat16", "mps")
    assert timing.peak_megabytes(lambda: pytest.fail("torch cannot tell"), torch.device("mps")) is None


def test_times_are_taken_when_the_device_has_finished(capsys, monkeypatch):
    devices = []
    monkeypatch.setattr(benchmark, "synchronize", devices.append)
    assert benchmark.main([*SMALL, "--only", "straightforward"]) == 0
    assert devices == [CPU] * 3 * 2 * 2                              # rounds, networks, before and after


def test_bfloat16_is_known_from_an_older_torch_too(monkeypatch):
    known = treatments.has_bfloat16("cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if Path("/proc/cpuinfo").is_file():
        assert treatments.has_bfloat16("cpu") == known


def test_the_command_prints_one_table_and_writes_every_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(treatments.shutil, "which", lambda name: None)
    file = tmp_path / "new" / "times.json"
    benchmark.main([*SMALL, "--only", "straightforward", "fused", "fused + compiled", "--json", str(file)])
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "torch " + torch.__version__ in said.splitlines()[0] and "32 px, 3 rounds" in said.splitlines()[0]
    assert "left out: fused + compiled: compiled needs a C++ compiler" in said
    assert [(r["network"], r["treatment"]) for r in found["rows"]] == [
        (n, t) for n in ("scnet_toy", "resnet_toy") for t in ("straightforward", "fused")]
    for row in found["rows"]:
        assert len(row["all_ms"]) == 3 and row["ms"] == statistics.median(row["all_ms"]) and row["apart"] < 1e-4
        assert ("against_second" in row) == (row["network"] == "scnet_toy")
    assert said.count("straightforward") == 2 and "/ resnet_toy" in said


def test_training_rows_have_the_memory_of_a_step(capsys):
    benchmark.main([*SMALL, "--train", "--only", "training step"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "training step" in line)
    assert float(row.split()[-2]) > 0


@pytest.mark.parametrize("flags, fact", [
    (["--only", "fused + magic"], "'magic'"), (["--rounds", "1"], "--rounds"), (["--batch", "0"], "--batch"),
    (["--size", "0"], "--size"), (["--size", "x"], "--size"), (["--threads", "-1"], "--threads"),
    (["--networks", "scnet5"], "scnet50"), (["--device", "foo"], "'foo'"), (["--device", ""], "''"),
    (["--device", "meta"], "'meta'"), (["--device", "cuda:99"], "'cuda:99'"), (["--json", "/proc/nowhere/x"], "/proc")])
def test_wrong_flags_end_with_exit_code_2_and_name_what_is_wrong(flags, fact, capsys):
    try:
        code = benchmark.main([*SMALL, *flags])
    except SystemExit as end:                                        # argparse's way
        code = end.code
    out, error = capsys.readouterr()
    assert code == 2 and fact in error.splitlines()[-1] and out == ""


@pytest.mark.slow
def test_loaders_are_timed_by_the_number_of_workers(squares, tmp_path, capsys, monkeypatch):
    folder, file = squares(tmp_path / "squares", 40), tmp_path / "loaders.json"
    monkeypatch.setattr("scnet_minimal.lab.study.loaders.cores", lambda: 1)
    threads = torch.get_num_threads()
    try:
        assert benchmark.main(["--device", "cpu", "--loader", str(folder), "--size", "16", "--batch", "8", "--rounds",
                               "2", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "48 images" in said and "40 x 40 px" in said and "batches of 8 crops of 16 px" in said
    assert [row["workers"] for row in found["rows"]] == [0, 1]
    for row in found["rows"]:
        assert len(row["images_per_s"]) == len(row["torchvisions"]) == 2 and row["ratio"] > 0


def test_a_folder_without_image_files_cannot_be_timed(tmp_path, capsys):
    (tmp_path / "x.jpg").write_bytes(b"")
    assert benchmark.main(["--device", "cpu", "--loader", str(tmp_path)]) == 2
    assert "train/" in capsys.readouterr().err


def test_a_network_that_needs_larger_images_is_left_out_and_the_others_timed(capsys):
    benchmark.main([*SMALL, "--networks", "inception_v3", "scnet_toy", "--only", "straightforward"])
    out = capsys.readouterr().out
    assert "left out: inception_v3" in out and "scnet_toy" in out


@pytest.mark.slow
def test_importing_it_leaves_the_compiler_to_be_imported_after_its_settings():
    line = "import sys; from scnet_minimal.lab import benchmark; sys.exit('torch._inductor.config' in sys.modules)"
    subprocess.run([sys.executable, "-c", line], check=True, cwd=Path(__file__).parents[1])


def test_help_explains_the_table(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("gain", "peak MB", "apart", *treatments.STEPS))
