"""Several processes that train one network: how they start, and the few questions the loop asks of them.

A process that nobody started together with others is the first of one, so nothing needs to ask whether it is alone.
torchrun starts the processes and names each in its environment; launch() also starts them as the PyTorch ImageNet
example does, by its flags.
"""
import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .data import best_device
from .pictures import DataError

USER_ERRORS = (ValueError, OSError, FloatingPointError, DataError, torch.OutOfMemoryError)  # one line says it all


class Place(NamedTuple):
    """One process among all: rank of world; local_rank of local_world on its machine."""
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if on() else 0


def world() -> int:
    """How many processes there are, on all machines."""
    return dist.get_world_size() if on() else 1


def is_first() -> bool:
    return rank() == 0


def wait() -> None:
    """For all others to come here."""
    if on():
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if on():
        dist.all_reduce(values)
    return values


def from_first(make: Callable[[], Any]) -> Any:
    """make()'s result in the first process, for all of them.  Where it raises, it raises in the first process, and
    the others end with exit code 2, having nothing to add."""
    if not on():
        return make()
    found = [None, None]
    if is_first():
        try:
            found[0] = make()
        except Exception as error:
            found[1] = True
            dist.broadcast_object_list(found)
            raise error
    dist.broadcast_object_list(found)
    if found[1]:
        raise SystemExit(2)
    return found[0]


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are the mean over all processes.  It shares its weights with `model`, in which batch
    norm is made to see the whole batch on CUDA (torch's SyncBatchNorm; the CPU has none)."""
    if not on():
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)      # in place: only the norms inside are replaced
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, ids)


def spread_buffers(model: nn.Module) -> None:
    """The first process's running statistics to all, where batch norm saw another share of each batch."""
    if on():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


# --- starting -------------------------------------------------------------------------------------------------------

def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the PyTorch ImageNet example."""
    group = parser.add_argument_group("several processes, where torchrun does not start them")
    group.add_argument("--world-size", type=int, default=-1, metavar="N", help="number of machines")
    group.add_argument("--rank", type=int, default=-1, metavar="N", help="number of this machine, from 0")
    group.add_argument("--dist-url", metavar="URL", help="where the first machine is met: tcp://HOST:PORT "
                       "(default: what torchrun says, else tcp://127.0.0.1:23456)")
    group.add_argument("--dist-backend", metavar="NAME", help="default: nccl on CUDA, gloo on a CPU")
    group.add_argument("--gpu", type=int, metavar="N", help="use this GPU")
    group.add_argument("--multiprocessing-distributed", action="store_true",
                       help="start a process for each GPU of this machine (on a CPU: one)")


def launch(work: Callable[[argparse.Namespace, torch.device, Place], int], args: argparse.Namespace) -> int:
    """work(args, device, place) in every process of this machine; the exit code.

    An error of the user's, in words and numbers, ends as one line and exit code 2.  work must be importable by name.
    """
    nodes, node = max(args.world_size, 1), max(args.rank, 0)
    each = torch.cuda.device_count() or 1
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:             # torchrun's
        names = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)
        return _run(work, args, Place(*(int(os.environ.get(name, default)) for name, default in names)))
    if not args.multiprocessing_distributed or each == 1:
        return _run(work, args, Place(node, nodes))
    context = torch.multiprocessing.spawn(_spawned, (work, args, node, nodes, each), nprocs=each, join=False)
    while True:
        try:
            while not context.join():
                pass
            return 0
        except KeyboardInterrupt:           # theirs as well: they save, and this process waits for them
            continue
        except torch.multiprocessing.ProcessExitedException as error:
            return error.exit_code if error.exit_code > 0 else 1


def _spawned(i: int, work: Callable, args: argparse.Namespace, node: int, nodes: int, each: int) -> None:
    sys.exit(_run(work, args, Place(node * each + i, nodes * each, i, each)))


def _run(work: Callable, args: argparse.Namespace, place: Place) -> int:
    try:
        device = _device(args.gpu, place)
        if place.world > 1:
            _join(device, args, place)
        return work(args, device, place)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if on():
            dist.destroy_process_group()


def _device(gpu: int | None, place: Place) -> torch.device:
    if gpu is None and place.world > 1:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        gpu = place.local_rank
    if gpu is None:
        return best_device()
    if gpu >= torch.cuda.device_count():
        raise ValueError(f"There is no GPU {gpu}: this machine has {torch.cuda.device_count()} that CUDA can use.")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def _join(device: torch.device, args: argparse.Namespace, place: Place) -> None:
    """Meet the other processes; returns once all are there."""
    url = args.dist_url or ("env://" if "MASTER_ADDR" in os.environ else "tcp://127.0.0.1:23456")
    store, rank, world = next(rendezvous(url, place.rank, place.world))
    # torchrun may keep its store when it starts everyone again: without a name of its own, an attempt could find the
    # addresses of processes that are gone, and wait for them.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {world}"
    dist.init_process_group(args.dist_backend or ("nccl" if device.type == "cuda" else "gloo"),
                            store=dist.PrefixStore(attempt, store), world_size=world, rank=rank)
