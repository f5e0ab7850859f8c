"""One training loop: step, schedule, progress, evaluation.

    data = load_data("toynette", size=64)
    history = fit(model, data, epochs=12)
    logits, labels = predict(model, data.val)
"""
import contextlib
import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data import Batches, Data


class Epoch(NamedTuple):
    """What one epoch gave.  Accuracies are top-1, 0 to 1; train_top1 is counted on the way, on augmented pictures."""

    epoch: int
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """Half precision where it pays: bfloat16 on a CUDA device that has it natively, float16 on an older one."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    dtype = mixed_precision(device)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def fit(model: nn.Module, data: Data, *, epochs: int, lr: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 5e-4, label_smoothing: float = 0.1, name: str = "train") -> list[Epoch]:
    """Train a classifier in place, on the device where its data is: SGD, one-cycle learning rate, label smoothing.

    lr is the peak of the cycle for batches of 64; smaller and larger batches scale it.  Weight decay spares norms and
    biases.  A progress bar shows each epoch; what every epoch gave is returned.

    Raises FloatingPointError at the end of the first epoch whose loss is not finite.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}.")
    device = data.train.labels.device
    # Channels last is up to twice as fast on a CPU, and what CUDA's half-precision kernels want.
    layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
    model.to(device, memory_format=layout)
    peak = lr * data.train.batch_size / 64
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=momentum, nesterov=True)
    steps = epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False,
                                                   pct_start=max(0.25, 1.5 / steps))   # a run of few steps rises too
    precision = autocast(device)                                    # asked for once, entered at every step
    scaler = torch.amp.GradScaler(device.type, enabled=mixed_precision(device) == torch.float16)

    history = []
    with tqdm(total=steps, desc=name, unit="batch") as bar:
        for epoch in range(epochs):
            start = time.perf_counter()
            data.train.set_epoch(epoch)
            model.train()
            total, correct, seen = 0.0, 0, 0
            for x, y in data.train:
                with precision:
                    logits = model(x.contiguous(memory_format=layout))
                    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                total += loss.detach() * len(y)                     # stays on the device: no wait at each step
                correct += (logits.detach().argmax(1) == y).sum()
                seen += len(y)
                bar.update()
            train_loss = float(total) / seen
            if not math.isfinite(train_loss):
                raise FloatingPointError(f"The loss is {train_loss} in epoch {epoch + 1}: "
                                         f"try a smaller lr than {lr:g}.")
            val_logits, val_labels = predict(model, data.val)
            found = Epoch(epoch, train_loss, float(correct) / seen, F.cross_entropy(val_logits, val_labels).item(),
                          top1(val_logits, val_labels), time.perf_counter() - start)
            history.append(found)
            bar.set_postfix(loss=f"{found.train_loss:.2f}", val=f"{100 * found.val_top1:.1f} %")
    return history


@torch.inference_mode()
def predict(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and labels (N,), both on the CPU, in the order of the batches; model in eval mode."""
    device = batches.labels.device
    model.to(device).eval()
    found, precision = [], autocast(device)
    for x, y in batches:
        with precision:
            found.append((model(x).float().cpu(), y.cpu()))
    logits, labels = zip(*found)
    return torch.cat(logits), torch.cat(labels)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is the label's, 0 to 1."""
    return (logits.argmax(1) == labels).double().mean().item()
