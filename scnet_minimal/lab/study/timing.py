"""Timing networks side by side, and the memory they need."""
import json
import logging
import math
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import profile


def silence_tools() -> None:
    """Keep the profiler, the compiler and torch.export.load from writing to stderr; call it before their first use."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)      # CUDA's tools without a GPU are fine
    warnings.filterwarnings("ignore", "The given buffer is not writable")       # torch 2.11, which only reads it


def settled(network: nn.Module, x: Tensor | None = None) -> nn.Module:
    """The network itself, its norms with the statistics of one batch instead of the initial 0 and 1: x (N, 3, H, W), by
    default noise.

    Otherwise activations would grow from block to block until a gate's sigmoid is saturated everywhere.
    """
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 64, 64) if x is None else x)
    return network


def interleaved(runs: dict[str, Callable], rounds: int, synchronize: Callable = lambda: None,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Milliseconds of every run in every round; the runs of a round take turns, in a new order each time.

    synchronize  waits until the device has finished; called before each reading of the clock
    clock        time.process_time counts what this process computes, not what it waits for: steadier on a busy machine
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
    return times


def ratio(these: list[float], those: list[float]) -> float:
    """How many times longer `these` took than `those`: the median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(these, those))


def median_interval(values: list[float]) -> tuple[float, float]:
    """Where the true median lies, with 95 % confidence: an order statistic of the values and its mirror image.

    The median is below the k-th smallest of n independent values with the probability of fewer than k heads in n
    throws of a coin; no other assumption. At least 6 rounds, or ValueError.
    """
    n, cut, tail = len(values), 0, 1
    if n < 6:
        raise ValueError(f"An interval of 95 % needs at least 6 rounds, found {n}.")
    while 2 * (tail + math.comb(n, cut + 1)) <= 0.05 * 2**n:
        cut += 1
        tail += math.comb(n, cut)
    values = sorted(values)
    return values[cut], values[n - 1 - cut]


def ratio_interval(these: list[float], those: list[float]) -> tuple[float, float]:
    """Where the true median of the ratios within the rounds lies, with 95 % confidence."""
    return median_interval([a / b for a, b in zip(these, those, strict=True)])


def peak_megabytes(once: Callable[[], Tensor], device: torch.device) -> float | None:
    """The most that the tensors made during one run occupied at a time, in 10^6 bytes; None where torch cannot tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        once()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    if device.type != "cpu":
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Profiler clears events")           # torch 2.11, about its own cycles
        with profile(profile_memory=True) as record:
            once()
    with tempfile.TemporaryDirectory() as folder:
        record.export_chrome_trace(str(file := Path(folder, "trace.json")))
        events = json.loads(file.read_text(errors="replace"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / 1e6
