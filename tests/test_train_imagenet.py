"""The training command: its folder, its errors, stopping and resuming, and being killed."""
import csv
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image

from scnet_minimal.lab import train_imagenet as command
from scnet_minimal.lab.train import Trainer, checkpoint
from scnet_minimal.lab.train.checkpoint import read_checkpoint, read_file
from scnet_minimal.lab.train.command import pace, resume_command, settle
from scnet_minimal.lab.zoo import create_model
from scnet_minimal.weights import load_weights


@pytest.fixture(scope="module")
def folder(squares, tmp_path_factory):
    """3 steps of 16 an epoch."""
    return squares(tmp_path_factory.mktemp("data") / "squares", 20)


def line(folder, output, *more):
    return [str(folder), "-a", "scnet_toy", "--recipe", "quick", "--crop", "16", "-b", "16", "--epochs", "2",
            "--seed", "0", "-j", "0", "--output", str(output), *map(str, more)]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The folder of a run of two epochs."""
    output = tmp_path_factory.mktemp("runs") / "x"
    assert command.main(line(folder, output)) == 0
    return output


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """A figure after each epoch takes longer than the epoch does here."""
    monkeypatch.setattr(checkpoint, "history_png", lambda history, score: b"")


def fails(capsys, argv):
    """The error that the command ends with: one line or two, exit code 2."""
    capsys.readouterr()
    assert command.main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and error.count("\n") <= 1
    return error


def weights(output):
    return list(read_checkpoint(output)["state_dict"].values())


def test_a_run_leaves_its_folder(finished):
    assert sorted(os.listdir(finished)) == ["args.json", "best.pt", "curve.png", "history.csv", "last.pt"]
    rows = list(csv.DictReader((finished / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "val_top1", "val_top5", "lr"} <= rows[0].keys()
    args = json.loads((finished / "args.json").read_text())
    assert (args["arch"], args["classes"], args["arguments"]["seed"]) == ("scnet_toy", ["blue", "red"], 0)
    assert (finished / "best.pt").stat().st_size < 5e6 and "optimizer" not in read_file(finished / "best.pt")
    load_weights(create_model("scnet_toy", 2), finished / "best.pt")


def test_it_prints_how_each_epoch_went(folder, tmp_path, capsys):
    assert command.main(line(folder, tmp_path / "x")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"epoch 1/2: train loss [\d.]+, top-1 .*val loss .*images/s, \d+ s \(best\)", shown)
    assert re.search(r"best: epoch \d, top-1 [\d.]+% -> .*best.pt", shown)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.count("\n  python -m ") + shown.count("\n  torchrun ") == 3
    for flag in ("-j", "--start-epoch", "--learning-rate", "--wd", "--print-freq", "--world-size", "--dist-url",
                 "--dist-backend", "--gpu", "--multiprocessing-distributed", "--wandb", "--compile", "--amp"):
        assert flag in shown
    assert all(len(text) <= 120 for text in shown.splitlines())


@pytest.mark.slow
def test_recipes_give_way_to_flags_and_suit_the_data():
    def settled(*argv):
        args = command.parser().parse_args([*argv, "--output", "/nowhere/x"])
        return settle(args, command.complete, command.default_output).settings

    paper = settled("/data/imagenet")
    assert [paper[k] for k in ("recipe", "arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "crop",
                               "label_smoothing")] == ["paper", "scnet50", 100, 256, 0.1, 0.9, 1e-4, 224, 0.1]
    quick = settled("imagenette", "--epochs", "5", "--lr", "0.3")
    assert [quick[k] for k in ("recipe", "epochs", "lr", "crop", "batch_size")] == ["quick", 5, 0.3, 128, 64]
    assert [settled("toynette")[k] for k in ("recipe", "crop", "batch_size")] == ["quick", 64, 32]
    assert settled("toynette", "--recipe", "paper")["crop"] == 224
    assert settled("x")["seed"] != settled("x")["seed"] and settled("x", "--seed", "4")["seed"] == 4


SHOWN = re.findall(r"(?:torchrun|python -m scnet_minimal).*", command.EXAMPLES.replace("\\\n", ""))


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_line_in_help_parses(line):
    words = shlex.split(line)
    module = words.index(command.MODULE)
    assert words[module - 1] == "-m"
    command.parser().parse_args(words[module + 1:])


def test_the_pace_names_minutes_only_where_there_are_some():
    slow, quick = dict(images_per_second=1234.5, seconds=61.0), dict(images_per_second=15.13, seconds=20.0)
    assert pace({"epoch": 1, **slow}, 4) == "1,234 images/s, 61 s, 2 min left"
    assert pace({"epoch": 0, **quick}, 3) == "15.1 images/s, 20 s"


# --- stopping and resuming --------------------------------------------------------------------------------

def test_ctrl_c_saves_and_the_command_that_it_prints_resumes_to_the_same_weights(folder, finished, tmp_path, capsys,
                                                                                 monkeypatch):
    step, count = Trainer._train_step, iter(range(100))

    def interrupted_step(self, batch):
        if next(count) == 4:
            signal.raise_signal(signal.SIGINT)
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted_step)
        assert command.main(line(folder, tmp_path / "x y")) == 130
    words = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert words[:3] == ["python", "-m", command.MODULE]
    assert command.main(words[3:]) == 0
    assert "resuming at epoch 2, step 2" in capsys.readouterr().out
    assert all(map(torch.equal, weights(finished), weights(tmp_path / "x y")))


@pytest.mark.parametrize("environment, start", [
    ({}, "python"),
    ({"LOCAL_WORLD_SIZE": "8"}, "torchrun --standalone --nproc-per-node 8"),
    ({"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "one", "MASTER_PORT": "29500",
      "TORCHELASTIC_MAX_RESTARTS": "3"}, "torchrun --nnodes 2 --node-rank 0 --master-addr one --master-port 29500 "
     "--nproc-per-node 8 --max-restarts 3")])
def test_the_command_that_resumes_is_started_as_this_run_was(monkeypatch, environment, start):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if environment:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    found = resume_command("a.b", ["toynette", "--resume", "auto", "-j", "0"], "runs/a b")
    assert found == f"{start} -m a.b toynette -j 0 --resume 'runs/a b'"
    assert resume_command("a.b", ["--resume=x", "--amp"], "y") == f"{start} -m a.b --amp --resume y"


TWICE = """
import os, signal, sys, time
from scnet_minimal.lab import train_imagenet as command
from scnet_minimal.lab.train import Trainer, checkpoint
from scnet_minimal.lab.command_line import run_command

