"""One training loop for every task: step, schedule, progress, evaluation, checkpoints.

What is learned is a Task: the loss of a batch, and what to measure after each epoch. classify.py has the classifier's;
another task brings its own two functions and gets progress, checkpoints and torchrun with them.
"""
import contextlib
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.sampler import seed_of
from ..device import amp_dtype, autocast, random_states, set_random_states
from ..errors import UserError, user_errors
from .checkpoint import Interrupts, Keeper, load_exactly, load_optimizer
from .processes import all_sum, broadcast_buffers, data_parallel, is_first, rank, world_size


class Task(NamedTuple):
    """What is learned.

    loss(model, batch)  the batch's mean loss, its number of images, and further sums over it, by name, to be
                        averaged over the epoch's images
    evaluate(model)     what to measure after each epoch, by name, over all processes.  A *loss that is not finite
                        ends the run; the entry that a Keeper calls its score decides which epoch was best
    """

    loss: Callable[[nn.Module, Any], tuple[Tensor, int, dict[str, Tensor]]]
    evaluate: Callable[[nn.Module], dict[str, float]]


class NotFiniteError(UserError, FloatingPointError):
    """The loss or the weights became infinite or NaN."""


# --- learning rates: functions of the epoch, a fraction within it, so that resuming needs no state -------------------

def one_cycle(peak: float, epochs: int, rise: float = 0.25) -> Callable[[float], float]:
    """From peak / 25 up to the peak over the first quarter, then down to nearly 0, both along half a cosine.
    (Smith and Topin 2018, in the shape of torch's OneCycleLR.)"""
    def lr(epoch: float) -> float:
        part = epoch / epochs
        low, way = (peak / 25, 1 - part / rise) if part < rise else (peak / 250_000, (part - rise) / (1 - rise))
        return low + (peak - low) * (1 + math.cos(math.pi * way)) / 2
    return lr


