"""Mark the matches: a game that a block wins only if it looks wide, finely, and in the right place.

A map of 24x24 pixels holds two pairs of dots on faint noise.  A dot is 2x2 pixels in one of two colours.  Every pixel
gets a label: background, or dot whose partner has the same colour (match), or dot whose partner has not (no match).

    wide        the answer about a dot lies `distance` pixels away: the larger of the steps down and across, so that
                the pairs that a square window sees are those up to a distance
    fine        every pixel counts, and a dot has four
    in place    both pairs are on the map, and only one's own partner counts: the nearest dot

The network around the block sees 3 pixels before it and 1 after it.  The score is the mean IoU (the pixels rightly
given a label, over those that have it or were given it) of match and no match: 1 for a perfect map; 1/3 for one that
finds every dot and guesses the rest.

    net = train_one(BLOCKS["sc4"].make, seed=0)             # 2 to 3 s of one core
    score(net, seed=0)                                      # {2: 0.92, ..., 9: 0.43, "all": 0.82}

The record of many seeds is in data/studies; `python -m scnet_minimal.lab.study dots` makes it.
"""
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...scnet import SCConv, SelfCalibration
from .count import measured_field
from .ghost import GhostModule
from .record import QUANTILES, quantiles

CHANNELS = 16                       # that the stem gives and the block keeps
SIZE = 24                           # of the map, px; 8 divides it, the largest pooling here
DISTANCES = tuple(range(2, 10))     # px
PICTURES = 3200                     # to train on, each seen once


# --- the pictures -----------------------------------------------------------------------------------------------------

def make_pictures(n: int, seed: int, distances: Sequence[int] = DISTANCES) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, 24, 24) float32, and labels (n, 24, 24) int64: 0 background, 1 match, 2 no match.

    Both pairs of a picture are equally far apart, by one of `distances` (2 to 11 px), and at least 2 px further from
    each other.
    """
    rng = np.random.default_rng(seed)
    corner, colour = place_dots(rng.choice(distances, n), rng), 2 * rng.integers(0, 2, (n, 2, 2))   # red 0, blue 2
    label = np.where(colour[..., :1] == colour[..., 1:], 1, 2)                     # (n, 2, 1): one per pair
    x = rng.standard_normal((n, 3, SIZE, SIZE), dtype=np.float32) * np.float32(0.05)
    y = np.zeros((n, SIZE, SIZE), np.int64)
    picture = np.arange(n)[:, None, None]
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):                           # the four pixels of every dot
        row, column = corner[..., 0] + down, corner[..., 1] + right
        x[picture, colour, row, column] += 1
        y[picture, row, column] = label
    return torch.from_numpy(x), torch.from_numpy(y)


def place_dots(distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Upper left pixels of the dots, (n, 2 pairs, 2 dots, row and column), for the distance (n,) in each picture."""
    corner, todo = np.zeros((len(distance), 2, 2, 2), int), np.arange(len(distance))
    while len(todo):                                                               # until every picture is as it should
        d = np.broadcast_to(distance[todo, None, None], (len(todo), 2, 1))
        step = rng.integers(-d, d + 1, (len(todo), 2, 2))                          # from a dot to its partner
        axis, sign = rng.integers(0, 2, d.shape), rng.choice((-1, 1), d.shape)
        np.put_along_axis(step, axis, sign * d, axis=2)                            # the larger step is the distance
        first = rng.integers(0, SIZE - 1 - abs(step)) + np.maximum(-step, 0)       # both dots on the map
        dots = np.stack([first, first + step], axis=2)
        apart = abs(dots[:, 0, :, None] - dots[:, 1, None]).max(-1).min((1, 2))    # pair from pair
        right = apart >= distance[todo] + 2
        corner[todo[right]], todo = dots[right], todo[~right]
    return corner


# --- the network, its training, its score -----------------------------------------------------------------------------

