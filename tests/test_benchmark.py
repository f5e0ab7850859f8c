"""The benchmark: what it times is right, and what it cannot time it says."""
import json
import statistics

import pytest
import torch

from scnet_minimal.lab import benchmark, nets

SMALL = ["--networks", "scnet_toy", "resnet_toy", "--size", "32", "--rounds", "3", "--batch", "2"]


@pytest.mark.parametrize("chain", ["fused", "fused + channels_last"])
def test_a_treatment_gives_the_same_as_the_straightforward_network(chain):
    torch.manual_seed(0)
    network, x = nets.build("scnet_toy"), torch.randn(2, 3, 32, 32)
    plain, treated = (benchmark.prepare(network, c, x)() for c in ("straightforward", chain))
    torch.testing.assert_close(treated, plain, rtol=1e-4, atol=1e-5)
    assert network.training                                          # only a copy was touched


@pytest.mark.parametrize("step", ["exported", "ONNX Runtime"])
def test_an_exported_network_takes_any_batch_and_gives_the_same(step):
    if reason := benchmark.missing(step, "cpu"):
        pytest.skip(reason)
    torch.manual_seed(0)
    network = nets.build("scnet_toy", num_classes=10).eval()
    run, _ = benchmark.STEPS[step](benchmark.fuse(network), torch.randn(1, 3, 32, 32))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 32)
        with torch.inference_mode():
            y = network(x)
            assert (run(x) - y).abs().max() < 1e-4 * y.abs().max()


def test_a_training_step_leaves_gradients_and_changes_no_weight():
    torch.manual_seed(0)
    network, x = nets.build("scnet_toy"), torch.randn(4, 3, 32, 32)
    run, _ = benchmark.STEPS["training step"](network, x)
    before = [p.clone() for p in network.parameters()]
    run(x)
    run(x)
    assert all(p.grad is not None and torch.equal(p, b) for p, b in zip(network.parameters(), before))


def test_every_run_runs_once_a_round_and_keeps_its_place():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = benchmark.interleaved(runs, 8)
    assert [*times] == ["a", "b", "c"] and {len(t) for t in times.values()} == {8}
    rounds = ["".join(order[i:i + 3]) for i in range(0, 24, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"} and len(set(rounds)) > 1


def test_ratios_are_taken_within_a_round():
    assert benchmark.ratio([10, 100, 1000], [5, 50, 500]) == 2       # the machine slowed down, the ratio did not


def test_peak_memory_counts_what_lives_at_once():
    def once():
        a = torch.ones(1_000_000)                                    # 4 MB
        a = a + 1                                                    # two of them
        return a.sum()
    assert 8 <= benchmark.peak_megabytes(once, "cpu") < 8.1


def test_what_this_machine_cannot_do_has_a_reason(monkeypatch):
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
    assert "C++ compiler" in benchmark.missing("compiled", "cpu")
    assert "CUDA" in benchmark.missing("CUDA graph", "cpu")
    assert benchmark.missing("fused", "cpu") == ""
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda device: False)
    assert "imitated" in benchmark.missing("bfloat16", "cpu")


def test_the_command_prints_one_table_and_writes_every_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
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


@pytest.mark.parametrize("arguments, sentence", [
    (["--only", "fused + magic"], "no step 'magic'"), (["--rounds", "1"], "2 rounds"), (["--batch", "0"], "a picture")])
def test_wrong_flags_get_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert sentence in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--help"])
    said = capsys.readouterr().out
    assert "three worked examples" in said and "the middle half" in said and "CUDA graph" in said