def step_decay(peak: float, every: int = 30) -> Callable[[float], float]:
    """A tenth after every 30 epochs: ImageNet's classical schedule."""
    return lambda epoch: peak * 0.1 ** (epoch // every)


# --- the loop -------------------------------------------------------------------------------------------------------

class Trainer:
    """The loop: epochs of steps, each epoch evaluated and saved.  It can stop after any step and resume from there.

        trainer = Trainer(model, batches, task, optimizer, lr, epochs=20, keeper=Keeper("runs/x", {}))
        trainer.resume(read_checkpoint("runs/x"))       # or not
        history = trainer.run()                         # one dict per epoch

    batches     iterable, with len() and set_epoch(epoch, start): the batches of an epoch from number `start` on, a
                function of these two alone, already on the device, this process's share where there are several
    lr          the learning rate at an epoch, a fraction within it: one_cycle(...), step_decay(...)
    amp         mixed precision, see device.amp_dtype
    sync_norms  with several processes: batch norm over the whole batch, see processes.data_parallel
    keeper      where checkpoints and history go; None: nowhere
    print_freq  batches between two checks of the running loss (on a GPU, each is a wait)
    quiet       no progress bar; None: a bar on a terminal only.  Only the first process has one
    on_epoch    called with each epoch's row and whether it was the best, in the first process

    With a keeper, the first Ctrl-C or SIGTERM finishes the step, saves, and raises KeyboardInterrupt; several
    processes stop after the same step, and save before they evaluate too.  NotFiniteError, with the step and the
    reason, if the loss is not finite; nothing is saved then.  UserError if there is nothing to train on.
    """

    def __init__(self, model: nn.Module, batches: Any, task: Task, optimizer: torch.optim.Optimizer,
                 lr: Callable[[float], float], *, epochs: int, amp: bool | None = None, sync_norms: bool = False,
                 keeper: Keeper | None = None, name: str = "train", print_freq: int = 10, quiet: bool | None = False,
                 on_epoch: Callable[[dict, bool], None] | None = None) -> None:
        if epochs < 1:
            raise UserError(f"epochs must be at least 1, not {epochs}.")
        if not len(batches):
            raise UserError("There is no training batch: too few images for so many processes.")
        self.model, self.batches, self.task, self.optimizer, self.lr = model, batches, task, optimizer, lr
        self.epochs, self.keeper, self.name, self.print_freq = epochs, keeper, name, print_freq
        self.quiet, self.on_epoch = quiet if is_first() else True, on_epoch
        self.device = next(model.parameters()).device
        self.parallel = data_parallel(model, self.device, sync_norms)
        self.precision = autocast(self.device, amp)                 # decided once, entered at every step
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype(self.device, amp) == torch.float16)
        self.interrupts = Interrupts()
        self.epoch = self.step = 0          # position: `step` batches of `epoch` are done
        self.sums: dict[str, Tensor | float] = {}                   # over this epoch so far, in this process
        self.history: list[dict] = []

    def run(self) -> list[dict]:
        with self.interrupts if self.keeper else contextlib.nullcontext():
            try:
                while self.epoch < self.epochs:
                    row = self._measure_epoch(self._train_epoch())
                    with self.interrupts.held():
                        self._close_epoch(row)
            except BaseException as error:
                # A library's C code may have turned the KeyboardInterrupt that reached it into an error of its own.
                if not isinstance(error, KeyboardInterrupt) and not self.interrupts.pending:
                    raise
                self.interrupts.pending = False
                if self.keeper and self.interrupts.count < 2:       # a second one may have cut a step in two
                    with self.interrupts.held():
                        self.keeper.save(self.state())
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise KeyboardInterrupt from error
        return self.history

    def _train_epoch(self) -> dict[str, float]:
        """The rest of an epoch's steps; the sums over the whole epoch."""
        self.batches.set_epoch(self.epoch, self.step)
        self.model.train()
        every = 1 if self.device.type == "cpu" else self.print_freq     # on a CPU looking costs nothing
        together = self.keeper and world_size() > 1
        before, start = self.sums.get("seconds", 0.0), time.perf_counter()
        with (self.interrupts.held() if together else contextlib.nullcontext(),
              tqdm(total=len(self.batches), initial=self.step, desc=f"{self.name} {self.epoch + 1}/{self.epochs}",
                   unit="batch", leave=False, disable=self.quiet, file=sys.stdout) as bar):
            for batch in self.batches:
                with self.interrupts.held():
                    self._train_step(batch)
                    self.step += 1
                    self.sums["seconds"] = before + time.perf_counter() - start
                if self.step % every == 0:
                    self._check_loss()
                    if together:
                        self._stop_together()
                if self.step % self.print_freq == 0 and not bar.disable:
                    bar.set_postfix_str(self._running(), refresh=False)
                bar.update()
            self._check_loss()                                          # and so the queue is empty: read the clock
            self.sums["seconds"] = before + time.perf_counter() - start
            if together:
                self._stop_together()
            broadcast_buffers(self.model)
            sums = self._total_sums()
            if together:        # evaluating is long, and whoever is stopped in it leaves the others waiting
                self.keeper.save(self.state())
            return sums

    def _train_step(self, batch: Any) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr_at(self.step)
        try:
            with self.precision:
                loss, n, more = self.task.loss(self.parallel, batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):       # torch's words
                raise
            raise UserError("Batch norm cannot learn from one image whose last map is 1 x 1: take larger batches or "
                            "larger images.") from error
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, value in {"images": n, "loss": loss.detach() * n, **more}.items():
            self.sums[name] = self.sums.get(name, 0) + value        # stays on the device: no wait at each step

    def _lr_at(self, step: int) -> float:
        return self.lr(self.epoch + (step + 0.5) / len(self.batches))

    def _check_loss(self) -> None:
        """Stop if the loss has become NaN or infinite; once it has, its sum stays so."""
        if not math.isfinite(float(self.sums.get("loss", 0))):
            raise NotFiniteError(f"The loss is not finite at step {self.step} of epoch {self.epoch + 1}; "
                                 f"{self._advice()}")

    def _advice(self) -> str:
        if (self.epoch, self.step) == (0, 1):
            return "the weights had not changed yet: look at the data."
        return f"the learning rate was {self._lr_at(self.step - 1):.3g}: try a smaller --lr."

    def _stop_together(self) -> None:
        """If any process was interrupted, all stop here, after the same step."""
        pending = torch.tensor([float(self.interrupts.pending)], device=self.device)
        if all_sum(pending).item():
            self._total_sums()
            raise KeyboardInterrupt

    def _running(self) -> str:
        n = self.sums["images"]
        means = {name: float(self.sums[name]) / n for name in self.sums if name not in ("images", "seconds")}
        speed = n * world_size() / self.sums["seconds"]
        return ", ".join([f"{speed:.0f} images/s", *(f"{name} {value:.3f}" for name, value in means.items())])

    def _total_sums(self) -> dict[str, float]:
        """The sums over all processes.  From here on the first process has them and the others zeros, so that they
        can be saved, resumed and added up again."""
        names = [name for name in self.sums if name != "seconds"]
        sums = torch.tensor([float(self.sums[name]) for name in names], dtype=torch.float64)
        totals = dict(zip(names, all_sum(sums.to(self.device) if self.device.type == "cuda" else sums).tolist()))
        if world_size() > 1:
            self.sums |= totals if is_first() else dict.fromkeys(totals, 0.0)
        return totals

    def _measure_epoch(self, sums: dict[str, float]) -> dict:
        """The epoch's row."""
        start, training = time.perf_counter(), self.sums["seconds"]
        row = {"epoch": self.epoch, "lr": self._lr_at(len(self.batches) - 1)}
        row |= {f"train_{name}": value / sums["images"] for name, value in sums.items() if name != "images"}
        row |= {f"val_{name}": value for name, value in self.task.evaluate(self.model).items()}
        row |= {"seconds": training + time.perf_counter() - start, "images_per_second": sums["images"] / training}
        if bad := [name for name in row if name.endswith("loss") and not math.isfinite(row[name])]:
            raise NotFiniteError(f"{bad[0]} is {row[bad[0]]} after epoch {self.epoch + 1}; {self._advice()}")
        return row

    def _close_epoch(self, row: dict) -> None:
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        best = self.keeper.epoch(self.state()) if self.keeper else False
        if self.on_epoch and is_first():
            self.on_epoch(row, best)

    def state(self) -> dict:
        """All that resuming takes, as tensors and plain values.  NotFiniteError if a weight is not finite."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise NotFiniteError(f"Weights are not finite after step {self.step} of epoch {self.epoch + 1}: "
                                 "not saved. Try a smaller --lr.")
        return {"epoch": self.epoch, "step": self.step, "steps": len(self.batches), "history": self.history,
                "sums": {name: float(value) for name, value in self.sums.items()},
                "state_dict": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "random": random_states(self.device)}

    def resume(self, state: dict) -> None:
        """Continue from a state().  Weights, momentum and position are the state's; learning rate, weight decay and
        the number of epochs are those of this run, and so are precision and the number of processes."""
        load_exactly(self.model, state, "The checkpoint")
        load_optimizer(self.optimizer, state["optimizer"])
        if self.keeper and any(self.keeper.score not in row for row in state["history"]):
            raise UserError(f"The checkpoint is of another task: its history lacks {self.keeper.score}.")
        self.epoch, self.history = state["epoch"], list(state["history"])
        self.step = round(state["step"] * len(self.batches) / state["steps"])   # with other batches: the same share
        self.sums = {{"pictures": "images"}.get(name, name): value for name, value in state["sums"].items()}
        with user_errors(RuntimeError, TypeError, ValueError, KeyError, hint="The checkpoint is damaged."):
            if self.scaler.is_enabled() and state["scaler"]:        # {}: the checkpoint was made without float16
                self.scaler.load_state_dict(state["scaler"])
            if is_first():
                set_random_states(state["random"], self.device)
        if not is_first():                              # sums and generators of the first process alone were saved
            self.sums |= {name: 0.0 for name in self.sums if name != "seconds"}
            torch.manual_seed(seed_of(self.epoch, self.step, rank()))