def endless(self, batch):
    print("working", flush=True)
    while True:
        time.sleep(0.01)

Trainer._train_step = endless
run_command(lambda: command.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_command_at_once_without_a_traceback(folder, tmp_path):
    run = subprocess.Popen([sys.executable, "-c", TWICE, *line(folder, tmp_path / "x")], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    try:
        while run.stdout.readline() != "working\n":
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.3)                       # it finishes its step first
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=20)
    finally:
        run.kill()
    assert run.returncode == 130 and "Traceback" not in err


def test_determinism_comes_from_the_settings_also_when_a_folder_is_resumed(folder, finished, tmp_path):
    def settled(*argv):
        args = command.parser().parse_args([str(word) for word in argv])
        return settle(args, command.complete, command.default_output).settings

    assert settled("--resume", finished)["deterministic"] and settled(folder, "--seed", "0")["deterministic"]
    assert not settled(folder)["deterministic"]


def test_resuming_needs_nothing_but_the_folder(folder, finished, tmp_path):
    assert command.main(line(folder, tmp_path / "x", "--recipe", "paper", "--epochs", 1)) == 0
    assert command.main(["--resume", str(tmp_path / "x"), "--epochs", "2", "-j", "0"]) == 0
    found = read_checkpoint(tmp_path / "x")
    assert (found["epoch"], found["arguments"]["recipe"], found["arguments"]["crop"]) == (2, "paper", 16)
    assert command.main(line(folder, tmp_path / "y", "--recipe", "paper")) == 0
    assert all(map(torch.equal, weights(tmp_path / "x"), weights(tmp_path / "y")))


