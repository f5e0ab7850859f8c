"""The detection command: runs that stop and resume, several processes, evaluation, what it refuses and prints."""
import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coco_folder import needs_pycocotools, write_coco_folder
from PIL import Image

from scnet_minimal.lab import detection
from scnet_minimal.lab.detect.models import load_detector
from scnet_minimal.lab.train.checkpoint import read_file
from scnet_minimal.lab.train.processes import Place
from scnet_minimal.lab.zoo import trained

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ROOT = Path(__file__).parents[1]


def words(*more, task="segment", size=48):
    small = ["--channels", 8, "--pictures", 4, 2, "-b", 2, "-j", 0]
    return list(map(str, ["toynette", "--task", task, "--size", size, "--seed", 1, *small, *more]))


def run(*more, **options):
    return detection.main(words(*more, **options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of two epochs, and half.pt in it, which it exported."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert run("--epochs", 2, "--output", output, "--export", output / "half.pt") == 0
    return output


def interrupted_in_step(n):
    """detection_task, with a Ctrl-C in the n-th step of this process."""
    task, steps = detection.detection_task, iter(range(1, 100))

    def interrupted(*args):
        loss, evaluate = task(*args)

        def stop(model, batch):
            if next(steps) == n:
                signal.raise_signal(signal.SIGINT)
            return loss(model, batch)
        return detection.Task(stop, evaluate)
    return interrupted


# --- runs -----------------------------------------------------------------------------------------------------------

def test_a_run_leaves_its_folder(finished):
    for name in ("best.pt", "last.pt", "history.csv", "curve.png", "args.json", "predictions.png"):
        assert (finished / name).is_file()
    assert Image.open(finished / "predictions.png").size[0] > 700
    assert "val_miou" in next(csv.reader((finished / "history.csv").open()))


@pytest.mark.slow
def test_ctrl_c_saves_and_the_command_that_it_prints_resumes_to_the_same_weights(finished, tmp_path, capsys,
                                                                                 monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(detection, "detection_task", interrupted_in_step(3))
        assert run("--epochs", 2, "--output", tmp_path / "in parts") == 130
    printed = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed[:3] == ["python", "-m", "scnet_minimal.lab.detection"]
    assert read_file(tmp_path / "in parts")["step"] == 1 and read_file(tmp_path / "in parts")["epoch"] == 1
    assert detection.main(printed[3:]) == 0
    one, two = (read_file(path)["state_dict"] for path in (finished, tmp_path / "in parts"))
    assert all(torch.equal(t, two[name]) for name, t in one.items())


def test_a_folder_is_all_that_resuming_needs(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert detection.main(["--resume", str(folder), "--epochs", "3", "-j", "0"]) == 0
    before, after = read_file(finished), read_file(folder)
    assert after["epoch"] == 3 and after["history"][:2] == before["history"]
    assert after["arguments"] == before["arguments"] | {"epochs": 3, "output": str(folder)}
    assert "epoch 3, step 0" in capsys.readouterr().out


def test_what_is_exported_is_the_last_model_in_half_precision(finished):
    model, about = load_detector(finished / "half.pt")
    whole, _ = load_detector(finished / "last.pt")
    assert about["task"] == "segment" and about["row"]["epoch"] == 1 and "arguments" not in about
    assert read_file(finished / "half.pt")["state_dict"]["network.classifier.0.weight"].dtype == torch.float16
    assert model.state_dict().keys() == whole.state_dict().keys() and not model.training


@pytest.mark.slow
@needs_pycocotools
@pytest.mark.parametrize("task", ["mask", "keypoint"])
def test_it_trains_on_a_folder_in_cocos_layout(task, tmp_path, capsys):
    root, output = write_coco_folder(tmp_path / "coco"), tmp_path / "run"
    more = ["--task", task, "-a", "scnet_toy", "--size", 48, "--channels", 8, "--epochs", 1, "-b", 1, "-j", 0]
    assert detection.main(list(map(str, [root, *more, "--output", output]))) == 0
    assert f"{task} ap " in capsys.readouterr().out and (output / "predictions.png").is_file()


# --- several processes ----------------------------------------------------------------------------------------------

TWO = """
import sys
from test_detection import interrupted_in_step
from scnet_minimal.lab import detection
from scnet_minimal.lab.train import command

end = sys.argv.index("then")
evaluation, training = sys.argv[1:end], sys.argv[end + 1:]

def work(args, device, place):
    detection.work(detection.parser().parse_args(evaluation), device, place)
    if place.rank == 1:
        detection.detection_task = interrupted_in_step(3)
    return detection.work(args, device, place)

sys.exit(command.start(detection.parser(), work, training))
"""


@needs_pycocotools
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo")
def test_under_torchrun_two_processes_find_what_one_finds_stop_together_and_resume(tmp_path, capsys):
    evaluation = ["toynette", "-e", "--resume", str(trained("scenes_mask_keypoint")), "--pictures", "1", "3", "-j", "0"]
    assert detection.main(evaluation) == 0
    alone = capsys.readouterr().out
    training = words("--epochs", 2, "--pictures", 8, 2, "--output", tmp_path / "run", "--dist-backend", "gloo",
                     task="mask+keypoint")
    (tmp_path / "two.py").write_text(TWO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    def torchrun(*more):
        return subprocess.run([sys.executable, "-m", "torch.distributed.run", *map(str, more)], env=environment,
                              capture_output=True, text=True, timeout=240)

    stopped = torchrun("--standalone", "--nproc-per-node", 2, tmp_path / "two.py", *evaluation, "then", *training)
    assert re.findall(r"_ap\w* .*", alone) == re.findall(r"_ap\w* .*", stopped.stdout) != [], stopped.stderr[-2000:]
    assert float(re.search(r"box_ap50 +(\S+)", alone)[1]) > 0.5
    state = read_file(tmp_path / "run")
    assert (state["epoch"], state["step"], state["sums"]["images"]) == (0, 3, 6)    # both, after the same step

    printed = shlex.split(re.search(r"\n  (torchrun .*)\n", stopped.stdout)[1])
    resumed = torchrun(*printed[1:])
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert resumed.stdout.count("resuming at epoch 1, step 3\n") == 1
    state = read_file(tmp_path / "run")
    assert state["epoch"] == 2 and all(row["val_box_ap"] >= 0 for row in state["history"])


def test_batch_size_and_workers_count_for_one_machine(monkeypatch):
    def load_scenes(*_, batch_size, workers, shard, **__):
        return batch_size, workers, shard

    monkeypatch.setattr(detection, "load_scenes", load_scenes)
    settings = dict(data="x", task="box", size=64, pictures=(1, 1), batch_size=16, seed=0)
    place = Place(rank=9, world=16, local_rank=1, local_world=8)
    assert detection._load(settings, None, place, 20) == (32, 3, (9, 16))


# --- evaluation -----------------------------------------------------------------------------------------------------

def test_evaluation_agrees_with_training(finished, capsys):
    for name in ("last.pt", "half.pt"):
        assert detection.main(["-e", "--resume", str(finished / name), "-j", "0", "--pictures", "9", "2"]) == 0
        printed = capsys.readouterr().out
        state = read_file(finished / "last.pt")
        row = state["history"][-1] if name == "last.pt" else read_file(finished / name)["row"]
        for result in ("miou", "pixels"):
            value = float(re.search(rf"{result} +([\d.]+)", printed)[1])
            assert value == pytest.approx(row[f"val_{result}"], abs=6e-4 if name == "last.pt" else 0.02)


@pytest.mark.parametrize("flags, fact", [
    (["--task", "box"], "segment.* box"), (["-a", "resnet_toy"], "scnet_toy.* resnet_toy"),
    (["--size", "64"], "48.* 64"), (["--channels", "16"], "8.* 16"), (["--head", "deeplab"], "fcn.* deeplab"),
    (["-b", "0"], "0"),
])
def test_to_evaluate_something_else_than_the_file_holds_is_refused(finished, flags, fact, capsys):
    assert detection.main(["-e", "--resume", str(finished / "best.pt"), *flags]) == 2
    assert re.search(fact, capsys.readouterr().err)


# --- what is refused ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, fact", [
    pytest.param(["/nowhere/at/all", "--task", "segment"], "/nowhere/at/all", marks=needs_pycocotools),
    (["-a", "scnet5"], "scnet50"), (["-a", "resnet18"], "resnet18"), (["--weights", "missing.pt"], "missing.pt"),
    (["--trainable", "6"], "6"), (["--epochs", "0"], "--epochs"), (["--lr", "nan"], "--lr"),
    (["-b", "0"], "--batch-size"), (["--size", "8"], "--size"), (["--pictures", "1", "0"], "--pictures"),
    (["--pretrained"], "scnet_toy"), (["-e"], "--resume"), (["--resume", "missing"], "missing"),
])
def test_a_wrong_command_line_ends_with_one_error_and_exit_code_2(flags, fact, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [] if "--pictures" in flags or flags[0].startswith("/") else ["--pictures", "1", "1"]
    size = [] if "--size" in flags else ["--size", "48"]
    assert detection.main(["--task", "segment", *flags, *small, *size]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") <= 2 and fact in error


def test_a_run_resumes_only_as_what_it_is(finished, tmp_path, capsys):
    assert detection.main(["--resume", str(finished), "--task", "box"]) == 2
    assert re.search("segment.* box", capsys.readouterr().err)
    state = read_file(finished)
    torch.save({name: value for name, value in state.items() if name != "build"}, tmp_path / "last.pt")
    assert detection.main(["--resume", str(tmp_path)]) == 2
    assert "classification" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_overwritten(finished, capsys):
    before = (finished / "last.pt").read_bytes()
    assert run("--output", finished) == 2 and str(finished) in capsys.readouterr().err
    assert (finished / "last.pt").read_bytes() == before


# --- what is printed ------------------------------------------------------------------------------------------------

def test_every_command_line_in_help_parses():
    text = re.sub(r"\\\n\s+", " ", detection.parser().format_help())
    lines = re.findall(r"(?:python|torchrun [^\n]*?) -m scnet_minimal\.lab\.detection (.*)", text)
    parsed = [detection.parser().parse_args(shlex.split(line)) for line in lines]
    assert len(parsed) >= 4
    big, = (args for args in parsed if args.workers == 32)
    assert (big.task, big.arch, big.pretrained, big.output, big.resume) == (
        "box", "scnet50", True, "runs/coco-box", "auto")