def conv_norm(inputs: int = CHANNELS, outputs: int = CHANNELS, kernel: int = 3, dilation: int = 1,
              groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size of the map, and its norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=groups,
                     bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def network(block: nn.Module) -> nn.Sequential:
    """3x3 stem (norm, ReLU) -> block -> ReLU -> 1x1: pictures (B, 3, H, W) to logits (B, 3, H, W)."""
    return nn.Sequential(conv_norm(3), nn.ReLU(), block, nn.ReLU(), nn.Conv2d(CHANNELS, 3, 1))


def train_one(make_block: Callable[[], nn.Module], seed: int, pictures: int = PICTURES) -> nn.Sequential:
    """A network around make_block(), trained from this seed on `pictures` pictures, in evaluation mode."""
    x, y = make_pictures(pictures, seed)
    with torch.random.fork_rng(devices=[]):                    # leaves the caller's random numbers alone
        torch.manual_seed(seed)
        net = network(make_block())
    batches = list(zip(x.split(16), y.split(16)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=len(batches))
    weight = torch.tensor([0.05, 1, 1])                        # of 576 pixels 560 are background
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y, weight).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def dot_iou(predicted: Tensor, y: Tensor) -> float:
    """Of match and no match, 0 to 1; predicted and y: labels of one shape."""
    both = [((predicted == k) & (y == k)).sum() / ((predicted == k) | (y == k)).sum() for k in (1, 2)]
    return float(sum(both) / 2)


@torch.inference_mode()
def score(net: nn.Module, seed: int, pictures: int = 64, distances: Sequence[int] = DISTANCES) -> dict:
    """Mean IoU on `pictures` held-out pictures of each distance: {distance: IoU, ..., "all": IoU of all together}."""
    held_out = [make_pictures(pictures, 1_000_000 + 1000 * seed + d, [d]) for d in distances]
    predicted, labels = [net(x).argmax(1) for x, _ in held_out], [y for _, y in held_out]
    scores = {d: dot_iou(p, y) for d, p, y in zip(distances, predicted, labels)}
    return scores | {"all": dot_iou(torch.cat(predicted), torch.cat(labels))}


def ceiling(block: nn.Module, pictures: int = 10_000) -> np.ndarray:
    """The best mean IoU that an untrained block's window allows, with the stem in front: a share for each distance.

    A pixel that sees its partner is right, any other tosses a coin: if a share q sees it, IoU = (1 + q) / (3 - q).
    """
    chain = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), block)
    sees = np.stack([measured_field(chain, CHANNELS, size=SIZE, at=(at, at), through_relus=True).any(1)
                     for at in range(SIZE)])                 # whatever ReLU happens to be at 0 before training
    sees = 1.0 * (sees[:, :-1] | sees[:, 1:])                # [a, b]: row a sees row b or b + 1, the two of a dot
    share = (sees[:-1] + sees[1:]) / 2                       # the mean of the asking dot's two rows
    best = []
    for distance in DISTANCES:
        corner = place_dots(np.full(pictures, distance), np.random.default_rng(distance))    # (n, pairs, dots, 2)
        q = share[corner[:, :, 0], corner[:, :, 1]].prod(-1).mean()                          # square: rows x columns
        best.append((1 + q) / (3 - q))
    return np.array(best)


# --- the blocks: 16 channels in, 16 out, and a norm after every convolution -------------------------------------------

class Variant(SCConv):
    """SCConv on 16 channels with one thing changed; with nothing changed, SCConv."""

    def __init__(self, r: int = 4, *, product: bool = True, wide: bool = True, identity: bool = True,
                 pool: Callable[[Tensor, int], Tensor] = F.avg_pool2d, mode: str = "nearest"):
        super().__init__(CHANNELS, r)
        self.r, self.product, self.identity, self.pool, self.mode = r, product, identity, pool, mode
        if not wide:
            del self.k2

    def calibrate(self, x: Tensor) -> Tensor:
        seen = x if self.identity else 0
        if hasattr(self, "k2"):
            small = self.k2[1:](self.pool(x, self.r))                              # k2 without its own pooling
            seen = seen + F.interpolate(small, size=x.shape[2:], mode=self.mode)
        gate = self.gate(seen)
        return self.k4(self.k3(x) * gate if self.product else self.k3(x) + gate)


