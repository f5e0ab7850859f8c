"""The classifier's task: fit, evaluate, predict.

    data = load_data("toynette", size=64)
    history = fit(model, data, epochs=12)
    logits, labels = predict(model, data.val)
"""
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batches, Data
from ..device import amp_dtype, autocast, memory_format, sum_dtype, to_device
from .checkpoint import Keeper
from .loop import Task, Trainer, one_cycle, step_decay
from .processes import all_sum


def fit(model: nn.Module, data: Data, *, epochs: int, lr: float = 0.1, momentum: float = 0.9,
        weight_decay: float = 5e-4, label_smoothing: float = 0.1, recipe: str = "quick", start_epoch: int = 0,
        resume: dict | None = None, amp: bool | None = None, sync_norms: bool = False, keeper: Keeper | None = None,
        name: str = "train", print_freq: int = 10, quiet: bool | None = False,
        on_epoch: Callable[[dict, bool], None] | None = None) -> list[dict]:
    """Train a classifier in place, on the device where its data is: SGD, cross-entropy with smoothed labels.

    recipe  "quick": one cycle of the learning rate, Nesterov momentum, no weight decay on norms and biases; lr is the
            peak for batches of 64, and smaller and larger batches scale it.
            "paper": lr as it is, a tenth of it after every 30 epochs, weight decay on everything.
    resume  a state to resume from (checkpoint.read_checkpoint)
    amp, sync_norms, keeper, name, print_freq, quiet, on_epoch: see Trainer

    Returns the history, a dict for each epoch: epoch (from 0), lr, train_loss, train_top1 (counted during the epoch,
    on augmented images), val_loss, val_top1, val_top5, seconds, images_per_second.  Accuracies are shares, 0 to 1.
    Raises as Trainer does.
    """
    device = data.train.labels.device
    to_device(model, device)
    if recipe == "quick":
        groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
                  {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
        schedule = one_cycle(lr * data.train.batch_size / 64, max(epochs, 1))
    elif recipe == "paper":
        groups, schedule = [{"params": list(model.parameters()), "weight_decay": weight_decay}], step_decay(lr)
    else:
        raise ValueError(f"recipe must be 'quick' or 'paper', not {recipe!r}.")
    # Fused: one kernel for all weights, and in float16 no wait at each step for whether a gradient has overflowed.
    optimizer = torch.optim.SGD(groups, lr=schedule(0), momentum=momentum, nesterov=recipe == "quick" and momentum > 0,
                                fused=device.type == "cuda" or None)
    trainer = Trainer(model, data.train, classification(data, label_smoothing, amp), optimizer, schedule,
                      epochs=epochs, amp=amp, sync_norms=sync_norms, keeper=keeper, name=name, print_freq=print_freq,
                      quiet=quiet, on_epoch=on_epoch)
    trainer.epoch = start_epoch
    if resume:
        trainer.resume(resume)
    return trainer.run()


def compile_for(model: nn.Module, batch: int) -> None:
    """torch.compile the model, in place, for batches of this size.  Any other, such as an epoch's last, runs as it is:
    compiling once more would take longer than it saves."""
    plain, compiled = model.forward, torch.compile(model.forward, dynamic=False)
    model.forward = lambda x: (compiled if len(x) == batch else plain)(x)


def classification(data: Data, label_smoothing: float = 0.0, amp: bool | None = None) -> Task:
    """Batches (x, y) of images (B, 3, H, W) and labels (B,); evaluated by loss, top-1 and top-5 on data.val."""
    layout = memory_format(data.train.labels.device)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
        x, y = batch
        logits = model(x.contiguous(memory_format=layout))
        correct = (logits.detach().argmax(1) == y).sum()
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing), len(y), {"top1": correct}

    return Task(loss, lambda model: evaluate(model, data.val, amp=amp))


def evaluate(model: nn.Module, batches: Batches, *, amp: bool | None = None) -> dict[str, float]:
    """Mean loss, top-1 and top-5 (shares, 0 to 1) over a split; with several processes, each evaluates its share of
    the images and every image counts once.  With fewer than five classes top-5 is 1.  Where float16 overflows, the
    evaluation is repeated in float32."""
    device = batches.labels.device
    sums = torch.zeros(4, device=device, dtype=sum_dtype(device))
    for logits, y in _logits(model, batches, amp):
        correct = logits.topk(min(5, logits.shape[1])).indices == y[:, None]       # (B, 5), at most one in a row
        loss = F.cross_entropy(logits, y, reduction="sum")
        sums += torch.stack([loss, correct[:, 0].sum(), correct.sum(), torch.full_like(loss, len(y))])
    loss, first, five, n = all_sum(sums).tolist()
    if not math.isfinite(loss) and amp_dtype(device, amp) == torch.float16:
        return evaluate(model, batches, amp=False)
    return {"loss": loss / n, "top1": first / n, "top5": five / n}


def predict(model: nn.Module, batches: Batches, *, amp: bool | None = None) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) float32 and labels (N,), both on the CPU, in the order of the batches; model in eval mode."""
    logits, labels = zip(*((logits.cpu(), y.cpu()) for logits, y in _logits(model, batches, amp)))
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def _logits(model: nn.Module, batches: Batches, amp: bool | None) -> Iterator[tuple[Tensor, Tensor]]:
    device = batches.labels.device
    model.to(device).eval()
    layout, precision = memory_format(device), autocast(device, amp)
    for x, y in batches:
        with precision:
            logits = model(x.contiguous(memory_format=layout))
        yield logits.float(), y


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the rows whose largest logit is the label's, 0 to 1."""
    return (logits.argmax(1) == labels).sum().item() / len(labels)      # not a mean in float64, which MPS lacks
