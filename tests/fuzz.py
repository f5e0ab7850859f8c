"""Random mistakes at every entrance: python tests/fuzz.py MINUTES [SEED [ENTRANCE]].  Not part of the suite.

Takes what is right (a command line, a COCO file, parquet tables, a folder of images, a checkpoint, a weights file, a
notebook, an output path), spoils it at random, and runs the command on it in a fork of this process, which has torch
loaded already.  Fine is exit code 0, or code 2 with a message of one or two lines; anything else (a traceback, a
signal, more than LIMIT seconds) is printed with its seed, and python tests/fuzz.py SEED: [ENTRANCE] repeats that try.
"""
# ruff: noqa: E402, E701
import contextlib
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from coco_folder import write_coco_folder
from PIL import Image

from scnet_minimal.lab import benchmark, coursework, detection, train_imagenet, walkthrough
from scnet_minimal.lab.command_line import exit_at_once_on_signals
from scnet_minimal.lab.study import __main__ as study
from scnet_minimal.lab.train import checkpoint

LIMIT = 60                  # seconds for one try; a small training takes one
NASTY = [0, 1, -1, 2, 0.5, -0.1, 1e300, -1e300, float("nan"), float("inf"), 10**25, 2**31, 2**63, True, None, "", " ",
         "x", "0", "-1", "nan", "\0", "é" * 3, "a" * 300, "/", "/dev/zero", "/proc/x", "..", "~x", [], {}, [1],
         {"x": 1}]


# --- what is right ----------------------------------------------------------------------------------------------------

def valid_inputs(root: Path) -> None:
    for split in ("train", "val"):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(8):
                colour = [40 + 9 * i] * 3
                colour[channel] = 200
                Image.new("RGB", (20, 20), tuple(colour)).save(root / "images" / split / name / f"{i}.png")
    write_coco_folder(root / "coco")
    (root / "tables").mkdir()
    for name in ("train", "validation"):
        pq.write_table(table(), root / "tables" / f"{name}.parquet")
    assert train_imagenet.main([*TRAIN(root), "--output", str(root / "run")]) == 0
    assert detection.main([*DETECT(root), "--output", str(root / "found")]) == 0
    (root / "notebooks").mkdir()
    cells = [nbformat.v4.new_markdown_cell("# 01 · Small\n\nWhy?"), nbformat.v4.new_code_cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "01_small.ipynb")


def table() -> pa.Table:
    png = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 9, 9)).save(png, "PNG")
    features = {"image": {"_type": "Image"}, "label": {"names": ["blue", "red"], "_type": "ClassLabel"}}
    columns = {"image": [{"bytes": png.getvalue(), "path": None}] * 8, "label": [0, 1] * 4}
    return pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})})


def TRAIN(root):
    return [str(root / "images"), "-a", "scnet_toy", "--recipe", "quick", "--crop", "16", "-b", "8", "--epochs", "1",
            "--seed", "0", "-j", "0", "-p", "1"]


def DETECT(root):
    return [str(root / "coco"), "-a", "scnet_toy", "--weights", "none", "--channels", "8", "--size", "32", "-b", "2",
            "--epochs", "1", "--seed", "0", "-j", "0", "--task", "mask"]


BENCH = ["--networks", "scnet_toy", "--batch", "1", "--size", "32", "--rounds", "2", "--only", "straightforward"]
FLAGS = {
    "train": ["--crop", "--epochs", "-b", "--lr", "--momentum", "--wd", "--label-smoothing", "--seed", "-j", "-p",
              "--start-epoch", "--gpu", "-a", "--recipe", "--resume", "--output", "--world-size", "--rank",
              "--dist-url", "--dist-timeout", "--dist-backend"],
    "detect": ["--size", "--epochs", "-b", "--lr", "--seed", "-j", "-p", "--channels", "--trainable", "--task", "-a",
               "--head", "--weights", "--export", "--output", "--resume", "--gpu", "--dist-url"],
    "bench": ["--networks", "--batch", "--size", "--rounds", "--only", "--device", "--threads", "--json"],
    "study": ["--seeds", "--blocks", "--pictures", "--jobs", "--threads", "--isa", "--out"],
}


# --- what spoils it ---------------------------------------------------------------------------------------------------

