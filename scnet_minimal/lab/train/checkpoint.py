"""A run's folder: atomic checkpoints, and the history as a table and as a figure.

    keeper = Keeper("runs/x", {"arch": "scnet50", "classes": names})
    keeper.open()
    keeper.epoch(state)                 # last.pt, history.csv, curve.png, and best.pt if the epoch was the best
    state = read_checkpoint("runs/x")   # the state to resume from

last.pt holds all that resuming takes; best.pt the weights of the best epoch and what they are, without the optimizer:
a file to pass on, which load_weights() reads too.
"""
import contextlib
import csv
import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..checks import RECORD, TEXT, TEXTS, Number, Rule, check_fields, is_number, shown
from ..command_line import leave_to_parent
from ..errors import FileError, MissingFileError, UserError
from .processes import is_first, under_torchrun

COUNT = Number(int, 0, 10**12)
NUMBERS = Rule(lambda value: isinstance(value, dict) and all(map(is_number, value.values())), "numbers by name")
TENSORS = Rule(lambda value: isinstance(value, dict) and all(isinstance(t, torch.Tensor) for t in value.values()),
               "tensors by name")
RESUMABLE = {                                           # what a last.pt holds; a file without the first five is none
    "state_dict": TENSORS, "optimizer": RECORD, "epoch": COUNT, "step": COUNT,
    "history": Rule(lambda value: isinstance(value, list) and all(map(NUMBERS.holds, value)) and all(
        row.keys() == value[0].keys() for row in value) and all(COUNT.holds(row.get("epoch")) for row in value),
        "a list of rows, each with an epoch"),
    "steps": Number(int, 1, 10**12), "sums": NUMBERS, "scaler": RECORD,
    "random": Rule(lambda value: TENSORS.holds(value) and "cpu" in value, "the states of generators, by device")}
DESCRIBED = {"arch": TEXT._replace(optional=True), "classes": TEXTS._replace(optional=True),
             "arguments": RECORD._replace(optional=True)}   # what any checkpoint may hold besides


