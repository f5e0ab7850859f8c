"""What the networks of the study on photographs look at: gates replaced, maps in boxes, fields; and their record."""
import io

import datasets as hf
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scnet_minimal import SelfCalibration
from scnet_minimal.lab.data import normalize
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.study import looks, photographs
from scnet_minimal.lab.study.record import append_row, read_rows, setting
from scnet_minimal.lab.study.timing import settled

BOXES = [(8, 20, 39, 55), (10, 0, 63, 30), (30, 34, 49, 53), (5, 40, 59, 60)]       # first and last column, row


def encoded(box):
    """A black picture of 64 px, white in the box."""
    x0, y0, x1, y1 = box
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[y0:y1 + 1, x0:x1 + 1] = 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("boxed")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["low", "high"]),
                            "box": hf.Sequence(hf.Value("int32"))})
    for split, n in (("train", 6), ("validation", 1)):
        boxes = [box for box in BOXES * n for _ in range(looks.EVERY)]
        rows = {"image": [encoded(box) for box in boxes], "label": sorted([0, 1] * (len(boxes) // 2)), "box": boxes}
        hf.Dataset.from_dict(rows, features).to_parquet(root / f"{split}.parquet")
    return str(root)


def pictures(n=12, seed=0, **given):
    x = torch.randint(256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).repeat_interleave(
        8, 2).repeat_interleave(8, 3).byte()
    made = {"x": x, "y": torch.zeros(n, dtype=torch.int64), "boxes": torch.ones(n, 64, 64, dtype=torch.bool),
            "classes": ["a"] * 10}
    return looks.Pictures(**made | given)


def network(x):
    """Random weights, but norms that know their statistics; gates wide open or shut, so that they matter."""
    net = photographs.study_network("scnet", 0, 10)
    for module in net.modules():
        if isinstance(module, SelfCalibration):
            module.k2[2].weight.data.fill_(6)
    settled(net, normalize(x)).eval()
    return net


# --- pictures ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [64, 32])
def test_a_box_lies_where_the_object_is_in_the_picture_that_the_network_sees(folder, size):
    found = looks.read_pictures(folder, size)
    white = found.x.float().mean(1) > 127
    for box, object in zip(found.boxes, white):
        assert (box & object).sum() / (box | object).sum() > 0.93       # within a pixel along its edges
    assert found.y.tolist() == [0, 0, 1, 1] and found.classes == ["low", "high"]


def test_a_folder_without_boxes_is_refused(squares, tmp_path):
    with pytest.raises(UserError, match="box"):
        looks.read_pictures(str(squares(tmp_path, 16)), 16)


# --- gates ------------------------------------------------------------------------------------------------------------

def test_gates_are_replaced_as_in_a_whole_pass_by_hand():
    data = pictures()
    net = network(data.x)
    blocks = [m for m in net.modules() if isinstance(m, SelfCalibration)]

    def answers(replace, which):
        hooks = [block.gate.register_forward_hook(lambda m, i, gate, k=k: replace(own[k]) if k in which else gate)
                 for k, block in enumerate(blocks)]
        with torch.no_grad():
            found = net(normalize(data.x)).argmax(1)
        for hook in hooks:
            hook.remove()
        return found

    own = {}
    kept = [block.gate.register_forward_hook(lambda m, i, gate, k=k: own.update({k: gate}))
            for k, block in enumerate(blocks)]
    right = answers(None, ())
    for hook in kept:
        hook.remove()
    found = {(stage, name): value for stage, name, _, value, _ in looks.gate_accuracies(net, data._replace(y=right))}
    assert found.pop(("all", "own")) == 1 and len(found) == 20
    by_hand = {(stage, name): (answers(replace, which) == right).float().mean().item()
               for name, replace in looks.GATES.items() if name != "own"
               for stage, which in (*((str(k + 1), (k,)) for k in range(4)), ("all", range(4)))}
    assert found == pytest.approx(by_hand)
    assert min(found.values()) < 0.8 and len(set(found.values())) > 3           # or nothing was seen


def test_what_a_replaced_gate_still_knows():
    gate = torch.rand(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    means = {"mean over pictures": (0,), "mean over places": (2, 3), "mean over both": (0, 2, 3)}
    for name, over in means.items():
        given = looks.GATES[name](gate)
        assert given.shape == gate.shape
        torch.testing.assert_close(given.mean(over), gate.mean(over))
        assert given.var(over).max() < 1e-12 < given.var().item()
    same = gate[:1].expand_as(gate)
    assert torch.equal(looks.GATES["another picture's"](same), same)
    assert not (looks.GATES["another picture's"](gate) == gate).flatten(1).all(1).any()


def test_identical_pictures_lend_each_other_gates_that_change_nothing():
    data = pictures(2)
    net = network(data.x)
    x = data.x[:1].expand(8, -1, -1, -1)
    y = torch.full((8,), net(normalize(x)).argmax(1)[0].item())
    found = looks.gate_accuracies(net, data._replace(x=x, y=y))
    same = ("own", "mean over pictures", "another picture's")
    assert {value for _, name, _, value, _ in found if name in same} == {1}


# --- boxes ------------------------------------------------------------------------------------------------------------

class Brightness(nn.Module):
    """Its map is the brightness of 4 x 4 cells, and all of it speaks for class 0."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(nn.AvgPool2d(16), nn.Conv2d(3, 1, 1, bias=False))
        self.layer4[1].weight.data.fill_(1.0)

    def forward_features(self, x):
        return self.layer4(x)

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


def energies(found):
    return {name: value for _, name, measure, value, _ in found if measure == "energy"}


def test_a_network_that_sees_the_object_comes_near_the_box_and_beats_what_knows_nothing(folder):
    data = looks.read_pictures(folder, 64)
    found = energies(looks.box_scores(Brightness(), data._replace(y=torch.zeros(4, dtype=torch.int64))))
    assert found["best cell"] > found["own"] > found["mean map"] > found["even"]
    assert found["own"] > found["another picture's"] + 0.1
    assert found["own"] == pytest.approx(found["box itself"], abs=0.15)
    assert found["even"] == pytest.approx(data.boxes.float().mean().item())


@pytest.mark.parametrize("share", [1, 0])
def test_all_energy_is_in_a_box_that_is_the_picture_and_none_in_an_empty_one(folder, share):
    data = looks.read_pictures(folder, 64)
    y, boxes = torch.zeros(4, dtype=torch.int64), torch.full_like(data.boxes, bool(share))
    found = energies(looks.box_scores(Brightness(), data._replace(y=y, boxes=boxes)))
    assert found.pop("box itself") == 1 if share else np.isnan(found.pop("box itself"))
    assert set(found.values()) == {share} or list(found.values()) == pytest.approx([share] * 5)


def test_a_moved_map_has_its_peak_where_the_cell_looks():
    """A square around pixel (32, 32), where cell (2, 2) of four 3x3s with stride 2 is centred; its tile is 32 to 47."""
    net = Brightness()
    net.layer4 = nn.Sequential(*(nn.Conv2d(c, 1, 3, stride=2, padding=1, bias=False) for c in (3, 1, 1, 1)))
    for conv in net.layer4:
        conv.weight.data.fill_(1.0)
    x = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None].repeat(1, 1, 64, 64)    # about 0, normalized
    x[:, :, 24:41, 24:41] = 255
    boxes = torch.zeros(1, 64, 64, dtype=torch.bool)
    boxes[:, 30:35, 30:35] = True
    data = looks.Pictures(x, torch.zeros(1, dtype=torch.int64), boxes, ["square"])
    usual, moved = looks.box_scores(net, data), looks.moved_scores(net, data)
    assert [value for _, name, measure, value, _ in usual if (name, measure) == ("own", "points")] == [0]
    assert [value for _, name, measure, value, _ in moved if (name, measure) == ("own, moved", "points")] == [1]
    assert energies(moved)["own, moved"] > energies(usual)["own"]


# --- field ------------------------------------------------------------------------------------------------------------

class Convolutions(nn.Module):
    """Four stages, a 3x3 each: windows of 3, 5, 7 and 9 px."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        for stage in looks.STAGE_NUMBERS:
            setattr(self, f"layer{stage}", nn.Conv2d(3 if stage == 1 else 4, 4, 3, padding=1))

    def forward(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def test_the_field_of_each_stage_fits_in_its_window():
    found = looks.field_sizes(Convolutions(0), Convolutions(1), pictures(4, classes=["a"] * 4))
    size = {(stage, state, measure): value for stage, state, measure, value, _ in found}
    for state in ("untrained", "trained"):
        for stage in looks.STAGE_NUMBERS:
            half, most = (size[str(stage), state, measure] for measure in ("half", "nine tenths"))
            assert 1 <= half < most <= 2 * stage + 1 and size[str(stage), state, "far"] < 1e-6
    assert size["2", "untrained", "half"] != size["2", "trained", "half"]


def test_a_gaussian_s_side_above_is_as_in_the_formula():
    """Responses exp(-d^2 / (2 s^2)) are above 4.55 % within a circle of the radius s * sqrt(2 ln 22)."""
    d = torch.arange(129) - 64.0
    squared = torch.exp(-(d[:, None] ** 2 + d ** 2) / 8 ** 2)
    expected = 8 * (2 * np.pi * np.log(1 / 0.0455)) ** 0.5
    assert looks.side_above(squared / squared.sum()) == pytest.approx(expected, rel=0.01)


def test_an_untrained_network_gets_the_statistics_of_its_norms_and_learns_nothing():
    x, net = normalize(pictures(16).x), photographs.study_network("plain", 0, 10)
    before = [p.clone() for p in net.parameters()]
    settled(net, x).eval()
    with torch.no_grad():
        out = net.bn1(net.conv1(x))
    assert out.mean((0, 2, 3)).abs().max() < 1e-3 and (out.std((0, 2, 3)) - 1).abs().max() < 0.01
    assert all(map(torch.equal, before, net.parameters())) and not net.training


# --- the record -------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_looks_at_trained_networks_become_rows_that_pair(folder, tmp_path, monkeypatch, capsys):
    runs, table = tmp_path / "runs", tmp_path / "looks.csv"
    command = ["looks", "--data", folder, "--epochs", "1", "--size", "32", "--runs", str(runs), "--out", str(table)]
    assert study.main(command) == 2 and "no finished run" in capsys.readouterr().err
    for kind, seed in (("scnet", 0), ("plain", 0), ("scnet", 1), ("plain", 1)):
        photographs.train_kind({"kind": kind, "seed": seed, "epochs": 1, "size": 32}, folder, runs)
    jobs = looks.look_jobs(runs, 1, 32)
    assert len(jobs) == 14 and looks.look_jobs(runs, 2, 32) == []
    monkeypatch.setattr(looks, "FIELDS", 2)
    for job in jobs:
        append_row(table, *looks.look_once(job, folder, runs, setting("native", 1)))
    assert study.main(command) == 0 and "0 new looks" in capsys.readouterr().out
    rows = read_rows(table)
    assert len(rows) == 2 * (21 + 12 + 7 + 32) + 2 * (12 + 7 + 32)
    even = looks.looked(rows, "scnet", "energy", "even")
    assert list(even) == [0, 1] and looks.paired(even, looks.looked(rows, "plain", "energy", "even")) == (0, 0, 0)
    assert study.main(["looks", "--table", "--out", str(table)]) == 0
    assert "SCNet, accuracy, another picture's" in capsys.readouterr().out
