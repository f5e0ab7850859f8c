"""Toynette | Imagenette | any folder of images  ->  batches on the device.

    data = load_data("toynette", size=64)           # or "imagenette", or "path/to/folder"
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for x, y in data.train:                     # x (B, 3, 64, 64) float32, normalized; y (B,) int64
            ...

A set that fits in memory is decoded once and kept on the device as one uint8 tensor. Cropping, flipping and
normalizing are then a few tensor operations per batch; no worker has to keep up with the network. A larger
set is decoded as it is needed, by torch's DataLoader. Both are used in the same way.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import cores, resolve_device
from ..errors import UserError
from .download import locate
from .images import (
    RATIO,
    ImageList,
    Listing,
    augmented_view,
    center_view,
    decode_all,
    list_split,
    match_classes,
    report_unreadable,
)
from .loading import Reader, ahead, warn_of_little_shared_memory
from .sampler import EpochSampler
from .toynette import CLASSES, WNIDS

READABLE_NAMES = dict(zip(WNIDS, CLASSES))                  # Imagenette's class folders are WordNet ids
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)    # ImageNet's, per channel, of values in 0..1
VAL_RESIZE = 256 / 224      # the usual evaluation: the short side to 256, then the central 224


@lru_cache
def _mean_and_std(device: torch.device, scale: int) -> tuple[Tensor, Tensor]:
    """ImageNet's constants times `scale`, (3, 1, 1) each, copied to the device once: each copy is a wait."""
    with torch.inference_mode(False):           # cached for training too, which cannot use inference tensors
        mean, std = (torch.tensor(c, device=device).view(3, 1, 1) * scale for c in (MEAN, STD))
    return mean, std


def normalize(x: Tensor) -> Tensor:
    """(..., 3, H, W) of values 0..255, uint8 or float -> float32, minus ImageNet's mean, divided by its deviation."""
    mean, std = _mean_and_std(x.device, 255)
    return (x - mean if x.is_floating_point() else x.float().sub_(mean)).div_(std)      # bytes: in place, twice as fast


def denormalize(x: Tensor) -> Tensor:
    """The inverse, for showing: (..., 3, H, W) normalized -> float32 in 0..1 (imshow wants (H, W, 3))."""
    mean, std = _mean_and_std(x.device, 1)
    return (x * std + mean).clamp_(0, 1)


class Batches:
    """One split. Iterate for (x, y): x (B, 3, size, size) float32, normalized; y (B,) int64; on the device.

    In training, order and augmentation are a function of (seed, epoch) alone: a resumed run sees what an uninterrupted
    one would have seen.  The augmentation of an image does not depend on the batch size either.  Validation keeps its
    order, shows each image once, and does not augment.  EpochSampler says which images are in which batch, and what
    each of several processes gets.
    """

    def __init__(self, images: Tensor | ImageList, labels: Tensor, sampler: EpochSampler, size: int,
                 scale: tuple[float, float], workers: int = 0, skipped: list[str] | None = None) -> None:
        self.images = images            # images[i]: (3, side, side) uint8, not augmented; side = size in validation
        self.labels = labels            # (N,) int64, on the device
        self.sampler, self.size, self.scale, self.workers = sampler, size, scale, workers
        self.skipped = skipped or []    # unreadable files; when streaming, those met so far

    @property
    def batch_size(self) -> int:
        """Of all processes together."""
        return self.sampler.batch_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and from which batch on; as with DistributedSampler, it stays so."""
        self.sampler.set_epoch(epoch, start)

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return len(self.sampler)


class InMemory(Batches):
    """`images` is one tensor on the device."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.labels.device     # an epoch's draws move there at once: no batch waits for a copy
        batches = [index.to(device) for index in self.sampler.batches()]
        views = None if self.sampler.seed is None else self._draw_views().to(device)
        for index in batches:
            x = self.images[index]
            x = x if views is None else _crop(x.float(), views[index], self.size)
            yield normalize(x), self.labels[index]

    def _draw_views(self) -> Tensor:
        """A random resized crop and flip of each image: (N, 4), half width and height, centre x and y.

        In grid_sample's coordinates, where an image reaches from -1 to 1; a negative half width is a flip.
        Areas and shapes as in torchvision's RandomResizedCrop, but a crop that sticks out is cut, not drawn again.
        Drawn on the CPU, so that every device sees the same.
        """
        area, ratio, x, y, flip = torch.rand(5, len(self.labels), generator=self.sampler.generator(1))
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * area
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
        w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        x, y = (1 - w) * (2 * x - 1), (1 - h) * (2 * y - 1)
        return torch.stack([torch.where(flip < 0.5, -w, w), h, x, y], 1)


def _crop(x: Tensor, views: Tensor, size: int) -> Tensor:
    """x (B, 3, S, S) sampled through views (B, 4): (B, 3, size, size)."""
    # affine_grid for boxes, without its matrix product, which TF32 and autocast would make inexact.
    centres = (torch.arange(size, device=x.device) * 2 + 1) / size - 1
    grid = views[:, :2, None] * centres + views[:, 2:, None]    # (B, 2, size): columns' x, rows' y
    edge = 1 - 1 / x.shape[-1]      # clamped as by padding_mode="border", which MPS has only since torch 2.13
    columns, rows = grid.clamp_(-edge, edge).unbind(1)
    columns, rows = columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)
    return F.grid_sample(x, torch.stack([columns, rows], 3), align_corners=False)


