"""Several processes that train one network: how they start, and the few questions the loop asks of them.

Without a process group, every helper behaves as rank 0 of 1, so nothing needs to ask whether it is alone. torchrun
starts the processes and describes each in its environment; launch() also starts them as the PyTorch ImageNet example
does, by its flags.
"""
import argparse
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from ..checks import Number, filled
from ..command_line import exit_at_once_on_signals
from ..device import process_device
from ..errors import UserError


class Place(NamedTuple):
    """One process among all: rank of world; local_rank of local_world on its machine."""
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def shard(self) -> tuple[int, int]:
        return self.rank, self.world

    def total_batch(self, per_machine: int) -> int:
        """-b counts the images of a step on one machine; this is their number on all machines."""
        return per_machine * self.world // self.local_world

    def own_workers(self, per_machine: int) -> int:
        """-j counts the data loading workers of one machine; this is the share of one process, rounded up."""
        return -(-per_machine // self.local_world)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes on all machines."""
    return dist.get_world_size() if is_distributed() else 1


def is_first() -> bool:
    return rank() == 0


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def wait() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


def all_sum(values: Tensor) -> Tensor:
    """The sum over all processes, in place; on NCCL the tensor has to be on the GPU."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Each process's value (anything that can be pickled), by rank, in all of them."""
    if not is_distributed():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], Any]) -> Any:
    """make()'s result in the first process, for all of them.  If it raises, the first process raises and the others
    end with exit code 2."""
    if not is_distributed():
        return make()
    result, error = _attempt(make) if is_first() else (None, None)
    message = [result, error is not None]
    dist.broadcast_object_list(message)
    if message[1]:
        raise error or SystemExit(2)
    return message[0]


def first_on_machine(make: Callable[[], Any], place: Place) -> Any:
    """make() in the first process of each machine, and when all of these are done, in the others.

    For downloads: one process of a machine fetches the file, the others find it in the cache.  If it raises in a
    first process, that one raises and all others end with exit code 2.
    """
    if not is_distributed():
        return make()
    result, error = _attempt(make) if place.local_rank == 0 else (None, None)
    if any(gather(error is not None)):
        raise error or SystemExit(2)
    return result if place.local_rank == 0 else make()


def _attempt(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:
        return None, error


def data_parallel(model: nn.Module, device: torch.device, sync_norms: bool = False) -> nn.Module:
    """The model wrapped such that gradients are the mean over all processes.  It shares its weights with `model`.

    sync_norms  batch norm sees the whole batch, not this process's part of it (torch's SyncBatchNorm)

    UserError if that is asked for on CPUs, which have no such norm.
    """
    if not is_distributed():
        return model
    on_gpu = device.type == "cuda"
    if sync_norms and not on_gpu:
        raise UserError("--sync-bn needs GPUs: CPUs have no synchronised batch norm.")
    if sync_norms:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)      # in place: only the norms inside are replaced
    parallel = DistributedDataParallel(model, [device.index] if on_gpu else None, gradient_as_bucket_view=True)
    # Not one message for each statistic of each norm at every step: broadcast_buffers() before they are used will do.
    # Set here, since torch 2.13 renamed the argument; all start from the first process's buffers either way.
    parallel.broadcast_buffers = False
    return parallel


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the first process's running statistics to all: batch norm has seen another part of each batch in each."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


# --- starting -------------------------------------------------------------------------------------------------------

