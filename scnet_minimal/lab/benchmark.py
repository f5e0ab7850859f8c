"""How fast, against what: one table of networks and treatments, timed side by side.

    python -m scnet_minimal.lab.benchmark        (--help tells the rest)

A row is a network after a chain of steps, such as "fused + channels_last + compiled".  All rows of a batch size run one
after the other, in another order each round, so that whatever else the machine does meets all of them alike; ratios are
taken within a round.  STEPS says what each step does, CHAINS which are measured.
"""
import argparse
import copy
import json
import logging
import os
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.profiler import profile

from ..scnet import fuse
from . import nets

os.environ.setdefault("KINETO_LOG_LEVEL", "99")                      # the profiler writes its diary to stderr,
warnings.filterwarnings("ignore", ".*Profiler clears events")       # and that of torch 2.11 speaks of cycles
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)     # CUDA tools without a GPU are no trouble
COMMAND = "python -m scnet_minimal.lab.benchmark"
EXAMPLES = f"""
three worked examples:

  {COMMAND}
      SCNet-50 beside ResNet-50 at 224 px in batches of 1, 8 and 32; half an hour on two CPU cores, most of it waiting
      for the compiler.

  {COMMAND} --batch 8 --rounds 5 --only straightforward fused "fused + channels_last"
      A minute: what folding and the memory layout give. Any chain of the steps below can be named.

  {COMMAND} --train --batch 32 --size 128 --json runs/train.json
      A step of training (forward and backward) and its memory; the file holds every single time.

  ms          the median of all rounds, and in brackets the middle half of them
  gain        how many times faster than the same network's first row, round by round (the median)
  / resnet50  time over that of the second network under the same treatment; 1.00 is level
  peak MB     of the tensors that live at once beside weights and pictures, in one run
  apart       the largest difference from the first row's output, relative to the largest value in it

steps: {{steps}}
"""

Run = Callable[[Tensor], Tensor]


# --- the steps: each takes what runs and its input, and gives both back, faster ---------------------------------------

def _compiled(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """On a CPU frozen: weights are constants, laid out for the convolutions, which take the ReLU behind them along.

    The flag (TORCHINDUCTOR_FREEZING) is read at the first run; as an option of torch.compile it went unheard (2.15).
    """
    torch._inductor.config.freezing = x.device.type == "cpu" and not run.training
    return torch.compile(run, dynamic=False), x


def _cuda_graph(run: Run, x: Tensor) -> tuple[Run, Tensor]:
    """All kernels of a pass recorded once, then launched as one; the input has its fixed place in memory."""
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
    """What both exporters need to know: one input (of one picture they would conclude that there is always one)."""
    return dict(args=(x if len(x) > 1 else x.repeat(2, 1, 1, 1),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _exported(run: nn.Module, x: Tensor) -> tuple[Run, Tensor]:
    """Through torch.export into a file and back, for batches of any size."""
    program = torch.export.export(run, **_example(x))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")    # torch 2.11; nobody does
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
    """Forward and backward; no optimizer, which costs all networks of a size alike."""
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
    "bfloat16": lambda run, x: (run.bfloat16(), x.bfloat16()),
    "compiled": _compiled, "CUDA graph": _cuda_graph, "exported": _exported, "ONNX Runtime": _onnx_runtime,
    "training step": _train_step,
}
COMPILERS = "g++", "clang++", "cl"
FAST = "fused + channels_last"
CHAINS = ["straightforward", "fused", FAST, f"{FAST} + compiled", f"{FAST} + compiled + CUDA graph",
          f"{FAST} + bfloat16", f"{FAST} + bfloat16 + compiled", f"{FAST} + bfloat16 + compiled + CUDA graph",
          "fused + exported", "fused + ONNX Runtime"]
TRAIN_CHAINS = ["training step", "channels_last + training step", "channels_last + compiled + training step"]


def missing(step: str, device: str) -> str:
    """Why a step cannot be taken on this machine; empty where it can."""
    if step == "compiled" and device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        return "needs a C++ compiler (Debian, Ubuntu: apt install g++)"
    if step == "CUDA graph" and device != "cuda":
        return "needs a CUDA device"
    if step == "bfloat16" and not has_bfloat16(device):
        return "needs a device with bfloat16 arithmetic; elsewhere it is imitated, and slow"
    if step == "ONNX Runtime" and device != "cpu":
        return "is measured on the CPU"
    if step == "ONNX Runtime":
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            return f'needs {error.name} (pip install "scnet-minimal[onnx]")'
    return ""


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 by itself."""
    if device != "cpu":
        return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):                   # an older torch
        return torch.cpu._is_avx512_bf16_supported()
    return any(on and name.endswith("bf16") for name, on in torch.cpu.get_capabilities().items())


# --- measuring ------------------------------------------------------------------------------------------------------

def prepare(network: nn.Module, chain: str, x: Tensor) -> Callable[[], Tensor]:
    """What a row runs: a copy of the network after the chain's steps, on its own input."""
    run = copy.deepcopy(network)
    train = "training step" in chain
    run.train(train)
    for step in chain.split(" + "):
        run, x = STEPS[step](run, x)

    def once() -> Tensor:
        with torch.inference_mode(not train):
            return run(x)
    return once


def settled(network: nn.Module) -> nn.Module:
    """The network with the norms' statistics of one batch of noise, in place of those that it was born with.

    Otherwise its values would grow from block to block, past where a gate's sigmoid tells numbers from rounding errors.
    """
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 64, 64))
    return network


