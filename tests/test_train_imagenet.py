"""The training command: its folder, its errors, stopping and going on, and being killed."""
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

from scnet_minimal.lab import checkpoint, nets
from scnet_minimal.lab import train_imagenet as command
from scnet_minimal.lab.checkpoint import read_checkpoint, read_file
from scnet_minimal.lab.engine import Trainer
from scnet_minimal.scnet import load_weights


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


def fails(capsys, argv):
    """The one line (or two) that the command ends with."""
    capsys.readouterr()
    assert command.main([str(a) for a in argv]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and told.count("\n") <= 1 and "Traceback" not in told
    return told


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
    load_weights(nets.build("scnet_toy", 2), finished / "best.pt")


def test_it_says_how_each_epoch_went(folder, tmp_path, capsys):
    assert command.main(line(folder, tmp_path / "x")) == 0
    told = capsys.readouterr().out
    assert re.search(r"epoch 1/2: train loss [\d.]+, top-1 .*val loss .*images/s, \d+ s \(best\)", told)
    assert re.search(r"best: epoch \d, top-1 [\d.]+% -> .*best.pt", told)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    told = capsys.readouterr().out
    assert end.value.code == 0 and told.count("\n  python -m ") + told.count("\n  torchrun ") == 3
    for flag in ("-j", "--start-epoch", "--learning-rate", "--wd", "--print-freq", "--world-size", "--dist-url",
                 "--dist-backend", "--gpu", "--multiprocessing-distributed", "--wandb", "--compile", "--amp"):
        assert flag in told
    assert all(len(text) <= 120 for text in told.splitlines())


def test_recipes_give_way_to_flags_and_suit_the_data():
    def settled(*argv):
        return command.settle(command.parser().parse_args([*argv, "--output", "/nowhere/x"]))[0]

    paper = settled("/data/imagenet")
    assert [paper[k] for k in ("recipe", "arch", "epochs", "batch_size", "lr", "momentum", "weight_decay", "crop",
                               "label_smoothing")] == ["paper", "scnet50", 100, 256, 0.1, 0.9, 1e-4, 224, 0.1]
    quick = settled("imagenette", "--epochs", "5", "--lr", "0.3")
    assert [quick[k] for k in ("recipe", "epochs", "lr", "crop", "batch_size")] == ["quick", 5, 0.3, 128, 64]
    assert [settled("toynette")[k] for k in ("recipe", "crop", "batch_size")] == ["quick", 64, 32]
    assert settled("toynette", "--recipe", "paper")["crop"] == 224
    assert settled("x")["seed"] != settled("x")["seed"] and settled("x", "--seed", "4")["seed"] == 4


# --- stopping and going on --------------------------------------------------------------------------------

def test_ctrl_c_saves_and_the_line_it_prints_goes_on_to_the_same_weights(folder, finished, tmp_path, capsys,
                                                                         monkeypatch):
    learn, count = Trainer._learn, iter(range(100))

    def learn_and_interrupt(self, batch):
        if next(count) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        learn(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", learn_and_interrupt)
        assert command.main(line(folder, tmp_path / "x y")) == 130
    told = capsys.readouterr().out.strip().splitlines()
    assert told[-2] == "Stopped and saved. Go on with"
    words = shlex.split(told[-1])
    assert words[:3] == ["python", "-m", "scnet_minimal.lab.train_imagenet"]
    assert command.main(words[3:]) == 0
    assert "going on at epoch 2, step 2" in capsys.readouterr().out
    assert all(map(torch.equal, weights(finished), weights(tmp_path / "x y")))


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


def test_resume_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(folder, tmp_path, capsys):
    for words in ("batch 16", "going on at epoch 3"):
        assert command.main(line(folder, tmp_path / "x", "--resume", "auto")) == 0
        assert words in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "x")["epoch"] == 2


def test_start_epoch_moves_the_schedule(folder, tmp_path):
    argv = line(folder, tmp_path / "x", "--recipe", "paper", "--epochs", 31, "--start-epoch", 30)
    assert command.main(argv) == 0
    (row,) = csv.DictReader((tmp_path / "x/history.csv").open())
    assert row["epoch"] == "30" and float(row["lr"]) == pytest.approx(0.01)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from scnet_minimal.lab.train_imagenet import main
from scnet_minimal.lab.checkpoint import read_checkpoint

random.seed(0)
output, argv = Path(sys.argv[1]), sys.argv[2:] + ["--resume", "auto"]
kills, told, done = 0, 0, 0
while kills < 10:
    child = os.fork()                           # torch is imported already: no three seconds each
    if not child:
        os.dup2(os.open(str(output) + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        main(argv)
        os._exit(0)
    time.sleep(random.uniform(0.1, 1.5))
    os.kill(child, signal.SIGKILL)
    finished_itself = os.waitpid(child, 0)[1] == 0
    kills += 1
    log = Path(str(output) + ".log").read_text()
    told = log.count(" train loss ")            # printed once an epoch is kept
    if (output / "last.pt").exists():
        found = read_checkpoint(output)         # readable, always
        assert found["epoch"] >= max(told - 1, done), (found["epoch"], told, done)
        assert len(found["history"]) == found["epoch"]
        done = found["epoch"]
    else:
        assert told == 0
    print("killed", kills, "epochs", done, flush=True)
assert main(argv) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills_at_random_moments_change_nothing_in_the_end(folder, tmp_path):
    argv = line(folder, tmp_path / "killed", "--epochs", 12)
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed"), *argv], capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("killed ") == 10
    assert command.main(line(folder, tmp_path / "straight", "--epochs", 12)) == 0
    assert all(map(torch.equal, weights(tmp_path / "killed"), weights(tmp_path / "straight")))
    assert not [name for name in os.listdir(tmp_path / "killed") if name.startswith(".")]


# --- one clear line, exit code 2, nothing overwritten -----------------------------------------------------

def test_an_output_that_holds_a_run_is_not_overwritten(folder, finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert "holds a run already: go on with it by --resume" in fails(capsys, line(folder, finished))
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

    def told(path, *more):
        return fails(capsys, [folder, "--resume", path, "-j", "0", *more])

    assert "is a run of scnet_toy, not of resnet18: go on with -a scnet_toy" in told(whole, "-a", "resnet18")
    assert "cut off" in told(torn)
    assert "is no checkpoint" in told(tmp_path / "notes.pt")
    assert "weights alone" in told(finished / "best.pt")
    assert "There is no checkpoint" in told(tmp_path / "nothing.pt")
    assert "trained on 2 classes and the data has 3" in fails(capsys, [other, "--resume", whole, "-j", "0"])
    assert (finished / "last.pt").read_bytes() == before


def test_a_full_disk_ends_in_one_line_with_the_earlier_checkpoint_whole(folder, tmp_path, capsys, monkeypatch):
    sync, epochs = os.fsync, []

    def full_from_the_second_epoch_on(number):
        epochs.append(number)
        if len(epochs) > 5:                     # args.json; then best.pt, history.csv, curve.png, last.pt
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(checkpoint.os, "fsync", full_from_the_second_epoch_on)
    told = fails(capsys, line(folder, tmp_path / "x"))
    assert "No space left on device; what was there before is whole" in told
    assert read_checkpoint(tmp_path / "x")["epoch"] == 1


def test_an_output_that_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be made (Not a directory)" in fails(capsys, line(folder, tmp_path / "file/x"))


def test_a_loss_that_is_not_finite_ends_in_one_line(folder, tmp_path, capsys):
    told = fails(capsys, line(folder, tmp_path / "x", "--lr", "1e30"))
    assert "not finite at step 2 of epoch 1" in told and "smaller --lr" in told
    assert "last.pt" not in os.listdir(tmp_path / "x")


@pytest.mark.parametrize("flags, word", [
    (["-a", "scnet500"], "did you mean scnet50"), (["--epochs", "0"], "--epochs must be at least 1, not 0"),
    (["-b", "0"], "--batch-size must be at least 1"), (["--lr", "nan"], "--lr must be at least 0, not nan"),
    (["--gpu", "99"], "There is no GPU 99"), (["-e"], "--resume FILE or --pretrained"),
    (["--pretrained"], "No ImageNet weights of scnet_toy exist"), (["imagenete"], "")])
def test_what_cannot_be_meant(folder, tmp_path, capsys, flags, word):
    if flags == ["imagenete"]:
        assert "Unknown data 'imagenete'" in fails(capsys, flags)
    else:
        assert word in fails(capsys, line(folder, tmp_path / "x", *flags))
    assert not (tmp_path / "x").exists()


# --- evaluation, ready-made weights, dashboards -----------------------------------------------------------

def test_evaluation_agrees_with_training(folder, finished, capsys):
    best = max(float(row["val_top1"]) for row in csv.DictReader((finished / "history.csv").open()))
    capsys.readouterr()
    assert command.main([str(folder), "-e", "--resume", str(finished / "best.pt"), "-j", "0"]) == 0
    told = capsys.readouterr().out
    assert f"16 pictures of {folder} at 16 px: top-1 error {1 - best:.2%}, top-5 error 0.00%" in told
    assert command.main([str(folder), "-e", "--resume", str(finished), "--crop", "32", "-j", "0"]) == 0
    assert "at 32 px" in capsys.readouterr().out
    assert "does not fit this network" in fails(capsys, [folder, "-e", "--resume", finished, "-a", "resnet_toy"])


def test_pretrained_takes_torchvisions_weights_but_for_the_head(folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    ready = torchvision.models.get_model("squeezenet1_1", num_classes=1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: ready)
    own = command.network("squeezenet1_1", 2, True).state_dict()
    assert [name for name in own if not torch.equal(own[name], ready[name])] == ["classifier.1.weight",
                                                                                 "classifier.1.bias"]


def test_pretrained_weights_that_cannot_be_had_are_one_line(folder, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    told = fails(capsys, line(folder, tmp_path / "x", "-a", "resnet18", "--pretrained"))
    assert "weights of resnet18 could not be fetched" in told and "no route to host" in told


def test_a_network_of_imagenet_is_judged_on_the_classes_that_are_there(tmp_path, capsys, monkeypatch):
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

    monkeypatch.setattr(command, "network", lambda arch, classes, pretrained: Thousand())
    assert command.main([str(tmp_path), "-e", "--pretrained", "--crop", "16", "-j", "0"]) == 0
    assert "top-1 error 0.00%" in capsys.readouterr().out


def test_every_kind_of_network_trains(folder, tmp_path):
    assert command.main(line(folder, tmp_path / "x", "-a", "squeezenet1_1", "--crop", 32, "--epochs", 1, "--amp")) == 0
    assert read_file(tmp_path / "x/best.pt")["arch"] == "squeezenet1_1"


def test_without_wandb_one_line_says_so(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "--wandb needs the package wandb" in fails(capsys, line(folder, tmp_path / "x", "--wandb"))


def test_wandb_is_told_every_epoch_and_stays_offline_without_an_account(folder, tmp_path, monkeypatch):
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
    assert began[1]["id"] == began[0]["id"] and began[1]["resume"] == "allow", "going on is another run there"
    assert rows[-1]["epoch"] == 2
