"""The study on photographs: networks that differ in one thing, a record that resumes, and what pairs say."""

import numpy as np
import pytest
import torch

from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.study import compare, photographs
from scnet_minimal.lab.study.record import STUDIES, append_row, read_rows, recorded, setting
from scnet_minimal.lab.train.checkpoint import Keeper, read_checkpoint
from scnet_minimal.lab.zoo import create_model
from scnet_minimal.weights import load_weights

SC = ("scnet", "r1", "added")           # the kinds whose weights have the same names and shapes


# --- the networks -----------------------------------------------------------------------------------------------------

def test_kinds_of_one_seed_start_from_the_same_weights_wherever_they_can():
    nets = {kind: photographs.study_network(kind, 0, 50) for kind in photographs.KINDS}
    states = {kind: net.state_dict() for kind, net in nets.items()}
    for kind, state in states.items():
        for other in ("scnet", "plain"):
            assert all(torch.equal(state[name], states[other][name]) for name in state
                       if name in states[other] and state[name].shape == states[other][name].shape), (kind, other)
    assert all(states[kind].keys() == states["scnet"].keys() for kind in SC)
    assert not torch.equal(states["plain"]["fc.weight"], photographs.study_network("plain", 1, 50).fc.weight)


def test_kinds_differ_in_one_thing_and_hardly_in_parameters():
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nets = {kind: photographs.study_network(kind, 0, 50).eval() for kind in photographs.KINDS}
    logits = {kind: net(x).detach() for kind, net in nets.items()}
    assert len({tuple(y.flatten()[:5].tolist()) for y in logits.values()}) == len(logits)
    count = {kind: sum(p.numel() for p in net.parameters()) for kind, net in nets.items()}
    assert count["scnet"] == count["r1"] == count["added"] > count["plain"]
    assert all(abs(count[kind] / count["scnet"] - 1) < 0.005 for kind in count if kind != "no_gate")
    assert count["no_gate"] == count["scnet"] - sum(p.numel() for b in nets["scnet"].modules() if hasattr(b, "scconv")
                                                    for p in b.scconv.k2.parameters())


def test_what_an_ablation_leaves_out_no_longer_matters():
    nets = {kind: photographs.study_network(kind, 0, 50).eval() for kind in SC}
    x = torch.zeros(1, 3, 64, 64)
    x[..., 30:34, 30:34] = 1
    with torch.no_grad():
        block = {kind: net.layer1[0].scconv for kind, net in nets.items()}
        y = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
        half = block["scnet"].gate(y + torch.nn.functional.interpolate(block["scnet"].k2(y), size=(16, 16)))
        k3, k4 = block["scnet"].k3, block["scnet"].k4
        torch.testing.assert_close(block["scnet"](y), k4(k3(y) * half))
        torch.testing.assert_close(block["added"](y), k4(k3(y) + half))
        series = photographs.study_network("no_gate", 0, 50).eval().layer1[0].scconv
        torch.testing.assert_close(series(y), k4(k3(y)))
    assert block["r1"].k2[0].kernel_size == 1 and block["scnet"].k2[0].kernel_size == 4


def test_whatever_ran_first_is_balanced():
    order = list(photographs.in_order())
    assert len(set(order)) == len(order) == 8 * len(photographs.KINDS)
    for end in range(len(order) + 1):
        counts = [sum(kind == one for one, _ in order[:end]) for kind in photographs.KINDS]
        assert max(counts) - min(counts) <= 1
        assert {seed for _, seed in order[:end]} == set(range(max(counts)))


