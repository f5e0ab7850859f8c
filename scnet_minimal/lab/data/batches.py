"""Toynette | Imagenette | any folder of pictures  ->  batches on the device.

    data = load_data("toynette", size=64)           # or "imagenette", or "path/to/folder"
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for x, y in data.train:                     # x (B, 3, 64, 64) float32, normalized; y (B,) int64
            ...

A set that fits in memory is decoded once and kept on the device as one uint8 tensor. Cropping, flipping and
normalizing are then a few tensor operations per batch; no worker has to keep up with the network. A larger
set is decoded as it is needed, by torch's DataLoader and torchvision's transforms. Outside both look alike.
"""
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from .pictures import Listing, Pictures, augmented, centre, compare, decode, list_split, locate, report, seed_of
from .toynette import CLASSES, WNIDS

__all__ = ["Data", "best_device", "denormalize", "load_data", "normalize"]

NAMES = dict(zip(WNIDS, CLASSES))   # Imagenette's class folders are WordNet ids
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # ImageNet's, per channel, of values in 0..1
RATIO = (3 / 4, 4 / 3)      # width : height of a random crop, torchvision's default
VAL_RESIZE = 256 / 224      # the usual evaluation: the short side to 256, then the central 224


def best_device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def normalize(x: Tensor) -> Tensor:
    """(..., 3, H, W) of values 0..255, uint8 or float -> float32 without ImageNet's mean and deviation."""
    mean, std = (torch.tensor(c, device=x.device).view(3, 1, 1) * 255 for c in (MEAN, STD))
    return (x - mean).div_(std)


def denormalize(x: Tensor) -> Tensor:
    """The way back, for showing: (..., 3, H, W) normalized -> float32 in 0..1 (imshow wants (H, W, 3))."""
    mean, std = (torch.tensor(c, device=x.device).view(3, 1, 1) for c in (MEAN, STD))
    return (x * std + mean).clamp_(0, 1)


