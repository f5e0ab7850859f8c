"""Processes on a CPU take the steps of one, count what one counts, stop together, and resume where they stopped."""
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from scnet_minimal import SCNet
from scnet_minimal.lab import train_imagenet as command
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.errors import UserError
from scnet_minimal.lab.train import Trainer, checkpoint, classify, evaluate, fit, processes
from scnet_minimal.lab.train.checkpoint import Keeper, read_checkpoint
from scnet_minimal.lab.train.processes import Place
from scnet_minimal.lab.zoo import create_model

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs gloo and /proc")
ROOT = Path(__file__).parents[1]
EVERYTHING = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5")


@pytest.fixture(scope="module")
def folder(squares, tmp_path_factory):
    """3 steps of 16 an epoch; 9 images of each class to validate on, but for one: 17 cannot be shared evenly."""
    root = squares(tmp_path_factory.mktemp("data") / "squares", 20, val=9)
    (root / "val/red/08.png").unlink()
    return root


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def group_norm(channels):
    """Of one image alone: how a batch is shared does not matter."""
    return nn.GroupNorm(1, channels)


def one_run(folder, epochs, shard=(0, 1), memory_limit=2**30, norm=group_norm, **options):
    """Weights, history, evaluation."""
    data = load_data(folder, size=16, batch_size=16, device="cpu", shard=shard, memory_limit=memory_limit, workers=0)
    torch.manual_seed(shard[0])             # the first process's weights must win
    model = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8), norm_layer=norm)
    history = fit(model, data, epochs=epochs, recipe="paper", lr=0.05, quiet=True, **options)
    return model.state_dict(), [[row[name] for name in EVERYTHING] for row in history], evaluate(model, data.val)


# --- what each of two processes does ------------------------------------------------------------------------------

# Where a run of two epochs of three steps is stopped, and where it must resume: in a step of one process alone or of
# all, while they evaluate, and by an error while they evaluate, which is what those see who wait for a lost one.
POINTS = [("step", 0, (0, 1)), ("step", 1, (0, 2)), ("step", 2, (0, 3)), ("step", 3, (1, 1)), ("step", 4, (1, 2)),
          ("step", 5, (1, 3)), ("steps", 3, (1, 1)), ("evaluation", 0, (0, 3)), ("evaluation", 1, (1, 3)),
          ("error", 0, (0, 3))]


class LostError(RuntimeError):
    """Stands for gloo's, when another process has gone."""


def norm_for(world):
    """With four processes gradients are added in an order that depends on how they were packed, which is not the same
    after resuming; and batch norm over the four images of each would blow this rounding up."""
    return nn.BatchNorm2d if world == 2 else group_norm


def stopped_and_resumed(folder, path, shard, where, number):
    """Where the checkpoint of a run stands that is stopped at a point, and what the resumed run finds."""
    path.mkdir(exist_ok=True)
    run = partial(one_run, folder, 2, shard, norm=norm_for(shard[1]), keeper=Keeper(path, {"arch": "small"}))
    step, whole, count = Trainer._train_step, classify.evaluate, iter(range(100))

    def interrupted_step(self, batch):
        if next(count) == number and where in ("steps", ["step", ""][shard[0] != number % shard[1]]):
            signal.raise_signal(signal.SIGTERM if where == "steps" else signal.SIGINT)
        step(self, batch)

    def interrupted_evaluation(*args, **kwargs):
        if next(count) == number:
            if where == "error":
                raise LostError
            signal.raise_signal(signal.SIGINT)
        return whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if where.startswith("step"):
            patch.setattr(Trainer, "_train_step", interrupted_step)
        else:
            patch.setattr(classify, "evaluate", interrupted_evaluation)
        with pytest.raises(LostError if where == "error" else KeyboardInterrupt):
            run()
    processes.wait()
    state = read_checkpoint(path)
    return (state["epoch"], state["step"]), run(resume=state)


