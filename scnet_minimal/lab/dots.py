"""The two-dots test: can a block compare two things that lie further apart than its window?

A picture of noise holds two 2x2 dots, each in one of three colours.  The question is whether their colours match.
One dot alone says nothing: all colours are equally likely in both classes.  Adding up what single dots look like is
right at most 2 times in 3 (count one colour, say "match" where there is none); more needs a place where both are seen.

    accuracy = train(lambda: nn.Conv2d(16, 16, 3, padding=1), seed=0)

trains stem -> block -> ReLU -> global average -> linear on 2,000 such pictures and tests it on 1,000 others.
"""
import math
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

CHANNELS = 16   # that the stem gives and the block keeps
_INITIALISING = threading.Lock()   # initial weights come from torch's one global generator


def two_dots(n: int, seed: int, *, distance: tuple[float, float] = (4, 12), size: int = 20) -> tuple[Tensor, Tensor]:
    """n pictures (n, 3, size, size) float32 and labels (n,): 1 where the colours match, exactly half of them.

    distance: the least and the greatest length of the line between the dots' centres, px; any direction.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.3, (n, 3, size, size)).astype(np.float32)
    y = np.arange(n) % 2
    for i in range(n):
        while True:                                                    # both dots inside, at the distance asked for
            (r0, c0), angle, length = rng.integers(0, size - 1, 2), rng.uniform(0, 2 * np.pi), rng.uniform(*distance)
            r1, c1 = round(r0 + length * np.sin(angle)), round(c0 + length * np.cos(angle))
            if 0 <= min(r1, c1) and max(r1, c1) < size - 1 and distance[0] <= np.hypot(r1 - r0, c1 - c0) <= distance[1]:
                break
        first = rng.integers(3)
        second = first if y[i] else (first + rng.integers(1, 3)) % 3
        x[i, first, r0:r0 + 2, c0:c0 + 2] += 2
        x[i, second, r1:r1 + 2, c1:c1 + 2] += 2
    return torch.from_numpy(x), torch.from_numpy(y)


def network(block: nn.Module) -> nn.Sequential:
    """stem (3x3 convolution, norm, ReLU) -> block -> ReLU -> global average -> linear: (B, 3, H, W) -> (B, 2)."""
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
                         block, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2))


def train(block: Callable[[], nn.Module], seed: int, *, epochs: int = 16, batch_size: int = 40, **data) -> float:
    """Test accuracy, 0 to 1, of a network around block() after training from this seed.  **data goes to two_dots."""
    x, y = two_dots(2000, seed, **data)
    test_x, test_y = two_dots(1000, 1_000_000 + seed, **data)
    with _INITIALISING, torch.random.fork_rng(devices=[]):             # leaves the caller's random numbers alone
        torch.manual_seed(seed)
        net = network(block())
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=shuffle).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        return (net(test_x).argmax(1) == test_y).float().mean().item()


def compare(blocks: dict[str, Callable[[], nn.Module]], seeds: Iterable[int] = (0, 1, 2),
            **data) -> dict[str, list[float]]:
    """train() for every block and seed, with a progress bar: {name: [accuracy of each seed]}.

    Networks this small gain nothing from several cores, so each run gets one, and as many runs go at once.
    """
    runs = [(name, seed) for name in blocks for seed in seeds]
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores) as pool:
            jobs = [pool.submit(train, blocks[name], seed, **data) for name, seed in runs]
            for _ in tqdm(as_completed(jobs), total=len(jobs), unit="run", desc="two dots", leave=False,
                          file=sys.stdout):
                pass
    finally:
        torch.set_num_threads(cores)
    found = {name: [] for name in blocks}
    for (name, _), job in zip(runs, jobs):
        found[name].append(job.result())
    return found