@dataclass(eq=False, repr=False)
class Batches:
    """One split. Iterate for (x, y): x (B, 3, size, size) float32, normalized; y (B,) int64; on the device.

    In training, order and augmentation are a function of (seed, epoch) alone: a resumed run sees what the
    uninterrupted one would have seen. What happens to a picture does not depend on the batch size either. A
    last batch of one picture is dropped, because batch norm cannot learn from it. Validation keeps its order,
    shows each picture once, and does not augment.

    With several processes, `shard` = (rank, world), each gets its part of every training batch, all parts of one
    size (what is left over of the last batch waits for another epoch), so that together they take the step that one
    process would take. In validation each gets its part of the pictures, of which none is left out or doubled.
    """
    images: Tensor | Pictures       # images[i]: (3, side, side) uint8, not augmented; side = size in val
    labels: Tensor                  # (N,) int64, on the device
    batch_size: int                 # of all processes together
    size: int
    scale: tuple[float, float]
    seed: int | None                # None: validation
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    epoch: int = 0
    start: int = 0
    skipped: list[str] = field(default_factory=list)    # unreadable files; when streaming, those met so far

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and from which batch on. As with DistributedSampler: without it, always
        the same one."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        n, b, (rank, world) = len(self.labels), self.batch_size, self.shard
        if self.seed is None:
            return -(-len(range(rank, n, world)) // -(-b // world))
        smallest = 2 * world if n > b > world else world            # one picture each is too few to learn from
        return n // b + (n % b >= smallest)

    def _plan(self) -> tuple[Tensor, ...]:
        """The indices of each batch of this epoch, from `start` on."""
        n, b, (rank, world) = len(self.labels), self.batch_size, self.shard
        if self.seed is None:
            return torch.arange(rank, n, world).split(-(-b // world))[self.start:]
        batches = torch.randperm(n, generator=self._generator(0)).split(b)[self.start:len(self)]
        return tuple(index[:len(index) // world * world][rank::world] for index in batches)

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, self.epoch, purpose))


class InMemory(Batches):
    """`images` is one tensor on the device."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.labels.device     # an epoch's draws move there at once: no batch waits for a copy
        plan = [index.to(device) for index in self._plan()]
        views = None if self.seed is None else self._draw_views().to(device)
        for index in plan:
            x = self.images[index]
            x = x if views is None else _look(x.float(), views[index], self.size)
            yield normalize(x), self.labels[index]

    def _draw_views(self) -> Tensor:
        """A random resized crop and flip of each picture: (N, 4), half width and height, centre x and y.

        In grid_sample's coordinates, where a picture reaches from -1 to 1; a negative half width is a flip.
        Areas and shapes as torchvision's RandomResizedCrop, but what sticks out is cut, not drawn again.
        Drawn on the CPU, so that every device sees the same.
        """
        area, ratio, x, y, flip = torch.rand(5, len(self.labels), generator=self._generator(1))
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * area
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
        w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - w) * (2 * x - 1), (1 - h) * (2 * y - 1)
        return torch.stack([torch.where(flip < 0.5, -w, w), h, x, y], 1)


def _look(x: Tensor, views: Tensor, size: int) -> Tensor:
    """x (B, 3, S, S) sampled through views (B, 4): (B, 3, size, size)."""
    # affine_grid for boxes, without its matrix product, which TF32 and autocast would make inexact.
    centres = (torch.arange(size, device=x.device) * 2 + 1) / size - 1
    grid = views[:, :2, None] * centres + views[:, 2:, None]    # (B, 2, size): columns' x, rows' y
    edge = 1 - 1 / x.shape[-1]      # clamped as by padding_mode="border", which MPS has only since torch 2.13
    columns, rows = grid.clamp_(-edge, edge).unbind(1)
    columns, rows = columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)
    return F.grid_sample(x, torch.stack([columns, rows], 3), align_corners=False)


class Streamed(Batches):
    """`images` is a Pictures, decoded anew in every epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pictures, device, troubles = self.images, self.labels.device, []
        if self.seed is not None:
            random_view = v2.Compose([v2.RandomResizedCrop(self.size, self.scale, RATIO),
                                      v2.RandomHorizontalFlip(), v2.PILToTensor()])
            short = round(self.size / self.scale[0] ** 0.5)     # so that the smallest crop has its pixels
            pictures = Pictures(pictures.items, partial(augmented, short=short, transform=random_view,
                                                        key=(self.seed, self.epoch, 1)),
                                never_empty=self.shard[1] > 1)      # all processes must take the same steps
        loader = DataLoader(pictures, batch_sampler=[index.tolist() for index in self._plan()],
                            num_workers=self.workers, collate_fn=_ready, pin_memory=device.type == "cuda",
                            generator=torch.Generator())    # else it draws from the global one
        for x, index, unreadable in loader:     # uint8 travels to the device: a quarter of the bytes
            troubles += unreadable
            report(troubles, len(pictures), warn=False)
            if len(x):
                x, index = x.to(device, non_blocking=True), index.to(device, non_blocking=True)
                yield normalize(x), self.labels[index]
        if new := set(troubles) - set(self.skipped):    # every epoch meets the same ones: say it once
            report(troubles, len(pictures))
            self.skipped = sorted(new.union(self.skipped))


def _ready(batch: tuple) -> tuple:
    """Nothing is left to collate. (Not a lambda, which could not be sent to the workers of some systems.)"""
    return batch


@dataclass
class Data:
    """What load_data gives: `classes[y]` is the readable name of label y; `train` and `val` are Batches."""
    name: str
    classes: list[str]
    train: Batches
    val: Batches
    missing_in_val: list[str]       # classes without validation pictures: accuracy is over the others

    def __repr__(self) -> str:
        train, val = self.train, self.val
        kept = "kept" if isinstance(val, InMemory) else "streamed"
        return (f"{self.name}: {len(self.classes)} classes, {len(train.labels):,} + {len(val.labels):,} "
                f"pictures of {val.size} px, {kept} on {val.labels.device}")


def load_data(source: str | Path, *, size: int = 128, batch_size: int = 64,
              device: str | torch.device | None = None, root: str | Path | None = None, seed: int = 0,
              scale: tuple[float, float] = (0.35, 1.0), workers: int | None = None,
              memory_limit: int = 3 * 2**30, download: bool = False, shard: tuple[int, int] = (0, 1),
              only_val: bool = False) -> Data:
    """A data set, by its name or its folder, as batches on the device.

    source        "toynette", "imagenette" (of 160 px, or a larger one if only that is there),
                  "imagenette-160", "imagenette-320", "imagenette-full", or a folder that holds train/<class>/ and
                  val/<class>/ (or validation/<class>/), or train*.parquet and validation*.parquet
    size          side of the square pictures, px
    device        None: best_device()
    root          where named sets are; None: the repository's data/, or data/ in or above the working folder
    scale         smallest and largest share of a picture's area that a random training crop shows
    workers       threads to decode with, processes when streaming (0: none); None: one per core, at most 8
    memory_limit  bytes; a set that needs more as uint8 is streamed from disk. The default keeps Imagenette
                  on the device up to 224 px (2.7 GB); 0 always streams
    download      fetch Imagenette into root if it is not there (160 px: 99 MB)
    shard         (rank, world): which share of every batch this process gets, of how many processes; batch_size
                  counts the pictures of all of them
    only_val      nothing will be trained: where there is no train split, validation stands in for it

    FileNotFoundError, NotADirectoryError or ValueError say what was found and what to do. Unreadable pictures
    are skipped with a warning, above 10 % of a split with a RuntimeError (when streaming: as they are met).
    """
    if size < 8 or batch_size < 1:
        raise ValueError(f"size must be at least 8 and batch_size at least 1; got {size} and {batch_size}.")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be (smallest, largest) share of the area, within (0, 1]; got {scale}.")
    if batch_size % shard[1]:
        raise ValueError(f"A batch of {batch_size} cannot be shared evenly by {shard[1]} processes: take "
                         f"{max(1, batch_size // shard[1]) * shard[1]}.")
    device = best_device() if device is None else torch.device(device)
    torch.empty(0, device=device)       # a device that is not there fails here, before any decoding
    workers = min(8, os.cpu_count() or 1) if workers is None else workers

    where = locate(source, root, download)
    stand_in = only_val and not any(where.glob("train*"))
    train = list_split(where, *(("val", "validation") if stand_in else ("train",)))
    val = list_split(where, "val", "validation")
    missing = compare(train, val, where)
    # Training pictures are stored larger than `size`, so that a crop of average area is shown pixel by pixel.
    # By default that is 1.22 times: the whole picture is then shrunk by 1.22, which bilinear sampling does
    # with little aliasing, and the smallest crop (35 % of the area, 0.59 of the side) is enlarged by 1.39.
    stored = round(size * (sum(scale) / 2) ** -0.5)
    keep = 3 * (len(train.items) * stored**2 + len(val.items) * size**2) <= memory_limit
    label = {name: i for i, name in enumerate(train.classes)}

    def batches(listing: Listing, short: int, crop: int, seed: int | None) -> Batches:
        images = Pictures(listing.items, partial(centre, short=short, crop=crop))
        labels = torch.tensor([label[name] for name in listing.folders])
        if not keep:
            return Streamed(images, labels.to(device), batch_size, size, scale, seed, workers, shard)
        images, good, skipped = decode(images, crop, max(workers, 1))
        images, labels = images.to(device), labels[good].to(device)
        return InMemory(images, labels, batch_size, size, scale, seed, shard=shard, skipped=skipped)

    return Data(str(source), [NAMES.get(name, name) for name in train.classes],
                batches(train, stored, stored, seed), batches(val, round(size * VAL_RESIZE), size, None),
                [NAMES.get(name, name) for name in missing])
