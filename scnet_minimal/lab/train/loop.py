"""One training loop for every task: step, schedule, progress, evaluation, checkpoints.

    data = load_data("toynette", size=64)
    history = fit(model, data, epochs=12)               # a classifier, in one call
    logits, labels = predict(model, data.val)

The loop itself is Trainer. What it learns is a Task: the loss of a batch, and what to measure after each epoch. fit()
is the classifier's; another task brings its own two functions and gets progress, checkpoints and torchrun with them.
"""
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from . import distributed
from .checkpoint import Interrupts, Keeper
from .data import Batches, Data
from .pictures import seed_of


class Epoch(NamedTuple):
    """What one epoch gave.  Accuracies are shares, 0 to 1; train_top1 is counted on the way, on augmented pictures."""

    epoch: int
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float
    val_top5: float = math.nan


class Task(NamedTuple):
    """What is learned.

    loss(model, batch)  the batch's mean loss, its number of pictures, and further sums over it, by name, to be
                        averaged over the epoch's pictures
    evaluate(model)     what to measure after each epoch, by name, over all processes.  A *loss that is not finite
                        ends the run; the entry that a Keeper calls its score decides which epoch was best
    """

    loss: Callable[[nn.Module, Any], tuple[Tensor, int, dict[str, Tensor]]]
    evaluate: Callable[[nn.Module], dict[str, float]]


# --- precision and layout -------------------------------------------------------------------------------------------

def mixed_precision(device: torch.device, wanted: bool | None = None) -> torch.dtype | None:
    """The half precision to train in: bfloat16 on a CUDA device that has it natively, float16 on an older one.

    wanted: None takes it where it pays, on CUDA; True on the CPU too, as bfloat16; False nowhere.
    """
    if device.type == "cuda" and wanted is not False:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and wanted else None