class SqueezeExcite(nn.Module):
    """3x3, then every channel weighted by what the whole map holds (Hu et al. 2018, https://arxiv.org/abs/1709.01507).
    """

    def __init__(self):
        super().__init__()
        self.conv = conv_norm()
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, 4, 1), nn.ReLU(),
                                   nn.Conv2d(4, CHANNELS, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.weigh(x)


def in_a_row(*layers: nn.Module) -> nn.Sequential:
    """Layers in series with a ReLU between them."""
    return nn.Sequential(*[m for layer in layers for m in (nn.ReLU(), layer)][1:])


class Halves(nn.Module):
    """Half of the channels through `far`, the other half through a 3x3: SCConv's split around another block."""

    def __init__(self, far: nn.Module):
        super().__init__()
        self.far, self.near = far, conv_norm(CHANNELS // 2, CHANNELS // 2)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return torch.cat([self.far(x1), self.near(x2)], dim=1)


def ghost(dilation: int = 1, first: int = 1, *, alone: bool = True) -> GhostModule:
    """Eight maps by a 3x3 of dilation `first`, eight more by a 3x3 on each of those alone, or on all of them."""
    module = GhostModule(CHANNELS, CHANNELS, kernel_size=3)
    primary, cheap, half = module.primary_conv[0], module.cheap_operation[0], CHANNELS // 2
    primary.dilation = primary.padding = (first, first)
    cheap.dilation = cheap.padding = (dilation, dilation)
    if not alone:
        module.cheap_operation[0] = nn.Conv2d(half, half, 3, padding=dilation, dilation=dilation, bias=False)
    return module


class Block(NamedTuple):
    """window: its side in px, without the stem; where pooling makes it depend on the pixel, the largest.
    near, far: in px, stem included: every pixel sees all that lies up to `near` from it, and none sees beyond `far`.
    So all of a dot's pixels see a partner up to the distance near, and the last glimpse is at far + 1: dots are 2 px
    wide, so pixels that face each other are a pixel closer than their dots.  None means the whole map.
    """

    label: str
    window: int | None
    near: int | None
    far: int | None
    make: Callable[[], nn.Module]


BLOCKS = {
    "plain": Block("plain 3×3", 3, 2, 2, conv_norm),
    "two": Block("two plain 3×3", 5, 3, 3, lambda: in_a_row(conv_norm(), conv_norm())),
    "dilated3": Block("dilated 3×3, d = 3", 7, 4, 4, lambda: conv_norm(dilation=3)),
    "dilated4": Block("dilated 3×3, d = 4", 9, 1, 5, lambda: conv_norm(dilation=4)),
    "dilated6": Block("dilated 3×3, d = 6", 13, 1, 7, lambda: conv_norm(dilation=6)),
    "stack": Block("dilations 1, 2, 4 in a row", 15, 8, 8,
                   lambda: in_a_row(conv_norm(), conv_norm(dilation=2), conv_norm(dilation=4))),
    "stack_half": Block("dilations 1, 2, 4 on half", 15, 8, 8, lambda: Halves(
        in_a_row(*(conv_norm(CHANNELS // 2, CHANNELS // 2, dilation=d) for d in (1, 2, 4))))),
    "large": Block("13×13", 13, 7, 7, lambda: conv_norm(kernel=13)),
    "se": Block("3×3 with squeeze-and-excitation", None, None, None, SqueezeExcite),
    "coarse": Block("pool 4 → 3×3 → up, no gate", 12, 5, 8, lambda: nn.Sequential(
        nn.AvgPool2d(4), conv_norm(), nn.Upsample(scale_factor=4))),
    "ghost": Block("Ghost module", 5, 3, 3, ghost),
    "ghost_dilated": Block("Ghost module, cheap operation with d = 4", 11, 6, 6, lambda: ghost(dilation=4)),
    "ghost_first": Block("Ghost module, primary convolution with d = 4", 11, 6, 6, lambda: ghost(first=4)),
    "ghost_both": Block("Ghost module, both with d = 4", 17, 1, 9, lambda: ghost(dilation=4, first=4)),
    "ghost_mixed": Block("cheap operation with d = 4 that sees all maps", 11, 6, 6,
                         lambda: ghost(dilation=4, alone=False)),
    "sc1": Block("SCConv, r = 1", 5, 3, 3, lambda: SCConv(CHANNELS, 1)),
    "sc2": Block("SCConv, r = 2", 8, 4, 5, lambda: SCConv(CHANNELS, 2)),
    "sc4": Block("SCConv, r = 4", 16, 6, 9, lambda: SCConv(CHANNELS, 4)),
    "sc8": Block("SCConv, r = 8", 32, 10, 17, lambda: SCConv(CHANNELS, 8)),
    "sc4_sum": Block("SCConv, added instead of multiplied", 16, 6, 9, lambda: Variant(product=False)),
    "sc4_no_k2": Block("SCConv without K₂", 5, 3, 3, lambda: Variant(wide=False)),
    "sc4_no_identity": Block("SCConv without adding x₁", 16, 6, 9, lambda: Variant(identity=False)),
    "sc4_max": Block("SCConv, max instead of average", 16, 6, 9, lambda: Variant(pool=F.max_pool2d)),
    "sc4_bilinear": Block("SCConv, bilinear instead of nearest", 20, 8, 11, lambda: Variant(mode="bilinear")),
    "calibrate_all": Block("all calibrated: 1×1, K₂ to K₄ on 9 channels, 1×1", 16, 6, 9, lambda: nn.Sequential(
        conv_norm(CHANNELS, 9, 1), SelfCalibration(9), conv_norm(9, CHANNELS, 1))),
}


# --- one run of the record --------------------------------------------------------------------------------------------

def play(job: dict) -> dict:
    """Train and score job["block"] with job["seed"] on job["pictures"]: the job, CPU seconds, and scores as text."""
    start = time.process_time()
    net = train_one(BLOCKS[job["block"]].make, job["seed"], job["pictures"])
    scores = score(net, job["seed"])
    row = {**job, "cpu_s": f"{time.process_time() - start:.1f}", "iou": f"{scores['all']:.4f}"}
    return row | {f"iou_{d}": f"{scores[d]:.4f}" for d in DISTANCES}


def dots_table(rows: Sequence[dict]) -> str:
    """Quantiles over seeds per setting and block, in points of IoU, and the median at each distance."""
    by = ("pictures", "isa", "threads", "torch", "processor", "block")
    overall = quantiles(rows, by, "iou")
    at = {d: quantiles(rows, by, f"iou_{d}") for d in DISTANCES}
    heads = ["min" if q == 0 else "max" if q == 1 else f"{q:.0%}" for q in QUANTILES]
    lines = []
    for where in dict.fromkeys(group[:-1] for group in overall):
        pictures, isa, threads, version, processor = where
        lines += ["", f"{pictures} pictures, {isa}, {threads} thread{'s' * (threads != '1')} a run, torch {version}, "
                      f"{processor}", "",
                  f"{'block':16} {'n':>2}  {' '.join(f'{h:>4}' for h in heads)}  |  median at "
                  + " ".join(f"{d:>3}" for d in DISTANCES) + " px"]
        for block in BLOCKS:
            if group := overall.get((*where, block)):
                medians = [at[d][(*where, block)][1][QUANTILES.index(0.5)] for d in DISTANCES]
                lines.append(f"{block:16} {group[0]:2}  {' '.join(f'{100 * v:4.1f}' for v in group[1])}  |  {'':9} "
                             + " ".join(f"{100 * v:3.0f}" for v in medians))
    return "\n".join(lines[1:]) or "no runs yet"