class Streamed(Batches):
    """`images` is an ImageList, decoded anew in every epoch."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        images, sampler = self.images, self.sampler
        if sampler.seed is not None:
            images = ImageList(images.items, partial(augmented_view, size=self.size, scale=self.scale),
                               never_empty=sampler.shard[1] > 1)    # all processes must take the same steps
        self.reader = Reader(images, _Keyed(sampler), _as_it_is, self.workers, self.labels.device.type == "cuda")

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ahead(self._readable(), self._move, self.labels.device)

    def _move(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, index = (t.to(self.labels.device, non_blocking=True) for t in batch)     # uint8: a quarter of the bytes
        return normalize(x), self.labels[index]

    def _readable(self) -> Iterator[tuple[Tensor, Tensor]]:
        errors, total = [], len(self.images)
        warn_of_little_shared_memory(self.workers, 3 * self.size**2 * self.batch_size // self.sampler.shard[1])
        for x, index, unreadable in self.reader:
            errors += unreadable
            report_unreadable(errors, total, warn=False)
            if len(x):
                yield x, index
        if new := set(errors) - set(self.skipped):      # every epoch meets the same ones: warn once
            report_unreadable(errors, total)
            self.skipped = sorted(new.union(self.skipped))


@dataclass
class _Keyed:
    """The batches of an epoch as (index, key): what a view is random by travels to the workers with its image."""
    sampler: EpochSampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        seed, epoch = self.sampler.seed, self.sampler.epoch
        for indices in self.sampler:
            yield [(i, () if seed is None else (seed, epoch, 1, i)) for i in indices]


def _as_it_is(batch: tuple) -> tuple:
    """Nothing is left to collate. (Not a lambda, which some systems could not send to the workers.)"""
    return batch


@dataclass
class Data:
    """What load_data returns: `classes[y]` is the readable name of label y; `train` and `val` are Batches."""
    name: str
    classes: list[str]
    train: Batches
    val: Batches
    missing_in_val: list[str]       # classes without validation images: accuracy is over the others

    def __repr__(self) -> str:
        train, val = self.train, self.val
        kept = "in memory" if isinstance(val, InMemory) else "streamed"
        return (f"{self.name}: {len(self.classes)} classes, {len(train.labels):,} + {len(val.labels):,} "
                f"images of {val.size} px, {kept} on {val.labels.device}")


def load_data(source: str | Path, *, size: int = 128, batch_size: int = 64,
              device: str | torch.device | None = None, root: str | Path | None = None, seed: int = 0,
              scale: tuple[float, float] = (0.35, 1.0), workers: int | None = None,
              memory_limit: int = 3 * 2**30, download: bool = False, shard: tuple[int, int] = (0, 1),
              only_val: bool = False) -> Data:
    """A data set, by its name or its folder, as batches on the device.

    source        "toynette", "imagenette" (of 160 px, or a larger one if only that is there),
                  "imagenette-160", "imagenette-320", "imagenette-full", "tiny-imagenet" (200 classes at 64 px),
                  "tiny-imagenet-50" (every fourth of them), "pets" (37 breeds), or a folder that holds train/<class>/
                  and val/<class>/ (or validation/<class>/), or train*.parquet and validation*.parquet
    size          side of the square images, px
    device        None: best_device()
    root          where named sets are; None: the repository's data/, or data/ in or above the working folder
    scale         smallest and largest share of an image's area that a random training crop shows
    workers       threads to decode with, processes when streaming (0: none); None: one per core, at most 8
    memory_limit  bytes; a set that needs more as uint8 is streamed from disk. The default keeps Imagenette
                  on the device up to 224 px (2.7 GB); 0 always streams
    download      fetch a named set into root if it is not there (imagenette 99 MB, tiny-imagenet 248, pets 811)
    shard         (rank, world): the part of every batch that this process gets; batch_size counts the images of all
    only_val      nothing will be trained: where there is no train split, validation stands in for it

    UserError, a ValueError, says what was found and what to do; FileNotFoundError where something is missing.
    Unreadable images are skipped with a warning, above 10 % of a split with a DataError (when streaming: as they are
    met).
    """
    if size < 8 or batch_size < 1:
        raise UserError(f"size must be at least 8 and batch_size at least 1; got {size} and {batch_size}.")
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"scale must be (smallest, largest) share of the area, within (0, 1]; got {scale}.")
    device = resolve_device(device)     # a device that is not there fails here, before any decoding
    workers = min(8, cores()) if workers is None else workers

    folder = locate(source, root, download)
    stand_in = only_val and not any(folder.glob("train*"))
    train = list_split(folder, *(("val", "validation") if stand_in else ("train",)))
    val = list_split(folder, "val", "validation")
    missing = match_classes(train, val, folder)
    # Training images are stored larger than `size`, so that a crop of average area is shown pixel by pixel.
    # By default that is 1.22 times: the whole image is then shrunk by 1.22, which bilinear sampling does
    # with little aliasing, and the smallest crop (35 % of the area, 0.59 of the side) is enlarged by 1.39.
    stored = round(size * (sum(scale) / 2) ** -0.5)
    keep = 3 * (len(train.items) * stored**2 + len(val.items) * size**2) <= memory_limit
    label = {name: i for i, name in enumerate(train.classes)}

    def batches(listing: Listing, short: int, crop: int, seed: int | None) -> Batches:
        images = ImageList(listing.items, partial(center_view, short=short, crop=crop))
        sampler = EpochSampler(len(images), batch_size, seed=seed, shard=shard)
        labels, skipped = torch.tensor([label[name] for name in listing.folders]), []
        if keep:
            images, good, skipped = decode_all(images, crop, max(workers, 1))
            images, labels, sampler.n = images.to(device), labels[good], len(good)
        kind = InMemory if keep else Streamed
        return kind(images, labels.to(device), sampler, size, scale, workers, skipped)

    return Data(str(source), [READABLE_NAMES.get(name, name) for name in train.classes],
                batches(train, stored, stored, seed), batches(val, round(size * VAL_RESIZE), size, None),
                [READABLE_NAMES.get(name, name) for name in missing])
