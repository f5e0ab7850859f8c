"""Two processes on a CPU take the steps of one, count what one counts, and go on after one of them was killed."""
import csv
import os
import re
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
from scnet_minimal.lab import distributed
from scnet_minimal.lab import train_imagenet as command
from scnet_minimal.lab.checkpoint import read_checkpoint
from scnet_minimal.lab.data import load_data
from scnet_minimal.lab.engine import evaluate, fit

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform != "linux", reason="needs gloo and /proc")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(squares, tmp_path_factory):
    """9 pictures of each class to validate on, but for one: 17 cannot be shared evenly."""
    root = squares(tmp_path_factory.mktemp("data") / "squares", 20, val=9)
    (root / "val/red/08.png").unlink()
    return root


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def one_run(folder, epochs, shard=(0, 1), memory_limit=2**30):
    """Group norm, so that a share of the batch is all a picture needs; weights, what each epoch gave, evaluation."""
    data = load_data(folder, size=16, batch_size=16, device="cpu", shard=shard, memory_limit=memory_limit, workers=0)
    torch.manual_seed(shard[0])             # the first process's weights must win
    model = SCNet((1, 1, 1, 1), 2, widths=(4, 8, 8, 8), norm_layer=partial(nn.GroupNorm, 1))
    history = fit(model, data, epochs=epochs, recipe="paper", lr=0.05, quiet=True)
    return [p.detach().clone() for p in model.parameters()], history, evaluate(model, data.val)


def two_processes(rank, port, folder, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    found = [one_run(folder, 1, (rank, 2)), one_run(folder, 2, (rank, 2), memory_limit=0)]
    seed = distributed.from_first(lambda: 7 + rank)
    try:
        distributed.from_first(lambda: 1 / rank)
        failed = None
    except (ZeroDivisionError, SystemExit) as error:
        failed = f"{type(error).__name__} {error}"
    torch.save([[(w, [tuple(e) for e in h], e) for w, h, e in found], seed, failed], f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(folder, tmp_path_factory):
    """What each of two processes found."""
    path = tmp_path_factory.mktemp("found")
    torch.multiprocessing.spawn(two_processes, (free_port(), folder, path), nprocs=2)
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("number, epochs, memory_limit", [(0, 1, 2**30), (1, 2, 0)], ids=["in memory", "streamed"])
def test_two_processes_take_the_steps_of_one(folder, together, number, epochs, memory_limit):
    weights, history, _ = one_run(folder, epochs, memory_limit=memory_limit)
    for runs, *_ in together:
        theirs, their_history, _ = runs[number]
        for a, b in zip(weights, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        for epoch, other in zip(history, their_history, strict=True):
            assert other[1] == pytest.approx(epoch.train_loss, rel=1e-4) and other[2] == epoch.train_top1


def test_evaluation_counts_every_picture_once(folder, together):
    _, _, alone = one_run(folder, 1)
    for runs, *_ in together:
        found = runs[0][2]
        assert found["top1"] * 17 == pytest.approx(alone["top1"] * 17, abs=1e-9)            # to the picture
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_all_processes_hear_what_the_first_found_or_that_it_failed(together):
    assert [seed for _, seed, _ in together] == [7, 7]
    assert [failed.split()[0] for *_, failed in together] == ["ZeroDivisionError", "SystemExit"]


def test_alone_nothing_needs_a_group():
    assert (distributed.rank(), distributed.world(), distributed.is_first()) == (0, 1, True)
    model = nn.Linear(2, 2)
    assert distributed.parallel(model, torch.device("cpu")) is model
    assert distributed.total(torch.ones(2)).tolist() == [1, 1] and distributed.from_first(lambda: 3) == 3


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


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


def test_a_killed_worker_starts_again_from_the_checkpoint_and_finishes(folder, tmp_path):
    output = tmp_path / "x"
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                            "--max-restarts", "2", "-m", "scnet_minimal.lab.train_imagenet",
                            *arguments(folder, output, "--epochs", "8", "--resume", "auto")],
                           env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.time() + 240
        while not (output / "last.pt").exists():
            assert run.poll() is None and time.time() < deadline, run.communicate()[1][-2000:]
            time.sleep(0.02)
        os.kill(workers_of(run.pid)[1], signal.SIGKILL)
        out, err = run.communicate(timeout=240)
    finally:
        run.kill()
    assert run.returncode == 0, err[-2000:]
    assert re.search(r"going on at epoch \d+, step 0", out)                 # it did start again, from the checkpoint
    assert read_checkpoint(output)["epoch"] == 8
    assert [int(row["epoch"]) for row in csv.DictReader((output / "history.csv").open())] == list(range(8))


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
                              str(rank)], env={**environment(), "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for rank in range(2)]
    found = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], found
    numbers = re.compile(r"17 pictures .*top-1 error ([\d.]+)%, top-5 error ([\d.]+)%")
    assert numbers.search(found[0][0]).groups() == numbers.search(alone).groups()
    assert found[1][0] == ""                                                # only the first process speaks
