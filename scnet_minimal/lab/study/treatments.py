"""What can be done to a network to make it fast, as steps that are joined into chains.

A chain is a string such as "fused + channels_last + compiled"; STEPS has what each step does.
"""
import copy
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...fuse import fuse

Run = Callable[[Tensor], Tensor]


# --- the steps: each takes what runs and its input, and returns both --------------------------------------------------

def _compiled(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """By torch.compile. With TORCHINDUCTOR_FREEZING=1 in the environment, weights become constants of the program,
    laid out for the CPU's convolutions. As an option of torch.compile that has no effect (2.15).
    """
    return torch.compile(run, dynamic=False), x


def _cuda_graph(run: Run, x: Tensor) -> tuple[Run, Tensor]:
    """All kernels of a pass recorded once, then launched as one; the input has a fixed place in memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):                                           # what is set up at first use must not be recorded
            run(x)
    torch.cuda.current_stream().wait_stream(side)
    graph, place = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        y = run(place)

    def replay(x: Tensor) -> Tensor:
        place.copy_(x)
        graph.replay()
        return y
    return replay, x


def _example(x: Tensor) -> dict:
    """What both exporters need: one input (from a batch of one they would conclude that it is always one)."""
    return dict(args=(x if len(x) > 1 else x.repeat(2, 1, 1, 1),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _exported(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """Through torch.export into a file and back, for batches of any size."""
    program = torch.export.export(run, **_example(x))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")    # torch 2.11; nothing writes to it
        torch.export.save(program, file := Path(folder, "network.pt2"))
        return torch.export.load(file).module(), x


def _onnx_runtime(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """Through an .onnx file, for batches of any size, to another engine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        torch.onnx.export(run, f=file, dynamo=True, verbose=False, **_example(x))
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), x


def _train_step(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """Forward and backward; no optimizer, which costs the same for all networks of a size."""
    def step(x: Tensor) -> Tensor:
        run.zero_grad()
        y = run(x)
        y.logsumexp(1).mean().backward()
        return y.detach()
    return step, x


STEPS = {
    "straightforward": lambda run, x: (run, x),
    "fused": lambda run, x: (fuse(run), x),
    "channels_last": lambda run, x: tuple(t.to(memory_format=torch.channels_last) for t in (run, x)),
    "bfloat16": lambda run, x: (run.bfloat16(), x.bfloat16()), "float16": lambda run, x: (run.half(), x.half()),
    "compiled": _compiled, "CUDA graph": _cuda_graph, "exported": _exported, "ONNX Runtime": _onnx_runtime,
    "training step": _train_step,
}
FAST = "fused + channels_last"
CHAINS = ["straightforward", "fused", FAST, f"{FAST} + compiled", f"{FAST} + compiled + CUDA graph",
          f"{FAST} + bfloat16", f"{FAST} + bfloat16 + compiled", f"{FAST} + bfloat16 + compiled + CUDA graph",
          f"{FAST} + float16", f"{FAST} + float16 + compiled + CUDA graph",
          "fused + exported", "fused + ONNX Runtime"]
TRAIN_CHAINS = ["training step", "channels_last + training step", "channels_last + compiled + training step"]
COMPILERS = "g++", "clang++", "cl"


# --- using them -----------------------------------------------------------------------------------------------------

def prepare(network: nn.Module, chain: str, x: Tensor) -> Callable[[], Tensor]:
    """One pass as a function without arguments: a copy of the network after the chain's steps, on its own input."""
    run = copy.deepcopy(network)
    train = "training step" in chain
    run.train(train)
    for step in chain.split(" + "):
        run, x = STEPS[step](run, x)

    def once() -> Tensor:
        with torch.inference_mode(not train):
            return run(x)
    return once


def missing(step: str, device: torch.device | str) -> str:
    """Why this machine cannot take a step on this device; "" where it can."""
    kind = torch.device(device).type
    if step == "compiled" and kind == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        return "needs a C++ compiler (Debian, Ubuntu: apt install g++)"
    if step == "CUDA graph" and kind != "cuda":
        return "needs a CUDA device"
    if step == "bfloat16" and not has_bfloat16(device):
        return "needs a device with bfloat16 arithmetic; elsewhere it is emulated, and slow"
    if step == "float16" and kind == "cpu":
        return "is measured on GPUs"
    if step == "ONNX Runtime" and kind != "cpu":
        return "is measured on the CPU"
    if step == "ONNX Runtime":
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            return f'needs {error.name} (pip install "scnet-minimal[onnx]")'
    return ""


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    kind = torch.device(device).type
    if kind != "cpu":
        return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if hasattr(torch.cpu, "get_capabilities"):
        return any(on and name.endswith("bf16") for name, on in torch.cpu.get_capabilities().items())
    cpuinfo = Path("/proc/cpuinfo")                                  # an older torch: avx512_bf16, amx_bf16, ARM's bf16
    return cpuinfo.is_file() and re.search(r"bf16\b", cpuinfo.read_text()) is not None