# --- the runs ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def data(squares, tmp_path_factory):
    return str(squares(tmp_path_factory.mktemp("squares"), 20, val=6))


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(data, tmp_path, monkeypatch):
    job = {"kind": "scnet", "seed": 3, "epochs": 2, "size": 16}
    whole = photographs.train_kind(job, data, tmp_path / "whole")
    epoch = Keeper.epoch
    monkeypatch.setattr(Keeper, "epoch", lambda *args: [epoch(*args), (_ for _ in ()).throw(KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        photographs.train_kind(job, data, tmp_path / "cut")
    monkeypatch.undo()
    resumed = photographs.train_kind(job, data, tmp_path / "cut")
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert whole["train"] == 48 and whole["val"] == 12 and len(whole["history"].split()) == 2
    assert photographs.unpack({key: str(value) for key, value in whole.items()}).mean() == pytest.approx(
        float(whole["top1"]), abs=1e-4)


@pytest.mark.slow
def test_another_seed_sees_another_order_and_another_kind_the_same(data, tmp_path):
    orders = {}
    for kind, seed in (("scnet", 0), ("plain", 0), ("plain", 1)):
        photographs.train_kind({"kind": kind, "seed": seed, "epochs": 1, "size": 16}, data, tmp_path)
        batches = photographs._photographs(data, 16, "cpu").train
        orders[kind, seed] = torch.cat([x.flatten() for x, _ in batches])
    assert torch.equal(orders["scnet", 0], orders["plain", 0])
    assert not torch.equal(orders["plain", 0], orders["plain", 1])


@pytest.mark.slow
def test_the_command_makes_the_missing_rows_and_prints_them(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photographs, "in_order", lambda: [("scnet", 0), ("plain", 0), ("scnet", 1), ("plain", 1)])
    command = ["photographs", "--data", data, "--epochs", "1", "--size", "16", "--processes", "1", "--runs",
               str(tmp_path / "runs"), "--out", str(tmp_path / "t.csv")]
    assert study.main(command) == 0
    rows = read_rows(tmp_path / "t.csv")
    assert [row["kind"] + row["seed"] for row in rows] == ["scnet0", "plain0", "scnet1", "plain1"]
    assert study.main(command) == 0 and read_rows(tmp_path / "t.csv") == rows
    capsys.readouterr()
    assert study.main([*command, "--table"]) == 0
    assert "SCNet − plain twin" in capsys.readouterr().out
    assert study.main([*command, "--figure", str(tmp_path / "new" / "f.png")]) == 0
    assert (tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(photographs, "in_order", lambda: [("scnet", 0), ("plain", 4)])      # seed 4 is not kept
    assert study.main([*command, "--keep", str(tmp_path / "kept")]) == 0
    model = create_model("scnet_toy", 2)
    load_weights(model, tmp_path / "kept" / "photographs_scnet_0.pt")
    last = read_checkpoint(tmp_path / "runs" / "scnet_0_1x16")["state_dict"]
    torch.testing.assert_close(model.fc.weight, last["fc.weight"], atol=1e-3, rtol=1e-3)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["photographs_scnet_0.pt"]
    assert study.main([*command, "--epochs", "2", "--keep", str(tmp_path / "kept")]) == 2       # has not run


# --- what pairs say ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("p, freedom, t", [(0.975, 1, 12.7062), (0.975, 7, 2.36462), (0.8, 7, 0.89603),
                                           (0.975, 3, 3.18245), (0.975, 120, 1.97993), (0.5, 7, 0)])
def test_students_t_is_that_of_the_tables(p, freedom, t):
    assert compare.t_quantile(p, freedom) == pytest.approx(t, abs=2e-4)


def test_an_interval_of_pairs_by_hand():
    mean, low, high = compare.t_interval([1, 2, 3, 4])
    assert mean == 2.5 and high - mean == pytest.approx(mean - low) == pytest.approx(3.18245 * 1.29099 / 2, abs=1e-4)


def test_the_findable_difference_is_found_four_times_in_five():
    rng, pairs = np.random.default_rng(0), 8
    scatter = rng.standard_normal(pairs)
    scatter /= scatter.std(ddof=1)
    drawn = rng.standard_normal((20_000, pairs)) + compare.findable(scatter)
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / pairs ** 0.5)
    assert (t > compare.t_quantile(0.975, pairs - 1)).mean() == pytest.approx(0.8, abs=0.03)
    assert compare.findable(scatter, pairs=32) < compare.findable(scatter) / 1.9


def test_a_bootstrap_over_pictures_knows_what_they_alone_add():
    right = np.random.default_rng(0).random((6, 2500)) < 0.5
    _, low, high = compare.picture_interval(right[:1])
    assert (high - low) / 2 == pytest.approx(1.96 * (0.25 / 2500) ** 0.5, rel=0.08)     # of one network: binomial
    good = np.repeat([[True], [False]] * 3, 400, 1)         # networks differ, pictures do not
    assert compare.picture_interval(good) == (0.5, 0.5, 0.5)
    assert compare.picture_interval(right, right) == (0, 0, 0)
    with pytest.raises(ValueError, match="2500"):
        compare.picture_interval(right, good)


def test_both_sources_together_cover_the_truth(monkeypatch):
    """Eight pairs on 200 pictures, all drawn anew 200 times: the interval holds the true difference 19 times in 20."""
    monkeypatch.setattr(compare, "DRAWS", 250)
    rng, held, widths = np.random.default_rng(0), 0, []
    for _ in range(200):
        pictures = rng.normal(0.02, 0.3, 200)                       # what each picture adds to the difference
        seeds = rng.normal(0, 0.02, (8, 1))
        d = pictures + seeds + rng.normal(0, 0.6, (8, 200))         # ... and how a pair happens to answer it
        _, low, high = compare.both_interval(d, np.zeros_like(d))
        held += low <= 0.02 <= high
        alone = [compare.t_interval(d.mean(1)), compare.picture_interval(d)]
        widths.append([high - low, *(one.high - one.low for one in alone)])
    assert 0.93 <= held / 200 < 0.99
    both, of_seeds, of_pictures = np.array(widths).T
    assert (both > 0.999 * np.maximum(of_seeds, of_pictures)).all()
    assert (both < np.hypot(of_seeds, of_pictures)).all()           # nothing is counted twice


def made_up(kind, seed, right, **more):
    return {"kind": kind, "seed": seed, "epochs": 8, "size": 64, **setting("native", 1), "classes": 50, "train": 9,
            "val": len(right), "parameters": 1000, "seconds": 1, "top1": f"{right.mean():.4f}", "top5": 1,
            "val_loss": 1, "history": "", "right": photographs.pack(torch.from_numpy(right))} | more


def test_the_table_pairs_seeds_and_keeps_settings_apart(tmp_path, capsys):
    file, rng = tmp_path / "t.csv", np.random.default_rng(0)
    assert study.main(["photographs", "--table", "--out", str(file)]) == 0 and "no runs" in capsys.readouterr().out
    for seed in (2, 0, 1):
        plain = rng.random(1001) < 0.4                      # not a multiple of eight
        better = plain.copy()
        better[np.flatnonzero(~plain)[:100 + seed]] = True
        for kind, right in (("plain", plain), ("scnet", better)):
            append_row(file, made_up(kind, seed, right))
    append_row(file, made_up("scnet", 5, better))           # has no twin yet
    append_row(file, made_up("scnet", 0, plain, epochs=9))
    rows = read_rows(file)
    one, = photographs.comparisons([row for row in rows if row["epochs"] == "8"])
    assert one.differences == pytest.approx([100 / 1001, 101 / 1001, 102 / 1001])
    assert [i.mean for i in (one.seeds, one.pictures, one.both)] == pytest.approx([101 / 1001] * 3)
    assert study.main(["photographs", "--table", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert "8 epochs" in out and "9 epochs" in out and out.count("SCNet − plain twin") == 1 and "+10.09" in out


def test_bits_come_back_as_they_were():
    for n in (1, 8, 1001):
        right = np.random.default_rng(n).random(n) < 0.5
        row = {"right": photographs.pack(torch.from_numpy(right)), "val": str(n)}
        assert (photographs.unpack(row) == right).all()


# --- the page of the record -------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_page_shows_the_tables_of_the_record():
    page, rows = (STUDIES / "README.md").read_text(encoding="utf-8"), recorded("photographs")
    assert photographs.photographs_table(rows) in page
    first, again = (photographs.right_by_kind(some) for some in (rows, recorded("photographs_again")))
    twins, *ours = (np.array([right.mean() for right in seeds.values()])
                    for seeds in (first["plain"], first["scnet"], again["scnet"]))
    once, twice = (own - twins for own in ours)
    for differences in (once, twice, (once + twice) / 2):
        mean, low, high = (100 * value for value in photographs.t_interval(differences))
        assert f"| {mean:+.2f} | {low:+.2f} to {high:+.2f} |".replace("-", "−") in page