class Interrupts:
    """While active, the first Ctrl-C or SIGTERM raises KeyboardInterrupt, but never within `with interrupts.held():`,
    only after it: a step of training or a file is finished first.

    A second one does what it did before this was active: ends a command, raises KeyboardInterrupt in a notebook.
    Under torchrun only the first one counts, because torchrun passes on to its processes what they have received
    already.
    """

    def __init__(self) -> None:
        self.count = self.depth = 0     # signals so far; held() within held()
        self.pending = False

    def __enter__(self) -> "Interrupts":
        self.owner, self.before, self.count, self.pending = os.getpid(), {}, 0, False
        if threading.current_thread() is threading.main_thread():      # elsewhere Python allows no handlers
            self.before = {s: signal.signal(s, self._arrive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _arrive(self, number: int, frame: Any) -> None:
        if os.getpid() != self.owner:
            return leave_to_parent(number)
        if self.count and under_torchrun():
            return
        self.count += 1
        if self.count > 1:
            signal.signal(number, self.before[number])
            signal.raise_signal(number)
        self.pending = True             # also if it is raised now: a __del__ would swallow it
        if not self.depth:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:        # also after an error: that other processes have left already is no news then
            self.depth -= 1
            if self.pending and not self.depth:
                self.pending = False
                raise KeyboardInterrupt


# --- writing --------------------------------------------------------------------------------------------------------

def write_file(path: Path, content: bytes | memoryview) -> None:
    """The whole file or, whatever happens, the one that was there before: temporary name, fsync, rename.

    FileError names the file and the reason.
    """
    scratch = path.with_name(f".{path.name}.part")      # in the same folder: a rename never crosses file systems
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())                     # or the new name could reach the disk before its content
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        left = "; the earlier file is intact" if path.exists() else ""
        raise FileError(f"{path} could not be written: {error.strerror or error}{left}.") from error


def write_torch(path: Path, state: dict) -> None:
    """torch.save with write_file's guarantee; tensors as CPU tensors, so that any machine can load the file."""
    buffer = io.BytesIO()       # torch.save to a file hides the reason of a failure; a full disk is an OSError here
    torch.save(_on_cpu(state), buffer)
    write_file(path, buffer.getbuffer())


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


class Keeper:
    """Writes a run's folder.  `about` goes into every checkpoint: what the network is and how it was made.

    score names the entry of an epoch's row that is best when it is largest.  With several processes the first one
    writes.  FileError, naming the file, if something cannot be written.
    """

    def __init__(self, folder: str | Path, about: dict, score: str = "val_top1") -> None:
        self.folder, self.about, self.score = Path(folder), about, score

    def open(self) -> None:
        """Make the folder, and args.json in it, so that a run fails here rather than after its first epoch.  Removes
        what a killed run has left unfinished."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*.part"):           # a run that was killed while it wrote
                stale.unlink()
        except OSError as error:
            raise FileError(f"The folder {self.folder} cannot be made ({error.strerror}): name another.") from error
        write_file(self.folder / "args.json", json.dumps(self.about, indent=1).encode() + b"\n")

    def save(self, state: dict) -> None:
        """last.pt: the state after any step."""
        if is_first():
            write_torch(self.folder / "last.pt", {**self.about, **state, "best": self._best(state["history"])})

    def epoch(self, state: dict) -> bool:
        """All files after an epoch; whether it was the best so far.  last.pt comes last: it stands for the rest."""
        if not is_first():
            return False
        *earlier, row = state["history"]
        is_best = not earlier or row[self.score] > self._best(earlier)
        if is_best:
            write_torch(self.folder / "best.pt", {**self.about, "state_dict": state["state_dict"], **row})
        write_file(self.folder / "history.csv", history_csv(state["history"]))
        write_file(self.folder / "curve.png", history_png(state["history"], self.score))
        self.save(state)
        return is_best

    def _best(self, history: list[dict]) -> float | None:
        return max((row[self.score] for row in history), default=None)


def history_csv(history: list[dict]) -> bytes:
    """Rows as CSV, the names of the last row on top; numbers in full, so that nothing is lost."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(history[-1]), restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def history_png(history: list[dict], score: str) -> bytes:
    """A PNG: losses on the left, shares (top-1, average precision) on the right, over epochs counted from 1."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(9, 3), dpi=110)
    losses, shares = figure.subplots(1, 2, gridspec_kw=dict(left=0.07, right=0.98, bottom=0.17, top=0.95, wspace=0.2))
    kind = score.split("_", 1)[-1]              # val_top1 -> train_top1 beside it
    for ax, ending, factor in ((losses, "loss", 1), (shares, kind, 100)):
        for name, colour in ((f"train_{ending}", "#8C8C8C"), (f"val_{ending}", "#0072B2")):
            if all(name in row for row in history):
                ax.plot([row["epoch"] + 1 for row in history], [factor * row[name] for row in history], ".-",
                        color=colour, label=name.split("_")[0])
        ax.set(xlabel="epoch", ylabel=ending if factor == 1 else f"{ending}, %")
        ax.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


# --- reading --------------------------------------------------------------------------------------------------------

def read_file(path: str | Path) -> dict:
    """What torch.save wrote, tensors and plain values only (nothing in it is executed), on the CPU.

    A folder stands for its last.pt.  UserError says what the file is instead.
    """
    path = Path(os.path.expanduser(path))
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                          # noqa: BLE001  a damaged file may raise nearly anything
        if "weights_only" in str(error):
            raise UserError(f"{path} is no checkpoint of this command: it holds more than tensors and numbers, "
                            "or is no torch file. Nothing in it was executed.") from None
        raise UserError(f"{path} is truncated, damaged or no checkpoint: use an older copy, or start a new run."
                        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no checkpoint: it holds a {type(content).__name__}.")
    check_fields(content, {name: rule for name, rule in DESCRIBED.items() if name in content}, f"{path}")
    return content


def read_checkpoint(path: str | Path, arch: str | None = None, classes: list[str] | None = None) -> dict:
    """The state to resume from, checked against the network and the classes that are asked for.

    Raises as read_file() does, and UserError if the file is no last.pt, or of another network or other classes.
    """
    state = read_file(path)
    if not set(list(RESUMABLE)[:5]) <= state.keys():
        what = "weights alone, for use" if "state_dict" in state else f"{', '.join(map(str, state))[:80] or 'nothing'}"
        raise UserError(f"{path} cannot be resumed: it holds {what}. Name the run's last.pt.")
    check_fields(state, RESUMABLE, f"{path}", hint=" It is damaged, or of another version: use an older copy.")
    if state["step"] and not (state["step"] <= state["steps"] and {"loss", "seconds"} <= state["sums"].keys()
                              and max(state["sums"].get("images", 0), state["sums"].get("pictures", 0)) > 0):
        raise UserError(f"{path} says step {state['step']} of {state['steps']}, and does not say what came before.")
    if arch and state.get("arch") != arch:
        raise UserError(f"{path} is a run of {state.get('arch')}, not of {arch}: resume with -a {state.get('arch')}, "
                        "or start a new run in another folder.")
    if classes:
        check_classes(state, classes, path)
    return state


def check_classes(state: dict, classes: list[str], path: str | Path) -> None:
    """UserError if a checkpoint's classes are not those of the data."""
    theirs = state.get("classes") or classes
    if len(theirs) != len(classes):
        raise UserError(f"{path} was trained on {len(theirs)} classes and the data has {len(classes)}: "
                        "use its own data, or start a new run in another folder.")
    if theirs != classes:
        one, other = next(pair for pair in zip(theirs, classes) if pair[0] != pair[1])
        raise UserError(f"{path} was trained on other classes: its {one} is the data's {other}.")


def load_exactly(model: torch.nn.Module, content: dict, path: str | Path) -> None:
    """The weights of a checkpoint, or of a plain state dict, into a network that they fit exactly; else UserError."""
    state, own = content.get("state_dict", content), model.state_dict()
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state dict, but {shown(state)}.")
    shapes, needed = ({name: getattr(t, "shape", None) for name, t in d.items()} for d in (state, own))
    if wrong := [name for name in needed | shapes if shapes.get(name) != needed.get(name)]:
        raise UserError(f"{path} does not fit this network: {len(wrong)} of {len(own)} entries differ, {wrong[0]} "
                        "first. Is it of another -a, or made for other classes?")
    for name, t in state.items():
        check_tensor(t, own[name], f"{path} holds {name}")
    model.load_state_dict(state)


def check_tensor(t: Any, like: torch.Tensor, what: str) -> None:
    """UserError unless it is a dense, finite tensor of the shape of another, floating where that is."""
    plain = isinstance(t, torch.Tensor) and t.layout == torch.strided and not (t.is_meta or t.is_quantized)
    if not plain or t.shape != like.shape or like.is_floating_point() and t.dtype not in (
            torch.float16, torch.bfloat16, torch.float32, torch.float64):
        kind = f"{t.dtype}, {t.layout}, {tuple(t.shape)}" if isinstance(t, torch.Tensor) else shown(t)
        raise UserError(f"{what} as {kind}: expected a dense tensor of {like.dtype}, {tuple(like.shape)}.")
    if t.is_floating_point() and not t.isfinite().all():
        raise UserError(f"{what} with values that are not finite.")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The momentum of a checkpoint; learning rates and other options stay this run's.  UserError if it does not fit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    moments = state.get("state")
    if not isinstance(moments, dict) or not moments.keys() <= set(range(len(parameters))):
        raise UserError("The optimizer of the checkpoint is not one for this network.")
    for i, values in moments.items():
        check_fields(values, {}, f"The optimizer of the checkpoint, parameter {i},")
        for name, t in values.items():
            if t is not None and not (name == "step" and is_number(float(t))):
                check_tensor(t, parameters[i].detach(), f"The optimizer of the checkpoint has {name} of parameter {i}")
    try:
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The optimizer of the checkpoint is not one for this network: {shown(str(error))}") from error
    for group, values in zip(optimizer.param_groups, own):
        group.update(values)
