"""Images of several objects, with boxes, masks, keypoints and class maps, as batches.

    data = load_scenes("toynette", "mask", size=128)            # or a folder in COCO's layout
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for images, targets in data.train:                      # two lists of the same length
            ...

An image is (3, H, W) float32 in 0..1, each of its own size.  Its target is a dict of tensors, coordinates in pixels:

    boxes      (N, 4) float32    x0, y0, x1, y1
    labels     (N,) int64        from 1 on: 0 is the background, and classes[label - 1] is the name
    masks      (N, H, W) uint8   0 or 1
    keypoints  (N, K, 3) float32 x, y and COCO's v: 0 not labelled, 1 hidden, 2 visible
    classes    (H, W) int64      the label of each pixel; 255 is ignored (COCO's crowds)
    image_id   int

A prediction is such a dict as well, with scores (N,) and masks (N, 1, H, W) in 0..1.  The names are those of
torchvision's detectors.  Toynette scenes have all entries, and are a rehearsal: no number on them is a result.  COCO
targets have those that the task asks for.
"""
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import horizontal_flip
from tqdm import tqdm

from ..data import toynette
from ..data.download import NAMED_SETS, locate
from ..data.loading import Reader, ahead
from ..data.sampler import EpochSampler
from ..device import resolve_device
from ..errors import UserError
from .coco import CocoFolder, coco_truth, need_pycocotools

FIRST_SEED = {"train": 2_000_000, "val": 3_000_000}     # of the scenes: beyond those of data/toynette
MOST_OBJECTS = 4                                        # in a scene; more would be too small at 128 px
SMALLEST = 48                                           # px, of a drawn scene: 24 for each object beside another
# The order of COCO's 17 keypoints in a mirrored image: all but the nose are left or right.
COCO_MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


# --- batches --------------------------------------------------------------------------------------------------------

@dataclass
class Scenes:
    """What load_scenes returns."""
    name: str
    classes: list[str]
    keypoints: list[str]            # their names; [] if the task has none
    train: "SceneBatches"
    val: "SceneBatches"
    ids: list[int]                  # the COCO categories of labels 1, 2 ...

    def __repr__(self) -> str:
        return (f"{self.name}: {len(self.classes)} classes, {len(self.train.scenes):,} + {len(self.val.scenes):,} "
                f"images on {self.val.device}")

    def truth(self) -> Any:
        """The validation targets as a pycocotools COCO; for a folder its own file, crowds included."""
        scenes = self.val.scenes
        if isinstance(scenes, CocoFolder):
            return scenes.coco
        return coco_truth([(x.shape[1:], target) for x, target in (scenes[i] for i in range(len(scenes)))], self.ids)