def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the PyTorch ImageNet example."""
    group = parser.add_argument_group("several processes, where torchrun does not start them")
    group.add_argument("--world-size", type=Number(int, -1, 10**6), default=-1, metavar="N", help="number of machines")
    group.add_argument("--rank", type=Number(int, -1, 10**6), default=-1, metavar="N",
                       help="number of this machine, from 0")
    group.add_argument("--dist-url", type=filled, metavar="URL", help="address of the first machine: tcp://HOST:PORT "
                       "(default: torchrun's, else tcp://127.0.0.1:23456)")
    group.add_argument("--dist-backend", choices=("nccl", "gloo"), help="nccl (default) between GPUs; gloo, "
                       "which is slower, also between CPUs")
    group.add_argument("--dist-timeout", type=Number(float, 1, 10**7), default=1800, metavar="SECONDS",
                       help="how long to wait for the other processes at the start (default: %(default)s)")
    group.add_argument("--gpu", type=Number(int, 0, 10**6), metavar="N", help="use this GPU")
    group.add_argument("--multiprocessing-distributed", action="store_true",
                       help="start a process for each GPU of this machine (on a CPU: one)")


def launch(work: Callable[[argparse.Namespace, torch.device, Place], int], args: argparse.Namespace) -> int:
    """work(args, device, place) in every process of this machine; the exit code.

    A UserError is printed as one or two lines, and the exit code is 2; any other error keeps its traceback.  `work`
    must be importable by name.
    """
    nodes, node = max(args.world_size, 1), max(args.rank, 0)
    if node >= nodes:
        raise UserError(f"--rank {node} is no machine of --world-size {nodes}: they count from 0 to {nodes - 1}.")
    each = torch.cuda.device_count() or 1
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:             # torchrun's
        names = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)
        place = Place(*(_from_environment(name, default) for name, default in names))
        if place.rank >= place.world:
            raise UserError(f"The environment has RANK={place.rank} and WORLD_SIZE={place.world}: ranks count from 0.")
        return _run(work, args, place)
    if not args.multiprocessing_distributed or each == 1:
        return _run(work, args, Place(node, nodes))
    context = torch.multiprocessing.spawn(_spawned, (work, args, node, nodes, each), nprocs=each, join=False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)       # Ctrl-C reaches them too: wait while they save
    try:
        while not context.join():
            pass
        return 0
    except torch.multiprocessing.ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 1
    finally:
        signal.signal(signal.SIGINT, before)


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or int(value) < name.endswith("SIZE"):
        raise UserError(f"The environment has {name}={value!r}, which must be a number of processes: unset RANK and "
                        "WORLD_SIZE, or start with torchrun.")
    return int(value)


def _spawned(i: int, work: Callable, args: argparse.Namespace, node: int, nodes: int, each: int) -> None:
    exit_at_once_on_signals()
    sys.exit(_run(work, args, Place(node * each + i, nodes * each, i, each)))


def _run(work: Callable, args: argparse.Namespace, place: Place) -> int:
    try:
        device = process_device(args.gpu, place.local_rank if place.world > 1 else None, args.dist_backend)
        if place.world > 1:
            _join(device, args, place)
        return work(args, device, place)
    except (UserError, torch.OutOfMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if is_distributed():
            dist.destroy_process_group()


def _join(device: torch.device, args: argparse.Namespace, place: Place) -> None:
    """Meet the other processes; returns once all are there."""
    url = args.dist_url or ("env://" if "MASTER_ADDR" in os.environ else "tcp://127.0.0.1:23456")
    if not under_torchrun():
        print(f"process {place.rank}: waiting at {url} for all {place.world}, for up to {args.dist_timeout:g} s",
              file=sys.stderr)
    try:
        store, rank, world = next(rendezvous(url, place.rank, place.world,
                                             timeout=timedelta(seconds=args.dist_timeout)))
    except (ValueError, RuntimeError, OSError) as error:            # no such address, or nobody there in time
        raise UserError(f"Process {place.rank} of {place.world} could not meet the others at {url} within "
                        f"{args.dist_timeout:g} s: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
                        ) from error
    # torchrun may keep its store when it starts everyone again: without a name of its own, an attempt could find the
    # addresses of processes that are gone, and wait for them.
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {world}"
    backend = args.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    dist.init_process_group(backend, store=dist.PrefixStore(attempt, store), world_size=world, rank=rank,
                            device_id=device if backend == "nccl" else None)
