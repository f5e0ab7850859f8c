"""Checkpoints are whole or not there, hold what they say, and say what they are not."""
import csv
import errno
import os
import pickle

import pytest
import torch
from PIL import Image

from scnet_minimal import SCNet
from scnet_minimal.lab import checkpoint
from scnet_minimal.lab.checkpoint import Keeper, check_classes, load_whole, read_checkpoint, read_file, write
from scnet_minimal.scnet import load_weights

ABOUT = {"arch": "small", "classes": ["blue", "red"], "arguments": {"lr": 0.1}}


def small(classes=2):
    return SCNet((1, 1, 1, 1), classes, widths=(4, 8, 8, 8))


def row(epoch, top1):
    return {"epoch": epoch, "train_loss": 1.5, "train_top1": 0.1, "val_loss": 1.25, "val_top1": top1, "seconds": 0.1}


def state(*top1):
    return {"epoch": len(top1), "step": 0, "steps": 4, "history": [row(i, t) for i, t in enumerate(top1)],
            "state_dict": small().state_dict(), "optimizer": {"state": {}}, "scaler": {}, "sums": {}, "random": {}}


@pytest.fixture
def keeper(tmp_path):
    keeper = Keeper(tmp_path / "runs/x", ABOUT)
    keeper.open()
    return keeper


def test_a_folder_holds_the_run(keeper):
    assert keeper.epoch(state(0.5)) and keeper.epoch(state(0.5, 0.75)) and not keeper.epoch(state(0.5, 0.75, 0.25))
    assert sorted(os.listdir(keeper.folder)) == ["args.json", "best.pt", "curve.png", "history.csv", "last.pt"]
    rows = list(csv.DictReader((keeper.folder / "history.csv").open()))
    assert [float(r["val_top1"]) for r in rows] == [0.5, 0.75, 0.25] and float(rows[0]["val_loss"]) == 1.25
    assert Image.open(keeper.folder / "curve.png").size[0] > 500
    last, best = read_checkpoint(keeper.folder), read_file(keeper.folder / "best.pt")
    assert (last["epoch"], last["best"], last["arch"]) == (3, 0.75, "small")
    assert (best["epoch"], best["val_top1"], best["classes"]) == (1, 0.75, ["blue", "red"]) and "optimizer" not in best


def test_the_best_weights_load_into_the_network(keeper):
    saved = state(0.5)
    keeper.epoch(saved)
    model = load_weights(small(), keeper.folder / "best.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), saved["state_dict"].values()))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file_whole_and_nothing_else(tmp_path, monkeypatch, failing):
    path = tmp_path / "last.pt"
    write(path, b"earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, failing, full)
    with pytest.raises(OSError, match="last.pt could not be written: No space left on device; what was there before"):
        write(path, b"later")
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["last.pt"]


def test_a_real_full_disk_is_the_same(tmp_path):
    """A limit on the size of files stands in for the disk: the write itself fails half way."""
    resource = pytest.importorskip("resource")
    path, before = tmp_path / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    write(path, b"earlier")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="last.pt could not be written: File too large; what was there before"):
            write(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="folder .*file/x cannot be made .Not a directory.: name another"):
        Keeper(tmp_path / "file/x", ABOUT).open()


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*nowhere.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="last.pt"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_that_is_cut_off_anywhere_is_an_error(keeper):
    keeper.save(state())
    whole = (keeper.folder / "last.pt").read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        (keeper.folder / "last.pt").write_bytes(whole[:int(share * len(whole))])
        with pytest.raises(ValueError, match="last.pt is (cut off|no checkpoint)"):
            read_checkpoint(keeper.folder)


class Evil:
    def __reduce__(self):
        return (os.system, ("echo it ran",))


@pytest.mark.parametrize("save, word", [
    (lambda path: path.write_text("lr = 0.1"), "no checkpoint"),
    (lambda path: path.write_bytes(pickle.dumps(Evil(), 2)), "Nothing in it was run"),
    (lambda path: torch.save({"state_dict": Evil()}, path), "Nothing in it was run"),
    (lambda path: torch.save([1, 2], path), "it holds a list"),
    (lambda path: torch.save({"a": 1, "b": 2}, path), "it holds a, b"),
    (lambda path: torch.save({"state_dict": {}}, path), "weights alone, for use"),
])
def test_what_is_no_checkpoint_says_what_it_is_and_runs_nothing(tmp_path, capfd, save, word):
    save(tmp_path / "file.pt")
    with pytest.raises(ValueError, match=word):
        read_checkpoint(tmp_path / "file.pt")
    assert "it ran" not in capfd.readouterr().out


def test_another_network_or_other_classes_are_an_error(keeper):
    keeper.save(state())
    with pytest.raises(ValueError, match="is a run of small, not of large: go on with -a small"):
        read_checkpoint(keeper.folder, "large")
    with pytest.raises(ValueError, match="trained on 2 classes and the data has 3"):
        read_checkpoint(keeper.folder, "small", ["a", "b", "c"])
    with pytest.raises(ValueError, match="its blue is the data's green"):
        check_classes(read_checkpoint(keeper.folder), ["green", "red"], "it")


def test_weights_must_fit_to_the_last_entry(keeper):
    keeper.save(state())
    found = read_file(keeper.folder)
    load_whole(small(), found, "it")
    with pytest.raises(ValueError, match="it does not fit this network: 2 of .* entries differ, fc.weight first"):
        load_whole(small(classes=3), found, "it")