def autocast(device: torch.device, wanted: bool | None = None) -> contextlib.AbstractContextManager:
    dtype = mixed_precision(device, wanted)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def memory_layout(device: torch.device) -> torch.memory_format:
    """Channels last is up to twice as fast on a CPU, and what CUDA's half-precision kernels want."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


# --- learning rates: functions of the epoch, a fraction within it, so that going on needs no state ------------------

def one_cycle(peak: float, epochs: int, rise: float = 0.25) -> Callable[[float], float]:
    """From peak / 25 up to the peak over the first quarter, then down to nearly 0, both along half a cosine.
    (Smith and Topin 2018, in the shape of torch's OneCycleLR.)"""
    def lr(epoch: float) -> float:
        part = epoch / epochs
        low, way = (peak / 25, 1 - part / rise) if part < rise else (peak / 250_000, (part - rise) / (1 - rise))
        return low + (peak - low) * (1 + math.cos(math.pi * way)) / 2
    return lr


def steps(peak: float, every: int = 30) -> Callable[[float], float]:
    """A tenth after every 30 epochs: ImageNet's classical schedule."""
    return lambda epoch: peak * 0.1 ** (epoch // every)


# --- the loop -------------------------------------------------------------------------------------------------------

class Trainer:
    """The loop: epochs of steps, each epoch judged and kept.  It can stop after any step and go on from there.

        trainer = Trainer(model, batches, task, optimizer, lr, epochs=20, keeper=Keeper("runs/x", {}))
        trainer.go_on(read_checkpoint("runs/x"))        # or not
        rows = trainer.run()                            # one dict for each epoch

    batches     iterable, with len() and set_epoch(epoch, start): the batches of an epoch from number `start` on, a
                function of these two alone, already on the device, this process's share where there are several
    lr          the learning rate at an epoch, a fraction within it: one_cycle(...), steps(...)
    amp         see mixed_precision
    keeper      where checkpoints and history go; None: nowhere
    print_freq  batches between two looks at the running loss (each makes a GPU wait for it)
    quiet       no progress bar; None: a bar on a terminal only
    on_epoch    called with each epoch's row and whether it was the best, in the first process

    Ctrl-C or SIGTERM finish the step, save, and raise KeyboardInterrupt (with a keeper; without, nothing is new).
    FloatingPointError, with the step and the reason, if the loss is not finite; nothing is saved then.
    """

    def __init__(self, model: nn.Module, batches: Any, task: Task, optimizer: torch.optim.Optimizer,
                 lr: Callable[[float], float], *, epochs: int, amp: bool | None = None, keeper: Keeper | None = None,
                 name: str = "train", print_freq: int = 10, quiet: bool | None = False,
                 on_epoch: Callable[[dict, bool], None] | None = None) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {epochs}.")
        if not len(batches):
            raise ValueError("There is not one training batch: too few pictures for so many processes.")
        self.model, self.batches, self.task, self.optimizer, self.lr = model, batches, task, optimizer, lr
        self.epochs, self.keeper, self.name, self.print_freq = epochs, keeper, name, print_freq
        self.quiet, self.on_epoch = quiet, on_epoch
        self.device = next(model.parameters()).device
        self.parallel = distributed.parallel(model, self.device)
        self.precision = autocast(self.device, amp)                 # asked for once, entered at every step
        half = mixed_precision(self.device, amp) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.interrupts = Interrupts()
        self.epoch = self.step = 0          # where the run is: `step` batches of `epoch` are done
        self.sums: dict[str, Tensor | float] = {}                   # of this epoch so far
        self.history: list[dict] = []

    def run(self) -> list[dict]:
        with self.interrupts if self.keeper else contextlib.nullcontext():
            try:
                while self.epoch < self.epochs:
                    self._learn_epoch()
                    row = self._judge()
                    with self.interrupts.held():
                        self._close_epoch(row)
            except KeyboardInterrupt:
                if self.keeper:
                    with self.interrupts.held():
                        self.keeper.save(self.state())
                raise
        return self.history

    def _learn_epoch(self) -> None:
        self.batches.set_epoch(self.epoch, self.step)
        self.model.train()
        every = 1 if self.device.type == "cpu" else self.print_freq     # looking costs a CPU nothing
        before, start = self.sums.get("seconds", 0.0), time.perf_counter()
        with tqdm(total=len(self.batches), initial=self.step, desc=f"{self.name} {self.epoch + 1}/{self.epochs}",
                  unit="batch", leave=False, disable=self.quiet, file=sys.stdout) as bar:
            for batch in self.batches:
                with self.interrupts.held():
                    self._learn(batch)
                    self.step += 1
                    self.sums["seconds"] = before + time.perf_counter() - start
                if self.step % every == 0:
                    self._look()
                if self.step % self.print_freq == 0 and not bar.disable:
                    bar.set_postfix_str(self._running(), refresh=False)
                bar.update()
        self._look()

    def _learn(self, batch: Any) -> None:
        lr = self.lr(self.epoch + (self.step + 0.5) / len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.precision:
            loss, n, more = self.task.loss(self.parallel, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, value in {"pictures": n, "loss": loss.detach() * n, **more}.items():
            self.sums[name] = self.sums.get(name, 0) + value        # stays on the device: no wait at each step

    def _look(self) -> None:
        """Stop if the loss has become NaN or infinite; once it has, its sum stays so."""
        if not math.isfinite(float(self.sums.get("loss", 0))):
            raise FloatingPointError(f"The loss is not finite at step {self.step} of epoch {self.epoch + 1}, "
                                     f"{self._why()}")

    def _why(self) -> str:
        lr = self.optimizer.param_groups[0]["lr"]
        if all(p.isfinite().all() for p in self.model.parameters()):
            return f"while the weights still are: look at the data, or try a learning rate smaller than {lr:.3g}."
        return f"and neither are the weights: the learning rate, {lr:.3g} there, is too large. Try a smaller --lr."

    def _running(self) -> str:
        seen = self.sums["pictures"]
        means = {name: float(self.sums[name]) / seen for name in self.sums if name not in ("pictures", "seconds")}
        speed = seen * distributed.world() / self.sums["seconds"]
        return ", ".join([f"{speed:.0f} images/s", *(f"{name} {value:.3f}" for name, value in means.items())])

    def _judge(self) -> dict:
        """The epoch's row."""
        distributed.spread_buffers(self.model)
        names = [name for name in self.sums if name != "seconds"]
        sums = torch.tensor([float(self.sums[name]) for name in names], dtype=torch.float64)
        if self.device.type == "cuda":
            sums = sums.to(self.device)
        sums = dict(zip(names, distributed.total(sums).tolist()))
        start, learning = time.perf_counter(), self.sums["seconds"]
        row = {"epoch": self.epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {f"train_{name}": value / sums["pictures"] for name, value in sums.items() if name != "pictures"}
        row |= {f"val_{name}": value for name, value in self.task.evaluate(self.model).items()}
        row |= {"seconds": learning + time.perf_counter() - start, "images_per_second": sums["pictures"] / learning}
        if bad := [name for name in row if name.endswith("loss") and not math.isfinite(row[name])]:
            raise FloatingPointError(f"{bad[0]} is {row[bad[0]]} after epoch {self.epoch + 1}, {self._why()}")
        return row

    def _close_epoch(self, row: dict) -> None:
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        best = self.keeper.epoch(self.state()) if self.keeper else False
        if self.on_epoch and distributed.is_first():
            self.on_epoch(row, best)

    def state(self) -> dict:
        """All that going on takes, as tensors and plain values.  FloatingPointError if a weight is not finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise FloatingPointError(f"Weights are not finite after step {self.step} of epoch {self.epoch + 1}: "
                                     "not saved. Try a smaller --lr.")
        return {"epoch": self.epoch, "step": self.step, "steps": len(self.batches), "history": self.history,
                "sums": {name: float(value) for name, value in self.sums.items()},
                "state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "random": _random_states(self.device)}

    def go_on(self, state: dict) -> None:
        """Continue from a state().  Weights, momentum and position are the state's; learning rate, weight decay and
        the number of epochs those of this run, and so is its number of processes."""
        self.model.load_state_dict(state["state_dict"])
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, values in zip(self.optimizer.param_groups, own):
            group.update(values)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.sums, self.history = state["epoch"], dict(state["sums"]), list(state["history"])
        self.step = round(state["step"] * len(self.batches) / state["steps"])   # with other batches: the same share
        if distributed.is_first():
            _set_random_states(state["random"], self.device)
        else:                               # only the first process's was kept
            self.sums = {}
            torch.manual_seed(seed_of(self.epoch, self.step, distributed.rank()))


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that layers such as dropout draw from.  Batches need none: they are functions of the epoch."""
    found = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        found[device.type] = getattr(torch, device.type).get_rng_state()
    return found


def _set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type])


def pace(row: dict, epochs: int) -> str:
    """What an epoch's row says of time: pictures a second, its own seconds, the minutes that the others will take."""
    speed, left = row["images_per_second"], (epochs - row["epoch"] - 1) * row["seconds"] / 60
    return (f"{speed:,.{0 if speed >= 100 else 1}f} images/s, {row['seconds']:.0f} s"
            + (f", {left:.0f} min left" if left >= 1 else ""))


# --- the classifier's task ------------------------------------------------------------------------------------------

def fit(model: nn.Module, data: Data, *, epochs: int, lr: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 5e-4, label_smoothing: float = 0.1, recipe: str = "quick", start_epoch: int = 0,
        resume: dict | None = None, name: str = "train", **running) -> list[Epoch]:
    """Train a classifier in place, on the device where its data is: SGD, cross-entropy with smoothed labels.

    recipe  "quick": one cycle of the learning rate, Nesterov momentum, no weight decay on norms and biases; lr is the
            peak for batches of 64, and smaller and larger batches scale it.
            "paper": lr as it is, a tenth of it after every 30 epochs, weight decay on everything.
    resume  a state to go on from (checkpoint.read_checkpoint)
    running goes to Trainer: amp, keeper, print_freq, quiet, on_epoch

    A progress bar shows each epoch; what every epoch gave is returned.  Raises as Trainer does.
    """
    device = data.train.labels.device
    model.to(device, memory_format=memory_layout(device))
    if recipe == "quick":
        groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
                  {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
        schedule = one_cycle(lr * data.train.batch_size / 64, max(epochs, 1))
    elif recipe == "paper":
        groups, schedule = [{"params": list(model.parameters()), "weight_decay": weight_decay}], steps(lr)
    else:
        raise ValueError(f"recipe must be 'quick' or 'paper', not {recipe!r}.")
    optimizer = torch.optim.SGD(groups, lr=schedule(0), momentum=momentum, nesterov=recipe == "quick" and momentum > 0)
    task = classification(data, label_smoothing, running.get("amp"))
    trainer = Trainer(model, data.train, task, optimizer, schedule, epochs=epochs, name=name, **running)
    trainer.epoch = start_epoch
    if resume:
        trainer.go_on(resume)
    return [Epoch(**{field: row[field] for field in Epoch._fields}) for row in trainer.run()]


def classification(data: Data, label_smoothing: float = 0.0, amp: bool | None = None) -> Task:
    """Batches (x, y) of pictures (B, 3, H, W) and labels (B,); judged by loss, top-1 and top-5 on data.val."""
    layout = memory_layout(data.train.labels.device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
        x, y = batch
        logits = model(x.contiguous(memory_format=layout))
        right = (logits.detach().argmax(1) == y).sum()
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing), len(y), {"top1": right}

    return Task(loss, lambda model: evaluate(model, data.val, amp))


def evaluate(model: nn.Module, batches: Batches, amp: bool | None = None) -> dict[str, float]:
    """Mean loss, top-1 and top-5 (shares, 0 to 1) over a split; with several processes, each judges its share of the
    pictures and every picture counts once.  With fewer than five classes top-5 is 1."""
    device = batches.labels.device
    sums = torch.zeros(4, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    for logits, y in _logits(model, batches, amp):
        found = logits.topk(min(5, logits.shape[1])).indices == y[:, None]     # (B, 5), at most one in a row
        loss = F.cross_entropy(logits, y, reduction="sum")
        sums += torch.stack([loss, found[:, 0].sum(), found.sum(), loss.new_tensor(len(y))])
    loss, first, five, n = distributed.total(sums).tolist()
    return {"loss": loss / n, "top1": first / n, "top5": five / n}


def predict(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and labels (N,), both on the CPU, in the order of the batches; model in eval mode."""
    logits, labels = zip(*((logits.cpu(), y.cpu()) for logits, y in _logits(model, batches)))
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def _logits(model: nn.Module, batches: Batches, amp: bool | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    device = batches.labels.device
    model.to(device).eval()
    layout, precision = memory_layout(device), autocast(device, amp)
    for x, y in batches:
        with precision:
            logits = model(x.contiguous(memory_format=layout))
        yield logits.float(), y


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is the label's, 0 to 1."""
    return (logits.argmax(1) == labels).double().mean().item()