class SceneBatches:
    """One split: iterate for (images, targets) on the device.  Order and mirroring are the sampler's."""

    def __init__(self, scenes: Dataset, sampler: EpochSampler, device: torch.device, order: tuple[int, ...] = (),
                 workers: int = 0) -> None:
        self.scenes, self.sampler, self.device = scenes, sampler, device    # scenes[i]: (3, H, W) uint8, target
        self.order = order
        self.reader = Reader(_Mirrored(scenes, order), _Items(sampler), _as_lists, workers, device.type == "cuda")

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and from which batch on."""
        self.sampler.set_epoch(epoch, start)

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict]]]:
        return ahead(self._readable(), self._move, self.device)

    def _readable(self) -> Iterator[tuple[list[Tensor], list[dict]]]:
        for batch in self.reader:
            if isinstance(batch, UserError):        # a value: raised in a worker, it would bring its traceback
                raise batch
            yield batch

    def _move(self, batch: tuple[list[Tensor], list[dict]]) -> tuple[list[Tensor], list[dict]]:
        images, targets = batch
        return ([x.to(self.device, non_blocking=True).float() / 255 for x in images],
                [{name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                  for name, value in target.items()} for target in targets])


@dataclass
class _Items:
    """The scenes of each batch of an epoch, and whether each is mirrored in it."""
    sampler: EpochSampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        flips = self.sampler.flips().tolist()
        return ([(i, flips[i]) for i in indices] for indices in self.sampler)


@dataclass
class _Mirrored(Dataset):
    scenes: Dataset
    order: tuple[int, ...]      # see mirror()

    def __getitem__(self, item: tuple[int, bool]) -> tuple[Tensor, dict] | UserError:
        i, flip = item
        try:
            return mirror(*self.scenes[i], self.order) if flip else self.scenes[i]
        except UserError as error:
            return error.with_traceback(None)


def mirror(image: Tensor, target: dict, order: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
    """An image (3, H, W) and its target, flipped left to right.

    order: which keypoint takes the place of each, where names say left and right; (): they stay.  Keypoints are points
    of the plane, as corners of boxes are: x becomes W - x.  (torchvision's KeyPoints are indices of pixels, W - 1 - x.)
    """
    height, width = image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
    target = target | {"boxes": horizontal_flip(boxes).as_subclass(Tensor)}
    target |= {name: horizontal_flip(target[name]) for name in {"masks", "classes"} & target.keys()}
    if "keypoints" in target:
        points = target["keypoints"][:, list(order)] if order else target["keypoints"].clone()
        points[..., 0] = torch.where(points[..., 2] > 0, width - points[..., 0], points[..., 0])
        target["keypoints"] = points
    return horizontal_flip(image), target


def _as_lists(batch: list[tuple[Tensor, dict] | UserError]) -> tuple[list[Tensor], list[dict]] | UserError:
    if errors := [one for one in batch if isinstance(one, UserError)]:
        return errors[0]
    images, targets = zip(*batch)
    return list(images), list(targets)


def load_scenes(source: str | Path, task: str, *, size: int = 128, images: tuple[int, int] = (400, 100),
                batch_size: int = 8, device: str | torch.device | None = None, seed: int = 0, workers: int = 0,
                shard: tuple[int, int] = (0, 1), only_val: bool = False) -> Scenes:
    """Toynette scenes, or a folder in COCO's layout, for one of build_detector's tasks.

    source      "toynette", "pets" (each with its mask), or a folder that holds annotations/instances_train*.json (for
                keypoints person_keypoints_train*.json), the same for val, and the images in train*/ and val*/
    size        side of the drawn scenes, px; images of a folder keep theirs
    images      how many scenes to draw for training and for validation (a fifth of a second each)
    batch_size  images per step, over all processes together
    workers     processes that read images; for drawn scenes, threads that draw them
    shard       (rank, world): which of how many processes this is
    only_val    nothing will be trained: the validation split stands in for the training split

    UserError if files are missing or malformed.
    """
    device = resolve_device(device)
    if source == "toynette":
        if size < SMALLEST:
            raise UserError(f"Scenes are drawn at {SMALLEST} px or more, not at {size}: choose a larger size.")
        val = DrawnScenes("val", images[1], size, max(workers, 1))
        train = val if only_val else DrawnScenes("train", images[0], size, max(workers, 1))
        names, points, order, workers = list(toynette.CLASSES), list(toynette.KEYPOINTS), (), 0
        ids = list(range(1, len(names) + 1))
    else:
        need_pycocotools()
        folder = locate(source) if source in NAMED_SETS else source
        val = CocoFolder(folder, "val", task)
        train = val if only_val else CocoFolder(folder, "train", task)
        names, points, ids = val.names, val.points, val.ids
        order = COCO_MIRROR if len(points) == len(COCO_MIRROR) else ()
        if train.names != names:
            raise UserError(f"The classes of training and validation differ in {source}: {len(train.names)} and "
                            f"{len(names)}. Both files must list the same categories.")

    def batches(scenes: Dataset, seed: int | None) -> SceneBatches:
        sampler = EpochSampler(len(scenes), batch_size, seed=seed, shard=shard, drop_last=True)
        return SceneBatches(scenes, sampler, device, order, workers)

    return Scenes(str(source), names, points if "keypoint" in task else [], batches(train, seed), batches(val, None),
                  ids)


# --- Toynette scenes ------------------------------------------------------------------------------------------------

class DrawnScenes(Dataset):
    """`count` scenes of one to four objects, drawn when made and kept in memory: a quarter of a MB each at 128 px."""

    def __init__(self, split: str, count: int, size: int, threads: int = 1) -> None:
        with ThreadPoolExecutor(threads) as pool:
            drawn = pool.map(lambda i: draw_scene(split, i, size), range(count))
            self.drawn = list(tqdm(drawn, f"draw {split}", count, unit=" scenes", disable=None, leave=False))

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return self.drawn[i]


@lru_cache(maxsize=1024)
def draw_scene(split: str, i: int, size: int = 128) -> tuple[Tensor, dict]:
    """Toynette scene number i of "train" or "val": image (3, size, size) uint8, target.

    Its image_id is its seed, from which everything follows, the number of objects too.
    """
    seed = FIRST_SEED[split] + i
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=rng.integers(1, MOST_OBJECTS + 1))
    drawn = toynette.draw(labels, seed, size)
    masks, labels = torch.from_numpy(drawn.masks), torch.from_numpy(drawn.labels) + 1
    return torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous(), {
        "boxes": torch.from_numpy(drawn.boxes), "labels": labels, "masks": masks.byte(),
        "keypoints": torch.from_numpy(drawn.keypoints), "classes": (masks * labels[:, None, None]).amax(0),
        "image_id": seed}