def interleaved(runs: dict[str, Callable], rounds: int, synchronize: Callable = lambda: None,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Milliseconds of every run in every round; each round in an order of its own.

    clock: time.process_time counts what this process computes and not what it waits for: steadier where others compute.
    """
    times, shuffle = {name: [] for name in runs}, random.Random(0).shuffle
    for _ in range(rounds):
        names = list(runs)
        shuffle(names)
        for name in names:
            synchronize()
            start = clock()
            runs[name]()
            synchronize()
            times[name].append(1000 * (clock() - start))
    return {name: times[name] for name in runs}


def ratio(these: list[float], those: list[float]) -> float:
    """How many times longer `these` took than `those`: the median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(these, those))


def peak_megabytes(once: Callable[[], Tensor], device: str) -> float:
    """The most that the tensors made during one run held at a time, 10^6 bytes."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(profile_memory=True) as record:
        once()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(str(file := Path(folder, "trace.json")))
        events = json.loads(file.read_text(errors="replace"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / 1e6


def measure(networks: list[str], chains: list[str], batch: int, size: int, rounds: int,
            device: str) -> tuple[list[dict], dict[str, str]]:
    """The rows of one batch size, and the chains that were left out, each with its reason."""
    torch.compiler.reset()
    torch.manual_seed(0)
    rows, left_out, first = {}, {}, {}
    for network in networks:
        model, x = settled(nets.build(network)).to(device), torch.randn(batch, 3, size, size, device=device)
        for chain in chains:
            reasons = [f"{step} {why}" for step in chain.split(" + ") if (why := missing(step, device))]
            if reasons:
                left_out[chain] = reasons[0]
                continue
            print(f"  batch {batch}: {network}, {chain}", file=sys.stderr)
            try:
                once = prepare(model, chain, x)
                y = once().float().clone()
                once()
            except Exception as error:                               # a tool of another version: the rest still counts
                left_out[chain] = f"{network}: {type(error).__name__}: {str(error).strip().splitlines()[0][:150]}"
                continue
            expected = first.setdefault(network, y)
            elsewhere = chain.endswith(("CUDA graph", "ONNX Runtime"))        # memory that torch does not hand out
            rows[network, chain] = dict(
                network=network, treatment=chain, batch=batch, size=size, once=once,
                peak_mb=None if elsewhere else peak_megabytes(once, device),
                apart=((y - expected).abs().max() / expected.abs().max()).item())
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = interleaved({key: row.pop("once") for key, row in rows.items()}, rounds, synchronize)
    for (network, chain), row in rows.items():
        ms = times[network, chain]
        low, middle, high = statistics.quantiles(ms, n=4, method="inclusive")
        row |= dict(ms=middle, quartiles=[low, high], all_ms=ms, images_per_s=1000 * batch / middle,
                    gain=ratio(next(t for (n, _), t in times.items() if n == network), ms))
        if len(networks) == 2 and network == networks[0] and (networks[1], chain) in times:
            row["against_second"] = ratio(ms, times[networks[1], chain])
    return list(rows.values()), left_out


# --- the table ------------------------------------------------------------------------------------------------------

def machine(device: str) -> str:
    """Device and versions, one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {versions}"
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}; {versions}"


def table(rows: list[dict], networks: list[str]) -> str:
    second = f"/ {networks[1]}" if len(networks) == 2 else ""
    wide = max((len(row["treatment"]) for row in rows), default=0) + 2
    lines, network = [], None
    for row in rows:
        if row["network"] != network:
            network = row["network"]
            lines.append(f"{network:{wide}} {'ms':>7} {'(middle half)':17} {'images/s':>8} {'gain':>6} {second:>10} "
                         f"{'peak MB':>7} {'apart':>5}")
        half = "({:.1f} to {:.1f})".format(*row["quartiles"])
        against = f"{row['against_second']:.2f}" if "against_second" in row else ""
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        lines.append(f"  {row['treatment']:{wide - 2}} {row['ms']:7.1f} {half:17} {row['images_per_s']:8.1f} "
                     f"{row['gain']:5.2f}x {against:>10} {peak:>7} {row['apart']:5.0e}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__.split("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(steps=", ".join(STEPS)))
    parser.add_argument("--networks", nargs="+", default=["scnet50", "resnet50"], metavar="NAME",
                        help="two are also compared with each other; any of torchvision's classifiers (%(default)s)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], metavar="N", help="pictures at a time")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of the pictures (%(default)s)")
    parser.add_argument("--rounds", type=int, default=11, help="how often each row runs (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="CHAIN", help="treatments; the first is what the others gain upon")
    parser.add_argument("--train", action="store_true", help="a step of training instead of inference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time of every row there")
    args = parser.parse_args(argv)
    chains = args.only or (TRAIN_CHAINS if args.train else CHAINS)
    unknown = [step for chain in chains for step in chain.split(" + ") if step not in STEPS]
    if unknown:
        parser.error(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}, joined by ' + '")
    if args.rounds < 2 or min(args.batch) < 1:
        parser.error("a median needs 2 rounds or more, and a batch a picture")
    if args.threads:
        torch.set_num_threads(args.threads)

    print(f"{machine(args.device)}; {args.size} px, {args.rounds} rounds")
    rows, left_out = [], {}
    for batch in args.batch:
        found, reasons = measure(args.networks, chains, batch, args.size, args.rounds, args.device)
        print(f"\nbatch {batch}\n{table(found, args.networks)}", flush=True)
        rows, left_out = rows + found, left_out | reasons
    for chain, reason in left_out.items():
        print(f"left out: {chain}: {reason}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(dict(machine=machine(args.device), rows=rows, left_out=left_out), indent=1))


if __name__ == "__main__":
    main()