def many_stops(rank, world, port, folder, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "history_png", lambda history, score: b"")
        found = [one_run(folder, 2, (rank, world), norm=norm_for(world))]
        found += [stopped_and_resumed(folder, path / str(i), (rank, world), where, number)
                  for i, (where, number, _) in enumerate(POINTS)]
    torch.save(found, path / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_processes_stop_together_at_any_point_and_resume_as_if_nothing_had_happened(folder, tmp_path, world):
    """To the bit with two, but for rounding with four."""
    close = dict(rtol=0, atol=0) if world == 2 else dict(rtol=1e-3, atol=1e-4)
    torch.multiprocessing.spawn(many_stops, (world, free_port(), folder, tmp_path), nprocs=world)
    for rank in range(world):
        (straight, straight_history, _), *stops = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for (*point, position), (stopped_at, (weights, history, _)) in zip(POINTS, stops, strict=True):
            assert stopped_at == position, point
            torch.testing.assert_close(weights, straight, **close, msg=lambda text, point=point: f"{point}: {text}")
            assert history == [pytest.approx(row, rel=1e-6 if world == 2 else 1e-3) for row in straight_history], point


def failure(make):
    try:
        make()
    except (ZeroDivisionError, SystemExit) as error:
        return type(error).__name__


def fetched_in_turn(folder, path, place):
    """train_imagenet --pretrained: whether the file was there already when this process asked for it."""
    there = []

    def network(arch, classes, pretrained):
        there.append((path / "cache").exists())
        time.sleep(0.3)
        (path / "cache").touch()
        return create_model(arch, classes)

    argv = [str(folder), "-a", "scnet_toy", "--recipe", "quick", "--crop", "16", "-b", "16", "--epochs", "1", "-j", "0",
            "--pretrained", "--output", str(path / "pretrained")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "new_network", network)
        patch.setattr(command, "start", lambda parser, work, argv: parser.parse_args(argv))
        args = command.main(argv)
        args.argv = argv
        assert command.work(args, torch.device("cpu"), place) == 0
    return there


def two_processes(rank, port, folder, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    shard, place = (rank, 2), Place(rank, 2, rank, 2)
    torch.save({
        "in memory": one_run(folder, 1, shard),
        "streamed": one_run(folder, 2, shard, memory_limit=0),
        "fetched": fetched_in_turn(folder, path, place),
        "first": processes.from_first(lambda: 7 + rank),
        "gathered": processes.gather(7 + rank),
        "failures": [failure(lambda: processes.from_first(lambda: 1 / rank)),
                     failure(lambda: processes.first_on_machine(lambda: 1 / rank, place))],
    }, path / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """What each of two processes found."""
    path = tmp_path_factory.mktemp("found")
    torch.multiprocessing.spawn(two_processes, (free_port(), folder, path), nprocs=2)
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("way, epochs, memory_limit", [("in memory", 1, 2**30), ("streamed", 2, 0)])
def test_two_processes_take_the_steps_of_one(folder, together, way, epochs, memory_limit):
    weights, history, alone = one_run(folder, epochs, memory_limit=memory_limit)
    for found in together:
        their_weights, their_history, evaluation = found[way]
        torch.testing.assert_close(weights, their_weights, rtol=1e-4, atol=1e-6)
        for row, theirs in zip(history, their_history, strict=True):
            assert theirs[2] == pytest.approx(row[2], rel=1e-4) and theirs[3] == row[3]     # train_loss, train_top1
        assert evaluation["top1"] * 17 == pytest.approx(alone["top1"] * 17, abs=1e-9)       # to the image
        assert evaluation["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.slow
def test_one_process_of_a_machine_downloads_weights_and_the_others_find_them(together):
    assert [found["fetched"] for found in together] == [[False], [True]]


@pytest.mark.slow
def test_all_processes_get_what_the_first_found_or_end_if_it_failed(together):
    assert [found["first"] for found in together] == [7, 7]
    assert [found["gathered"] for found in together] == [[7, 8], [7, 8]]
    assert [found["failures"] for found in together] == [["ZeroDivisionError"] * 2, ["SystemExit"] * 2]


def test_alone_nothing_needs_a_group():
    assert (processes.rank(), processes.world_size(), processes.is_first()) == (0, 1, True)
    model = nn.Linear(2, 2)
    assert processes.data_parallel(model, torch.device("cpu")) is model
    assert processes.all_sum(torch.ones(2)).tolist() == [1, 1] and processes.from_first(lambda: 3) == 3
    assert processes.gather(3) == [3] and processes.first_on_machine(lambda: 3, Place()) == 3


def test_several_processes_share_the_norms_of_gpus_alone():
    with pytest.raises(UserError, match="--sync-bn"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "is_distributed", lambda: True)
        processes.data_parallel(nn.Linear(2, 2), torch.device("cpu"), sync_norms=True)


def test_batch_size_and_workers_count_for_one_machine():
    place = Place(rank=9, world=16, local_rank=1, local_world=8)
    assert place.total_batch(256) == 512 and place.own_workers(20) == 3 and place.shard == (9, 16)
    assert Place().total_batch(256) == 256 and Place().own_workers(4) == 4


# --- the command --------------------------------------------------------------------------------------------------

def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": ""}


def arguments(folder, output, *more):
    return [str(folder), "-a", "scnet_toy", "--recipe", "quick", "--crop", "16", "-b", "16", "--seed", "0", "-j", "0",
            "--output", str(output), *more]


def workers_of(launcher):
    """The processes that a torchrun has started: {rank: pid}."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            ranks = re.search(rb"\0RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
        except OSError:
            continue
        if ranks:
            found[int(ranks[1])] = int(pid)
    return found


@pytest.mark.slow
def test_under_torchrun_a_killed_worker_restarts_and_ctrl_c_prints_the_command_that_resumes(folder, tmp_path):
    output, log = tmp_path / "x y", tmp_path / "log"
    argv = arguments(folder, output, "--epochs", "200", "--resume", "auto", "--dist-backend", "gloo")
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                            "--max-restarts", "2", "-m", "scnet_minimal.lab.train_imagenet", *argv],
                           env=environment(), stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True)

    def wait_for(condition):
        deadline = time.time() + 240
        while not condition():
            assert run.poll() is None and time.time() < deadline, log.read_text()[-2000:]
            time.sleep(0.02)

    try:
        wait_for((output / "last.pt").exists)
        os.kill(workers_of(run.pid)[1], signal.SIGKILL)
        wait_for(lambda: re.search(r"resuming at epoch \d+, step \d\n(.*\n)*epoch", log.read_text()))
        os.killpg(run.pid, signal.SIGINT)               # as a terminal does: torchrun and its processes, each of them
        run.wait(timeout=240)
    finally:
        run.kill()
    words = shlex.split(re.search(r"\n  (torchrun .*)\n", log.read_text())[1])
    assert words[:6] == ["torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    assert words[6:8] == ["-m", command.MODULE]
    state = read_checkpoint(output)
    end = str(state["epoch"] + 1)
    again = subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:], "--epochs", end],
                           env=environment(), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"resuming at epoch {end}, step {state['step']}\n" in again.stdout
    assert [row["epoch"] for row in read_checkpoint(output)["history"]] == list(range(int(end)))


@pytest.mark.slow
def test_the_originals_flags_start_two_processes_that_count_what_one_counts(folder, tmp_path, capsys):
    output = tmp_path / "x"
    assert command.main(arguments(folder, output, "--epochs", "1")) == 0
    evaluation = [str(folder), "-e", "--resume", str(output / "best.pt"), "-j", "0", "-b", "8"]
    capsys.readouterr()
    assert command.main(evaluation) == 0
    alone = capsys.readouterr().out
    flags = ["--world-size", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}", "--dist-backend", "gloo",
             "--multiprocessing-distributed"]
    runs = [subprocess.Popen([sys.executable, "-m", "scnet_minimal.lab.train_imagenet", *evaluation, *flags, "--rank",
                              str(rank)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(2)]
    found = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], found
    numbers = re.compile(r" 17 .*top-1 error ([\d.]+)%, top-5 error ([\d.]+)%")
    assert numbers.search(found[0][0]).groups() == numbers.search(alone).groups()
    assert found[1][0] == ""                                                # only the first process prints