def test_resume_auto_starts_anew_after_a_kill_before_the_first_checkpoint(folder, finished, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/best.pt").write_bytes((finished / "best.pt").read_bytes())       # it is written before last.pt
    assert command.main(line(folder, tmp_path / "x", "--resume", "auto", "--epochs", 1)) == 0


def test_resume_auto_starts_where_there_is_nothing_and_resumes_where_there_is(folder, tmp_path, capsys):
    for words in ("batch 16", "resuming at epoch 3"):
        assert command.main(line(folder, tmp_path / "x", "--resume", "auto")) == 0
        assert words in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "x")["epoch"] == 2


@pytest.mark.slow
def test_start_epoch_moves_the_schedule(folder, tmp_path):
    argv = line(folder, tmp_path / "x", "--recipe", "paper", "--epochs", 31, "--start-epoch", 30)
    assert command.main(argv) == 0
    (row,) = csv.DictReader((tmp_path / "x/history.csv").open())
    assert row["epoch"] == "30" and float(row["lr"]) == pytest.approx(0.01)


KILLED = """
import os, signal, sys
from scnet_minimal.lab.train import checkpoint, Trainer
from scnet_minimal.lab.train_imagenet import main

where, argv = sys.argv[1], sys.argv[2:]
step, replace, count = Trainer._train_step, os.replace, iter(range(100))

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def step_or_die(self, batch):
    die() if where == "in a step" and next(count) == 4 else step(self, batch)

def replace_or_die(source, target):
    if where == "in a write" and target.name == "last.pt" and next(count) == 1:
        die()                               # the second epoch's best.pt and history.csv have their names already
    replace(source, target)

Trainer._train_step, os.replace = step_or_die, replace_or_die
main(argv)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("where", ["in a step", "in a write"])
def test_a_kill_at_any_moment_changes_nothing_in_the_end(folder, finished, tmp_path, where):
    argv = line(folder, tmp_path / "x", "--resume", "auto")
    run = subprocess.run([sys.executable, "-c", KILLED, where, *argv], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]
    assert read_checkpoint(tmp_path / "x")["epoch"] == 1
    assert command.main(argv) == 0
    assert all(map(torch.equal, weights(tmp_path / "x"), weights(finished)))
    assert sorted(os.listdir(tmp_path / "x")) == sorted(os.listdir(finished))


# --- one clear line, exit code 2, nothing overwritten -----------------------------------------------------

def test_an_output_that_holds_a_run_is_not_overwritten(folder, finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert f"--resume {finished}" in fails(capsys, line(folder, finished))
    assert before == {path: path.read_bytes() for path in finished.iterdir()}


def test_resuming_the_wrong_thing(folder, finished, tmp_path, capsys):
    before = (finished / "last.pt").read_bytes()
    whole, torn = finished / "last.pt", tmp_path / "torn.pt"
    torn.write_bytes(before[:5000])
    (tmp_path / "notes.pt").write_text("lr = 0.1")
    other = tmp_path / "three"
    for split in ("train", "val"):
        for name in "abc":
            (other / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(other / split / name / "0.png")

    def error(path, *more):
        return fails(capsys, [folder, "--resume", path, "-j", "0", *more])

    assert "-a scnet_toy" in error(whole, "-a", "resnet18")
    for path in (torn, tmp_path / "notes.pt", tmp_path / "nothing.pt", finished / "best.pt"):
        assert path.name in error(path)
    assert re.search("2 classes.* 3:", fails(capsys, [other, "--resume", whole, "-j", "0"]))
    assert (finished / "last.pt").read_bytes() == before


def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint_whole(folder, tmp_path, capsys, monkeypatch):
    sync, epochs = os.fsync, []

    def full_from_the_second_epoch_on(number):
        epochs.append(number)
        if len(epochs) > 5:                     # args.json; then best.pt, history.csv, curve.png, last.pt
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full_from_the_second_epoch_on)
    assert "No space left on device" in fails(capsys, line(folder, tmp_path / "x"))
    assert read_checkpoint(tmp_path / "x")["epoch"] == 1


def test_an_output_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "Not a directory" in fails(capsys, line(folder, tmp_path / "file/x"))


def test_a_loss_that_is_not_finite_is_one_line(folder, tmp_path, capsys):
    error = fails(capsys, line(folder, tmp_path / "x", "--lr", "1e30"))
    assert "step 2 of epoch 1" in error and "smaller --lr" in error
    assert "last.pt" not in os.listdir(tmp_path / "x")


@pytest.mark.parametrize("flags, fact", [
    (["-a", "scnet500"], "scnet50"), (["--epochs", "0"], "--epochs.* 1.* 0"), (["-b", "0"], "--batch-size.* 1.* 0"),
    (["--lr", "nan"], "--lr.* nan"), (["--lr", "inf"], "--lr.* inf"), (["--gpu", "99"], "GPU 99"),
    (["-e"], "--resume .*--pretrained"), (["--pretrained"], "scnet_toy"), (["--lr", "1e300"], "--lr.* 1e300"),
    (["-p", "0"], "-p.* 1 .* 0"), (["-j", "-1"], "-j.* -1"), (["--seed", "-1"], "--seed.* -1"),
    (["--momentum", "1"], "--momentum.* 1"), (["--label-smoothing", "-0.1"], "--label-smoothing.* -0.1"),
    (["--wd", "inf"], "--wd.* inf"), (["--resume", ""], "--resume"), (["--crop", "10000000000"], "--crop"),
    (["--start-epoch", "2"], "--start-epoch 2"), (["--gpu", "-1"], "--gpu.* -1"), (["--epochs", "x"], "--epochs.* x"),
    (["--rank", "1"], "--rank 1"), (["--output", " "], "--output"), (["--size", "9"], "--size"),
    (["-a", "inception_v3", "--crop", "64"], "75 px"), (["-a", "vit_b_16", "--crop", "64"], "224 px")])
def test_wrong_flags(folder, tmp_path, capsys, flags, fact):
    assert re.search(fact, fails(capsys, line(folder, tmp_path / "x", *flags)))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("environment, fact", [
    ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x'"), ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE=''"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2")])
def test_a_wrong_environment(folder, tmp_path, capsys, monkeypatch, environment, fact):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fact in fails(capsys, line(folder, tmp_path / "x"))


@pytest.mark.slow
def test_waiting_for_others_says_where_and_ends_in_time(folder, tmp_path, capsys):
    wait = ["--world-size", "2", "--rank", "0", "--dist-timeout", "1", "--dist-backend", "gloo"]
    assert command.main(line(folder, tmp_path / "x", *wait, "--dist-url", "tcp://127.0.0.1:0")) == 2
    error = capsys.readouterr().err
    assert "waiting at tcp://127.0.0.1:0 for all 2" in error and "within 1 s" in error
    assert command.main(line(folder, tmp_path / "x", *wait, "--dist-url", "foo")) == 2
    assert "foo" in capsys.readouterr().err.splitlines()[-1]


def test_a_misspelt_data_set(capsys):
    assert "'imagenete'" in fails(capsys, ["imagenete"])


@pytest.mark.parametrize("internal", [ValueError("not the user's"), OSError("nor this"), RuntimeError("nor this")])
def test_an_internal_error_keeps_its_traceback(folder, tmp_path, monkeypatch, internal):
    def fail(*_, **__):
        raise internal

    monkeypatch.setattr(command, "fit", fail)
    with pytest.raises(type(internal)) as caught:
        command.main(line(folder, tmp_path / "x"))
    assert caught.value is internal


# --- evaluation, ready-made weights, dashboards -----------------------------------------------------------

def test_evaluation_agrees_with_training(folder, finished, capsys):
    best = max(float(row["val_top1"]) for row in csv.DictReader((finished / "history.csv").open()))
    capsys.readouterr()
    assert command.main([str(folder), "-e", "--resume", str(finished / "best.pt"), "-j", "0"]) == 0
    shown = capsys.readouterr().out
    assert f"16 images of {folder} at 16 px: top-1 error {1 - best:.2%}, top-5 error 0.00%" in shown
    assert command.main([str(folder), "-e", "--resume", str(finished), "--crop", "32", "-j", "0"]) == 0
    assert "at 32 px" in capsys.readouterr().out
    error = fails(capsys, [folder, "-e", "--resume", finished / "best.pt", "-a", "resnet_toy"])
    assert "scnet_toy" in error and "resnet_toy" in error


def test_pretrained_takes_torchvisions_weights_but_for_the_head(folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    ready = torchvision.models.get_model("squeezenet1_1", num_classes=1000).state_dict()
    torch.save(ready, tmp_path / "ready.pth")
    monkeypatch.setattr(command, "fetch_imagenet", lambda arch: tmp_path / "ready.pth")
    own = command.new_network("squeezenet1_1", 2, True).state_dict()
    assert [name for name in own if not torch.equal(own[name], ready[name])] == ["classifier.1.weight",
                                                                                 "classifier.1.bias"]


@pytest.mark.parametrize("cached", [None, b"", b"<html>", b"cos\nsystem\n(S'echo it ran'\ntR."])
def test_pretrained_weights_that_cannot_be_had_or_are_not_the_publishers_are_one_error(folder, tmp_path, capfd,
                                                                                      monkeypatch, cached):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    if cached is not None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(cached)
    assert command.main(line(folder, tmp_path / "x", "-a", "resnet18", "--pretrained")) == 2
    out, error = capfd.readouterr()
    assert ("no route to host" if cached is None else "SHA-256") in error and error.count("\n") <= 2
    assert "it ran" not in out


@pytest.mark.slow
def test_a_network_of_imagenet_is_evaluated_on_the_classes_that_are_there(tmp_path, capsys, monkeypatch):
    """ImageNet's logits 0 and 497 are Imagenette's tench and church."""
    for split in ("train", "val"):
        for wnid, red in (("n01440764", 0), ("n03028079", 250)):
            (tmp_path / split / wnid).mkdir(parents=True)
            Image.new("RGB", (20, 20), (red, 0, 0)).save(tmp_path / split / wnid / "0.png")

    class Thousand(torch.nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 1000)
            logits[:, 3] = 9                                        # a class that is not there
            logits[:, 497] = x[:, 0].mean((1, 2)).sign()            # red: church
            return logits

    monkeypatch.setattr(command, "new_network", lambda arch, classes, pretrained: Thousand())
    assert command.main([str(tmp_path), "-e", "--pretrained", "--crop", "16", "-j", "0"]) == 0
    assert "top-1 error 0.00%" in capsys.readouterr().out


@pytest.mark.slow
def test_every_kind_of_network_trains(folder, tmp_path):
    assert command.main(line(folder, tmp_path / "x", "-a", "squeezenet1_1", "--crop", 32, "--epochs", 1, "--amp")) == 0
    assert read_file(tmp_path / "x/best.pt")["arch"] == "squeezenet1_1"


def test_without_wandb_an_error_names_the_package(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install wandb" in fails(capsys, line(folder, tmp_path / "x", "--wandb"))


@pytest.mark.slow
def test_wandb_gets_every_epoch_and_stays_offline_without_an_account(folder, tmp_path, monkeypatch):
    began, rows, ended = [], [], []
    fake = types.SimpleNamespace(init=lambda **options: began.append(options) or types.SimpleNamespace(
        log=rows.append, finish=lambda: ended.append(True)))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))                       # no .netrc there
    assert command.main(line(folder, tmp_path / "x", "--wandb")) == 0
    assert began[0]["mode"] == "offline" and began[0]["config"]["arch"] == "scnet_toy"
    assert [row["epoch"] for row in rows] == [0, 1] and ended == [True]
    assert Path(began[0]["dir"]) == tmp_path / "x"
    assert command.main(["--resume", str(tmp_path / "x"), "--epochs", "3", "--wandb"]) == 0
    assert began[1]["id"] == began[0]["id"] and began[1]["resume"] == "allow"
    assert rows[-1]["epoch"] == 2
