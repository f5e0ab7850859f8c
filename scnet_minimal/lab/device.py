"""Which device to compute on, in which precision and memory layout: decided here and nowhere else."""
import contextlib
import os
import platform
import re
import warnings
from pathlib import Path

import torch
from torch import nn

from .errors import UserError


def best_device() -> torch.device:
    """CUDA if it works, else Apple's MPS, else the CPU.

    "Works" means that one kernel has run: a driver may list a GPU for which this build of torch has no kernels. Then
    a warning gives the reason.
    """
    for name, backend in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if backend.is_available():
            try:
                torch.ones(2, device=name).sum().item()
                return torch.device(name)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"There is a {name} device, but it cannot be used ({reason}). For an old card or driver "
                              "install a build of torch for an older CUDA version.", stacklevel=2)
    return torch.device("cpu")


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device of this name, None: the best one.  RuntimeError, torch's own, if it is not there."""
    if device is None:
        return best_device()
    torch.empty(0, device=device)
    return torch.device(device)


def process_device(gpu: int | None, local_rank: int | None = None, backend: str | None = None) -> torch.device:
    """The device of one process of a command.

    gpu         the number that the user asked for with --gpu; None: not asked for
    local_rank  the number of this process on its machine, if there are several; None: the only process
    backend     what the user asked for with --dist-backend.  Several processes compute on CPUs for "gloo" alone: a
                driver that does not work should not turn eight GPUs into eight slow processes

    UserError if there is no such GPU.
    """
    if gpu is None and local_rank is None:
        return best_device()
    if gpu is None and not torch.cuda.is_available():
        if backend != "gloo":
            raise UserError("There is no GPU that CUDA can use here. To train in several processes on CPUs all the "
                            "same, add --dist-backend gloo.")
        return torch.device("cpu")
    index, count = local_rank if gpu is None else gpu, torch.cuda.device_count()
    if not 0 <= index < count:
        raise UserError(f"There is no GPU {index}: this machine has {count} that CUDA can use.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


# --- precision and layout -------------------------------------------------------------------------------------------

def amp_dtype(device: torch.device, amp: bool | None = None) -> torch.dtype | None:
    """The half precision of mixed-precision training; None: float32 throughout.

    amp  None: where it pays, which is on CUDA; True: on the CPU too; False: nowhere

    On CUDA it is bfloat16 where the GPU has it natively, else float16, which needs loss scaling. On the CPU bfloat16.
    """
    if device.type == "cuda" and amp is not False:
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and amp else None


def autocast(device: torch.device, amp: bool | None = None) -> contextlib.AbstractContextManager:
    """torch.autocast in amp_dtype(device, amp), or a context that does nothing."""
    dtype = amp_dtype(device, amp)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last is up to twice as fast on a CPU, and CUDA's half-precision kernels need it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model itself, moved to the device in the layout that is fast there."""
    model.to(device, memory_format=memory_format(device))
    if device.type == "cuda":
        # A 1x1 kernel (K, C, 1, 1) is in both layouts at once, and torch leaves its strides as they are; cuDNN gives
        # its gradient the strides of channels last.  Where the two differ, several processes copy it at every step.
        for p in model.parameters():
            if p.ndim == 4 and p.shape[2:] == (1, 1):
                channels = p.shape[1]
                p.data = p.data.as_strided(p.shape, (channels, 1, channels, channels))
    return model


def sum_dtype(device: torch.device) -> torch.dtype:
    """The widest float for sums over many batches: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def set_deterministic(deterministic: bool) -> None:
    """Whether cuDNN repeats itself exactly, or measures its convolution algorithms and takes the fastest."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic


# --- the machine ----------------------------------------------------------------------------------------------------

def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators that layers such as dropout draw from, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Back to random_states(); a state that is missing, as after a change of device, stays as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type])


def describe_machine(device: torch.device) -> str:
    """Processor or GPU, and versions, in one line: what belongs beside every number that was timed."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {versions}"
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count != 1)}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{processor_name()}, {'MPS, ' if device.type == 'mps' else ''}{threads}; {versions}"


def processor_name() -> str:
    """The CPU's model, such as "AMD EPYC"; at least its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return model[1] if model else platform.processor() or platform.machine()
