"""From worker processes to the device: workers that stay for the next epoch, copies that overlap with computing."""
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

SHARED_MEMORY = "/dev/shm"      # through which workers hand over their batches, on Linux


class Reader:
    """The batches of a data set, an epoch each time it is iterated.

    dataset  what its workers have is a copy from the first epoch: what changes with the epoch has to be in the items
    items    the lists of items of an epoch's batches; iterated anew for each epoch.  dataset.__getitems__(list), or
             dataset[item] for each, makes a batch
    collate  a batch's parts -> a batch
    workers  processes; 0: none

    Workers stay for the next epoch.  An epoch that is left half-way, or runs within another, has workers of its own.
    """

    def __init__(self, dataset: Dataset, items: Iterable[list], collate: Callable, workers: int, pin: bool) -> None:
        self.options = dict(dataset=dataset, batch_sampler=items, collate_fn=collate, num_workers=workers,
                            pin_memory=pin, persistent_workers=workers > 0, worker_init_fn=leave_signals_to_parent)
        self.idle: DataLoader | None = None

    def __iter__(self) -> Iterator[Any]:
        loader = self.idle or DataLoader(**self.options, generator=torch.Generator())   # else it draws from the global
        self.idle = None
        yield from loader
        self.idle = loader


def leave_signals_to_parent(worker_id: int) -> None:
    """A DataLoader's worker_init_fn: Ctrl-C reaches every process of a terminal, and the training process decides what
    becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = lambda kind, error, trace: (                   # a parent that is gone is no news
        None if issubclass(kind, (ConnectionError, EOFError)) else sys.__excepthook__(kind, error, trace))


def warn_of_little_shared_memory(workers: int, batch_bytes: int) -> None:
    """Containers often have 64 MB of it, and a worker that finds none left dies with a bus error."""
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return
    if workers and 2 * workers * batch_bytes > free:                # each worker is two batches ahead
        warnings.warn(f"{workers} workers may need {2 * workers * batch_bytes >> 20} MB of shared memory, and "
                      f"{SHARED_MEMORY} has {free >> 20} MB: take fewer (-j), or start the container with a larger "
                      "--shm-size.", stacklevel=3)


def ahead(batches: Iterable, move: Callable[[Any], Any], device: torch.device) -> Iterator[Any]:
    """move(batch) for each batch.  On CUDA one batch ahead and on a stream of its own, so that copying the next batch
    overlaps with computing on this one."""
    if device.type != "cuda":
        yield from map(move, batches)
        return
    side, before = torch.cuda.Stream(device), None
    side.wait_stream(torch.cuda.current_stream(device))             # for what move() reads there
    for batch in batches:
        with torch.cuda.stream(side):
            moved = move(batch)
        if before is not None:
            yield before
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in _tensors(moved):      # allocated on one stream, used on another: free only when both are done
            tensor.record_stream(current)
        before = moved
    if before is not None:
        yield before


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (list, tuple, dict)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _tensors(part)
