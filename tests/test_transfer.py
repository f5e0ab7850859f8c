"""The photographs' networks on other photographs: class maps, masks, Grad-CAM in masks; and their record."""
import pytest
import torch
import torch.nn.functional as F
from coco_folder import needs_pycocotools, write_coco_folder
from PIL import Image, ImageDraw

from scnet_minimal.lab import detection
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.study import photographs, transfer
from scnet_minimal.lab.study.record import STUDIES, append_row, read_rows, recorded, setting
from scnet_minimal.lab.train.checkpoint import read_file, write_torch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each image black, and white where its largest object is."""
    root = write_coco_folder(tmp_path_factory.mktemp("coco"))
    for path in root.glob("*/*.jpg"):
        image = Image.new("L", (40, 30))
        ImageDraw.Draw(image).polygon([(4, 6), (23, 6), (23, 15), (4, 15)], fill=255)
        image.save(path, quality=95)
    return root


def job(task, kind="scnet", seed=0):
    return {"task": task, "data": "coco", "networks": "trained", "kind": kind, "seed": seed, "epochs": 1, "size": 32}


def test_a_setting_that_is_given_replaces_the_usual_one_and_seeds_come_in_pairs(tmp_path):
    jobs = transfer.transfer_jobs("segment", tmp_path / "roads", 3, None)
    assert [(one["kind"], one["seed"]) for one in jobs] == [(k, s) for s in range(3) for k in ("scnet", "plain")]
    assert {(one["data"], one["epochs"], one["size"]) for one in jobs} == {("roads", 3, 180)}
    assert {(one["epochs"], one["size"]) for one in transfer.transfer_jobs("cam", tmp_path, 3, 99)} == {(0, 64)}


@needs_pycocotools
def test_masks_stay_on_their_objects_and_pictures_without_objects_are_left_out(folder):
    found = transfer.pictures_with_masks(folder, "val", 64)
    assert found.x.shape == (2, 3, 64, 64) and found.boxes.shape == (2, 64, 64)
    assert found.classes == ["ball", "person"] and found.y.tolist() == [1, 1]       # the largest object's
    white = found.x[:, 0] > 127
    assert (white == found.boxes).float().mean() > 0.97 and 0.1 < white.float().mean() < 0.4


def test_the_new_classifier_is_at_its_minimum_and_tells_apart_what_can_be_told_apart():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 4 * F.one_hot(y, 8) + torch.randn(60, 8, generator=generator)
    linear = transfer.new_classifier(x, y, 3)
    loss = F.cross_entropy(linear(x), y) + transfer.PENALTY * linear.weight.square().sum()
    assert max(g.abs().max() for g in torch.autograd.grad(loss, list(linear.parameters()))) < 1e-3
    assert (linear(x).argmax(1) == y).float().mean() > 0.95


@pytest.mark.slow
@needs_pycocotools
def test_trained_networks_become_rows_that_pair_and_a_finished_training_is_not_repeated(folder, tmp_path, monkeypatch,
                                                                                        capsys):
    table = tmp_path / "transfer.csv"
    monkeypatch.setitem(transfer.FLAGS, "segment", ["-b", "2", "--lr", "0.01"])
    monkeypatch.setitem(transfer.FLAGS, "mask", ["-b", "2", "--lr", "0.01", "--channels", "16"])
    jobs = [job("segment", kind, seed) for seed in (0, 1) for kind in transfer.PAIR] + [job("mask"), job("cam")]
    for one in jobs:
        append_row(table, *transfer.transfer_once(one, folder, tmp_path / "runs", setting("native", 1),
                                                  detection.main))
    rows = read_rows(table)
    assert {row["measure"] for row in rows} >= {"miou", "mask_ap", "box_ap", "top1", "energy, own"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows if row["measure"] in ("miou", "mask_ap", "top1"))
    log = tmp_path / "runs" / "segment_coco_trained_scnet_0_1_32" / "log.txt"
    assert log.read_text().count("epoch 1/1") == 1
    again = transfer.transfer_once(job("segment"), folder, tmp_path / "runs", setting("native", 1), detection.main)
    assert {row["measure"]: row["value"] for row in again}["miou"] == rows[0]["value"]
    assert log.read_text().count("epoch 1/1") == 1
    assert study.main(["transfer", "--table", "--out", str(table)]) == 0
    assert "segment on coco, 1 epochs at 32 px" in capsys.readouterr().out


@pytest.mark.slow
@needs_pycocotools
def test_grad_cam_looks_at_every_finished_network_of_the_study_on_photographs(folder, squares, tmp_path, monkeypatch,
                                                                              capsys):
    monkeypatch.setattr(transfer, "EPOCHS", 1)
    monkeypatch.setattr(transfer, "PIXELS", 32)
    runs, table, data = tmp_path / "runs", tmp_path / "transfer.csv", str(squares(tmp_path / "squares", 32))
    command = ["transfer", str(folder), "--task", "cam", "--networks", str(runs), "--out", str(table)]
    assert study.main(command) == 2 and "no finished run" in capsys.readouterr().err
    for kind, seed in [("plain", 0), ("r1", 0), ("added", 0), ("plain", 1), ("r1", 1)]:
        photographs.train_kind(transfer.photographs_run(kind, seed), data, runs)
    begun = photographs.run_folder(runs, transfer.photographs_run("no_gate", 0))
    begun.mkdir()
    state = read_file(photographs.run_folder(runs, transfer.photographs_run("r1", 0)))
    write_torch(begun / "last.pt", state | {"epoch": 0})        # has not run to its end
    jobs = transfer.transfer_jobs("cam", folder, None, None, runs)
    assert [(one["kind"], one["seed"]) for one in jobs] == [("plain", 0), ("r1", 0), ("plain", 1), ("r1", 1)]
    for one in jobs:
        append_row(table, *transfer.transfer_once(one, folder, runs, setting("native", 1), detection.main, runs))
    even = transfer.transferred(read_rows(table), "cam", "r1", "energy, even")
    assert even == transfer.transferred(read_rows(table), "cam", "plain", "energy, even") and list(even) == ["0", "1"]
    assert 0.1 < even["0"] < 0.4                # what the masks cover: of an own map, one epoch promises nothing
    assert {row["seed"] for row in read_rows(table) if row["measure"] == "energy, own, moved"} == {"0", "1"}
    assert study.main(["transfer", "--table", "--out", str(table)]) == 0
    assert "networks runs; in %; SCNet, r = 1 − plain twin" in capsys.readouterr().out


def test_networks_go_with_grad_cam_only(folder, tmp_path, capsys):
    assert study.main(["transfer", str(folder), "--networks", str(tmp_path)]) == 2
    assert "--networks goes with --task cam" in capsys.readouterr().err


def test_a_training_that_ends_early_says_where_to_look(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(transfer.FLAGS, "segment", ["--lr", "none"])
    with pytest.raises(UserError, match=r"code 2: .*log\.txt says why"):
        transfer.train_on(job("segment"), folder, tmp_path, detection.main)
    assert "argument --lr" in next(tmp_path.glob("*/log.txt")).read_text()


def test_the_command_asks_for_a_folder(capsys):
    assert study.main(["transfer"]) == 2 and "needs a folder" in capsys.readouterr().err


def test_the_page_shows_lines_of_the_records_table():
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    shown = page[page.index("segment on camvid"):].partition("```")[0].strip().splitlines()
    assert len(shown) > 20 and set(shown) <= set(transfer.transfer_table(recorded("transfer")).splitlines())