def spoil(value, rng: random.Random):
    """A structure of dicts, lists and values with one place changed, dropped or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        match rng.randrange(6):
            case 0: del value[key]
            case 1: value[key] = rng.choice(NASTY)
            case _: value[key] = spoil(value[key], rng)
        return value
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.9:
        value, i = list(value), rng.randrange(len(value))
        match rng.randrange(8):
            case 0: del value[i]
            case 1: value.append(value[i])
            case 2: value[i] = rng.choice(NASTY)
            case _: value[i] = spoil(value[i], rng)
        return value
    if isinstance(value, torch.Tensor):
        return rng.choice([lambda: value.flatten()[:0], lambda: value.flatten(), lambda: value.to(torch.int8),
                           lambda: value.to(torch.float8_e5m2) if value.is_floating_point() else value.bool(),
                           lambda: value.to_sparse() if value.ndim else value, lambda: value * float("nan"),
                           lambda: value.unsqueeze(0), lambda: rng.choice(NASTY)])()
    return rng.choice(NASTY)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return rng.choice([b"", b"<html>", b"\0" * 99, content[:at], content[at:], content[:at] + rng.randbytes(3)
                       + content[at + 3:], content + content, content[:at] + b"9" + content[at:]])


def spoil_file(path: Path, rng: random.Random) -> None:
    """The file replaced by something else."""
    match rng.randrange(7):
        case 0: path.unlink()
        case 1: path.unlink(), path.mkdir()
        case 2: path.unlink(), os.mkfifo(path)
        case 3: path.unlink(), path.symlink_to(path)
        case 4: path.unlink(), path.symlink_to("/dev/zero")
        case _: path.write_bytes(spoil_bytes(path.read_bytes(), rng))


def spoil_flags(argv: list[str], flags: list[str], rng: random.Random) -> list[str]:
    for flag in rng.sample(flags, rng.choice([1, 1, 1, 2])):
        value = str(rng.choice([*NASTY, rng.randint(-9, 99), 10 ** rng.uniform(-40, 40)])).replace("\0", "")
        argv = [*argv, flag, *([value] if rng.random() < 0.95 else [])]
    return argv


def rarely(argv: list[str]) -> bool:
    """A command line that is right and would run for ever: many epochs, huge networks, waiting for machines."""
    long = {"--epochs", "--rounds", "--seeds", "--pictures", "--size", "--crop", "--batch", "--channels", "--jobs",
            "--threads", "-j"}

    def big(text):
        try:
            return float(text) > 40
        except ValueError:
            return False
    return any(flag in long and big(value) for flag, value in zip(argv, argv[1:])) or ("--world-size" in argv)


# --- the entrances: functions of (folder of valid inputs, rng) that return (command, argv) ----------------------------

def train_flags(root, rng):
    return train_imagenet, spoil_flags([*TRAIN(root), "--output", str(root / "new")], FLAGS["train"], rng)


def detect_flags(root, rng):
    return detection, spoil_flags([*DETECT(root), "--output", str(root / "new")], FLAGS["detect"], rng)


def bench_flags(root, rng):
    return benchmark, spoil_flags([*BENCH, "--json", str(root / "new" / "x.json")], FLAGS["bench"], rng)


def study_flags(root, rng):
    return study, ["dots", "--table", *spoil_flags([], FLAGS["study"], rng)]


def environment(root, rng):
    for name in rng.sample(["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"], 3):
        os.environ[name] = rng.choice(["", "x", "-1", "0", "1", "2", "1.5", "9" * 30, "nan"])
    return train_imagenet, [*TRAIN(root), "--output", str(root / "new"), "--dist-timeout", "1"]


def coco(root, rng):
    task = rng.choice(["box", "mask", "segment", "keypoint", "mask+keypoint"])
    split = rng.choice(["train", "val"])
    path = root / "coco" / "annotations" / f"{'person_keypoints' if 'key' in task else 'instances'}_{split}2017.json"
    if rng.random() < 0.8:
        content = json.loads(path.read_text())
        for _ in range(rng.choice([1, 1, 2])):
            content = spoil(content, rng)
        path.write_text(json.dumps(content))
    else:
        images = root / "coco" / f"{split}2017"
        spoil_file(rng.choice([path, images / "1.jpg", images / "2.jpg"]), rng)
    return detection, [*DETECT(root)[:-1], task, "--output", str(root / "new"), "-j", rng.choice(["0", "0", "1"])]


def parquet(root, rng):
    path = root / "tables" / rng.choice(["train.parquet", "validation.parquet"])
    whole, kind = table(), rng.randrange(5)
    if kind == 0:
        spoil_file(path, rng)
    else:
        columns, meta = whole.to_pydict(), json.loads(whole.schema.metadata[b"huggingface"])
        if kind == 1:
            meta = spoil(meta, rng)
        elif kind == 2:
            columns["label"] = [rng.choice([0, 1, -1, 2, None, 10**9]) for _ in columns["label"]]
        elif kind == 3:
            columns = {name: values[:rng.choice([0, 1, 7])] for name, values in columns.items()}
        else:
            columns[rng.choice(["image", "label"])] = [rng.choice([None, 3])] * 8
        try:
            spoilt = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(meta)})
        except (pa.ArrowException, TypeError):
            spoilt = whole
        pq.write_table(spoilt, path)
    return train_imagenet, [str(root / "tables"), *TRAIN(root)[1:], "--output", str(root / "new")]


def images(root, rng):
    for _ in range(rng.choice([1, 2, 9])):
        files = sorted(p for p in (root / "images").rglob("*") if p.is_file())
        folders = sorted(p for p in (root / "images").rglob("*") if p.is_dir())
        match rng.randrange(4):
            case 0: shutil.rmtree(rng.choice([f for f in folders if not f.is_symlink()]))
            case 1: (rng.choice(folders) / f"link{rng.randrange(10**6)}.png").symlink_to(rng.choice(folders))
            case 2: os.mkfifo(rng.choice(folders) / f"x{rng.randrange(10**6)}.jpg")
            case _: spoil_file(rng.choice(files), rng)
        if not any(p.is_file() for p in (root / "images").rglob("*")):
            break
    return train_imagenet, [*TRAIN(root), "--output", str(root / "new"), "-j", rng.choice(["0", "1"])]


def checkpoints(root, rng):
    command, run, argv = rng.choice([(train_imagenet, "run", []), (detection, "found", [])])
    path = root / run / rng.choice(["last.pt", "last.pt", "best.pt"])
    if rng.random() < 0.8:
        content = torch.load(path, weights_only=True)
        for _ in range(rng.choice([1, 1, 2])):
            content = spoil(content, rng)
        torch.save(content, path)
    else:
        spoil_file(path, rng)
    where = str(rng.choice([path, path.parent]))
    how = rng.choice([["--resume", where, "--epochs", "2"], ["-e", "--resume", where]])
    return command, [*argv, *how, "-j", "0"]


def weights(root, rng):
    path = root / "run" / "best.pt"
    content = torch.load(path, weights_only=True)["state_dict"]
    if rng.random() < 0.7:
        torch.save(spoil({"state_dict": content} if rng.random() < 0.3 else content, rng), path)
    else:
        spoil_file(path, rng)
    return detection, [*DETECT(root), "--weights", str(path), "--output", str(root / "new")]


def notebooks(root, rng):
    path = root / "notebooks" / "01_small.ipynb"
    if rng.random() < 0.7:
        path.write_text(json.dumps(spoil(json.loads(path.read_text()), rng)))
    else:
        spoil_file(path, rng)
    if rng.random() < 0.5:
        return walkthrough, [rng.choice(["02", "x", "-1"]), "--notebooks", str(root / "notebooks")]
    (root / "in" / "ada").mkdir(parents=True)
    return coursework, ["grade", str(root / "in"), "--notebooks", str(root / "notebooks"), "--out", str(root / "g.csv")]


def places(root, rng):
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    place = rng.choice([root / "file", root / "file" / "x", root / "fifo", root / "run" / "best.pt", root / ("x" * 300),
                        "/proc/x/y", "/dev/null", "/dev/full", "/", "", " ", root / "images", "~nobody/x"])
    command, argv = rng.choice([
        (train_imagenet, [*TRAIN(root), "--output"]), (detection, [*DETECT(root), "--output"]),
        (detection, [*DETECT(root), "--output", str(root / "new"), "--export"]), (benchmark, [*BENCH, "--json"]),
        (coursework, ["make"]), (walkthrough, ["99", "--out"]), (study, ["explore", "--out"]),
        (study, ["dots", "--table", "--out"])])
    return command, [*argv, str(place)]


def stops(root, rng):
    """Ctrl-C and SIGTERM, any number at any interval: see interrupt()."""
    command, argv = rng.choice([(train_imagenet, TRAIN(root)), (detection, DETECT(root))])
    exit_at_once_on_signals()
    return command, [*argv, "--output", str(root / "new"), "--epochs", "40", "-j", rng.choice(["0", "1"])]


ENTRANCES = [stops, train_flags, detect_flags, bench_flags, study_flags, environment, coco, parquet, images,
             checkpoints, weights, notebooks, places]


# --- the tries --------------------------------------------------------------------------------------------------------

def attempt(valid: Path, seed: int, only: str = "") -> tuple[str, str]:
    """(entrance, "" or what went wrong)."""
    rng = random.Random(seed)
    entrance = rng.choice([one for one in ENTRANCES if one.__name__ == only] or ENTRANCES)
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        root, log = Path(folder, "x"), Path(folder, "log")
        shutil.copytree(valid, root)
        if (pid := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                os.chdir(root)
                os.dup2(os.open(log, os.O_RDWR | os.O_CREAT), 1)
                os.dup2(1, 2)
                sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
                command, argv = entrance(root, rng)
                print("ARGV", argv)
                if not rarely(argv):
                    code = command.main(argv)
                else:
                    command.parser()
                    code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if entrance is stops:
            interrupt(pid, log, rng)
        code, lasted = wait_for(pid)
        said = log.read_text(errors="replace") if log.exists() else ""
        whole = not (root / "new" / "last.pt").exists() or bool(checkpoint.read_checkpoint(root / "new"))
    error = said[said.find("\nerror: ") + 1:] if "\nerror: " in said else ""
    fine = code == 0 or code == 2 and error and error.strip().count("\n") <= 2 and len(error) < 1500
    if entrance is stops:
        fine = code == 130 and whole
    if fine and "Traceback" not in said:
        return entrance.__name__, ""
    return entrance.__name__, f"exit {code} after {lasted:.0f} s\n{said[:300]}\n...\n{said[-1500:]}"


def interrupt(pid: int, log: Path, rng: random.Random) -> None:
    """Once it trains: one to five signals, to the process or to all of its session as a terminal does."""
    end = time.monotonic() + LIMIT / 2
    while not (log.exists() and " -> " in log.read_text(errors="replace")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(rng.choice([0, 0.01, 0.3, 2]) * rng.random())
    for _ in range(rng.choice([1, 2, 2, 2, 3, 5])):
        with contextlib.suppress(ProcessLookupError):
            send, number = rng.choice([(os.kill, signal.SIGINT), (os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
            send(pid, number)
        time.sleep(rng.choice([0, 0.001, 0.02, 0.5]) * rng.random())


def wait_for(pid: int) -> tuple[int, float]:
    start, handle = time.monotonic(), os.pidfd_open(pid)
    try:
        ended = select.select([handle], [], [], LIMIT)[0]
    finally:
        os.close(handle)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return (os.waitstatus_to_exitcode(status) if ended else -999), time.monotonic() - start


def main(argv: list[str]) -> int:
    torch.set_num_threads(1)
    checkpoint.history_png = lambda history, score: b""             # takes longer than an epoch here
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if (pid := os.fork()) == 0:                                 # no thread pool of torch's before the forks
            valid_inputs(Path(folder, "valid"))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        if argv[0].endswith(":"):
            print(*attempt(Path(folder, "valid"), int(argv[0][:-1]), "".join(argv[1:])))
            return 0
        end, seed = time.monotonic() + 60 * float(argv[0]), int(argv[1]) if len(argv) > 1 else time.time_ns() % 10**9
        tried, wrong, first = Counter(), Counter(), seed
        while time.monotonic() < end:
            entrance, trouble = attempt(Path(folder, "valid"), seed, "".join(argv[2:]))
            tried[entrance] += 1
            if trouble:
                wrong[entrance] += 1
                print(f"--- seed {seed}, {entrance}: {trouble}\n", flush=True)
            seed += 1
            if sum(tried.values()) % 100 == 0:
                print(f"=== {sum(tried.values())} tries from seed {first}, {sum(wrong.values())} wrong", flush=True)
        print(f"seeds {first} to {seed - 1}: {dict(tried)}\nwrong: {dict(wrong)}")
        return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
