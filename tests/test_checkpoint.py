"""Checkpoints are atomic and portable, hold what they promise, and anything else is a clear error."""
import csv
import errno
import os
import pickle

import pytest
import torch
from PIL import Image

from scnet_minimal import SCNet
from scnet_minimal.lab.errors import FileError, UserError
from scnet_minimal.lab.train.checkpoint import (
    Keeper,
    check_classes,
    load_exactly,
    load_optimizer,
    read_checkpoint,
    read_file,
    write_file,
    write_torch,
)
from scnet_minimal.weights import load_weights

ABOUT = {"arch": "small", "classes": ["blue", "red"], "arguments": {"lr": 0.1}}


def small(classes=2):
    return SCNet((1, 1, 1, 1), classes, widths=(4, 8, 8, 8))


def row(epoch, top1):
    return {"epoch": epoch, "train_loss": 1.5, "train_top1": 0.1, "val_loss": 1.25, "val_top1": top1, "seconds": 0.1}


def state(*top1):
    return {"epoch": len(top1), "step": 0, "steps": 4, "history": [row(i, t) for i, t in enumerate(top1)],
            "state_dict": small().state_dict(), "optimizer": {"state": {}}, "scaler": {}, "sums": {},
            "random": {"cpu": torch.get_rng_state()}}


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
    write_file(path, b"earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(FileError, match="last.pt .*No space left on device"):
        write_file(path, b"later")
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["last.pt"]


def test_a_real_full_disk_is_the_same(tmp_path):
    """A limit on the size of files stands in for the disk: the write itself fails half way."""
    resource = pytest.importorskip("resource")
    path, before = tmp_path / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_file(path, b"earlier")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FileError, match="last.pt .*File too large"):
            write_file(path, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="file/x .*Not a directory"):
        Keeper(tmp_path / "file/x", ABOUT).open()


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        read_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="last.pt"):
        read_checkpoint(tmp_path)


def test_a_truncated_checkpoint_is_an_error(keeper):
    keeper.save(state())
    whole = (keeper.folder / "last.pt").read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        (keeper.folder / "last.pt").write_bytes(whole[:int(share * len(whole))])
        with pytest.raises(UserError, match="last.pt"):
            read_checkpoint(keeper.folder)


def test_files_hold_cpu_tensors_wherever_the_run_was(tmp_path):
    """A plain torch.load on a machine without the GPU can read them."""
    moved = []

    class OnGpu(torch.Tensor):
        def cpu(self):
            moved.append(1)
            return self.as_subclass(torch.Tensor)

    t = torch.ones(2).as_subclass(OnGpu)
    optimizer = {"state": {0: {"m": t}}, "groups": [t, (t, 1)]}
    write_torch(tmp_path / "x.pt", {"state_dict": {"a": t}, "optimizer": optimizer})
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert len(moved) == 4 and content["optimizer"]["groups"][1][1] == 1
    assert type(content["state_dict"]["a"]) is torch.Tensor


class Evil:
    def __reduce__(self):
        return (os.system, ("echo it ran",))


@pytest.mark.parametrize("save, fact", [
    (lambda path: path.write_text("lr = 0.1"), "file.pt"),
    (lambda path: path.write_bytes(pickle.dumps(Evil(), 2)), "file.pt"),
    (lambda path: torch.save({"state_dict": Evil()}, path), "file.pt"),
    (lambda path: torch.save([1, 2], path), "list"),
    (lambda path: torch.save({"a": 1, "b": 2}, path), "a, b"),
    (lambda path: torch.save({"state_dict": {}}, path), "weights"),
])
def test_a_file_that_is_no_checkpoint_is_an_error_and_executes_nothing(tmp_path, capfd, save, fact):
    save(tmp_path / "file.pt")
    with pytest.raises(UserError, match=fact):
        read_checkpoint(tmp_path / "file.pt")
    assert "it ran" not in capfd.readouterr().out


@pytest.mark.parametrize("field", ["state_dict", "optimizer", "epoch", "step", "steps", "history", "sums", "scaler",
                                   "random", "classes", "arguments", "arch"])
def test_a_field_of_another_kind_is_named(keeper, field):
    keeper.save(state(0.5))
    whole = read_file(keeper.folder)
    for value in (None, "x", -1, 1.5, float("nan"), [1], {"x": "y"}, torch.ones(2)):
        allowed = {"scaler": dict, "optimizer": dict, "arguments": (dict, type(None)), "classes": type(None),
                   "arch": (str, type(None))}
        if not isinstance(value, allowed.get(field, ())):
            torch.save(whole | {field: value}, keeper.folder / "last.pt")
            with pytest.raises(UserError, match=f"{field}|cannot be resumed"):
                read_checkpoint(keeper.folder)
    if field not in allowed or field in ("scaler", "optimizer"):
        torch.save({name: value for name, value in whole.items() if name != field}, keeper.folder / "last.pt")
        with pytest.raises(UserError, match=f"{field}|cannot be resumed"):
            read_checkpoint(keeper.folder)


@pytest.mark.parametrize("spoil", [lambda t: t[:0], lambda t: t.to_sparse(), lambda t: t.to(torch.float8_e5m2),
                                   lambda t: t * float("nan"), lambda t: t.int(), lambda t: "x", lambda t: None])
def test_momentum_and_weights_must_fit_the_network(spoil):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    saved, weights = optimizer.state_dict(), model.state_dict()
    load_optimizer(optimizer, saved)
    with pytest.raises(UserError, match="fc.weight"):
        load_exactly(model, {"state_dict": weights | {"fc.weight": spoil(weights["fc.weight"])}}, "it")
    last = len(saved["state"]) - 1
    bad = {last: {"momentum_buffer": spoil(saved["state"][last]["momentum_buffer"])}}
    if bad[last]["momentum_buffer"] is not None:                    # None: before the first step
        with pytest.raises(UserError, match=f"parameter {last}"):
            load_optimizer(optimizer, saved | {"state": saved["state"] | bad})
    with pytest.raises(UserError, match="optimizer"):
        load_optimizer(optimizer, saved | {"param_groups": []})


def test_what_a_killed_run_left_unfinished_is_removed(keeper):
    (keeper.folder / ".last.pt.part").write_bytes(b"torn")
    Keeper(keeper.folder, ABOUT).open()
    assert os.listdir(keeper.folder) == ["args.json"]


def test_another_network_or_other_classes_are_an_error(keeper):
    keeper.save(state())
    with pytest.raises(UserError, match="small.*large.*-a small"):
        read_checkpoint(keeper.folder, "large")
    with pytest.raises(UserError, match="2 classes.* 3"):
        read_checkpoint(keeper.folder, "small", ["a", "b", "c"])
    with pytest.raises(UserError, match="blue.*green"):
        check_classes(read_checkpoint(keeper.folder), ["green", "red"], "it")


def test_weights_must_fit_to_the_last_entry(keeper):
    keeper.save(state())
    found = read_file(keeper.folder)
    load_exactly(small(), found, "it")
    with pytest.raises(UserError, match="2 of .*fc.weight"):
        load_exactly(small(classes=3), found, "it")
