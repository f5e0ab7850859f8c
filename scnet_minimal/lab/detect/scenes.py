"""Pictures of several objects  ->  batches of pictures and of what is true of them.

    data = load_scenes("toynette", "mask", size=128)            # or a folder in COCO's layout
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for pictures, targets in data.train:                    # two lists of one length
            ...

A picture is (3, H, W) float32 in 0..1, each in its own size; its target a dict of tensors, coordinates in pixels:

    boxes      (N, 4) float32    x0, y0, x1, y1
    labels     (N,) int64        from 1: 0 is the background, and classes[label - 1] the name
    masks      (N, H, W) uint8   0 or 1
    keypoints  (N, K, 3) float32 x, y and COCO's v: 0 not labelled, 1 hidden, 2 visible
    classes    (H, W) int64      the label of each pixel; 255 counts for nothing (COCO's crowds)
    image_id   int

These are the names that torchvision's detectors know.  Toynette scenes have all of them, and are a rehearsal: no number
on them is a result.  COCO's have those that their task asks for.
"""
import contextlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from . import toynette
from .data import best_device
from .pictures import seed_of
from .precision import as_coco, need_pycocotools

VOID = 255
FIRST = {"train": 2_000_000, "val": 3_000_000}      # seeds of the scenes: beyond those of data/toynette
MOST = 4                                            # objects in a scene; more would be too small at 128 px
# COCO's 17 keypoints are left and right but for the nose: what a mirrored picture makes of each.
COCO_MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


# --- batches --------------------------------------------------------------------------------------------------------

@dataclass(eq=False, repr=False)
class Batches:
    """One split: iterate for (pictures, targets).

    In training, order and mirroring are a function of (seed, epoch) alone, and what is left over of the last batch
    waits for another epoch.  Validation keeps its order and shows each picture once.  With several processes, `shard` =
    (rank, world), each gets its part of every training batch, and of the validation pictures.
    """
    scenes: Dataset             # scenes[i]: picture (3, H, W) uint8, target
    batch_size: int             # of all processes together
    device: torch.device
    seed: int | None = None     # None: validation
    mirror: tuple[int, ...] = ()        # the order of the keypoints in a mirrored picture; (): as they are
    workers: int = 0
    shard: tuple[int, int] = (0, 1)
    epoch: int = 0
    start: int = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch the next iteration is, and from which batch on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The number of batches of a whole epoch."""
        n, b, (rank, world) = len(self.scenes), self.batch_size, self.shard
        if self.seed is None:
            return -(-len(range(rank, n, world)) // -(-b // world))
        return n // b if n >= b else int(n >= world)

    def _plan(self) -> list[list[tuple[int, bool]]]:
        """For each batch of this epoch from `start` on: its pictures' indices, and whether each is mirrored."""
        n, b, (rank, world) = len(self.scenes), self.batch_size, self.shard
        if self.seed is None:
            mine, size = torch.arange(rank, n, world), -(-b // world)
            return [[(i, False) for i in part.tolist()] for part in mine.split(size)][self.start:]
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order, mirrored = torch.randperm(n, generator=generator), torch.rand(n, generator=generator) < 0.5
        batches = [part[:len(part) // world * world][rank::world] for part in order.split(b)[self.start:len(self)]]
        return [[(i, bool(mirrored[i])) for i in part.tolist()] for part in batches]

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict]]]:
        loader = DataLoader(_Mirrored(self.scenes, self.mirror), batch_sampler=self._plan(), num_workers=self.workers,
                            collate_fn=_as_lists, generator=torch.Generator())
        for pictures, targets in loader:
            yield ([x.to(self.device, non_blocking=True).float() / 255 for x in pictures],
                   [{name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
                     for name, value in target.items()} for target in targets])


@dataclass
class _Mirrored(Dataset):
    scenes: Dataset
    mirror: tuple[int, ...]

    def __getitem__(self, key: tuple[int, bool]) -> tuple[Tensor, dict]:
        i, mirrored = key
        return mirror(*self.scenes[i], self.mirror) if mirrored else self.scenes[i]


def mirror(picture: Tensor, target: dict, order: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
    """Left becomes right.  order: which keypoint each becomes, where their names say left and right."""
    width, target = picture.shape[-1], dict(target)
    for name in {"masks", "classes"} & target.keys():
        target[name] = target[name].flip(-1)
    x0, y0, x1, y1 = target["boxes"].unbind(1)
    target["boxes"] = torch.stack([width - x1, y0, width - x0, y1], 1)
    if "keypoints" in target:
        points = target["keypoints"][:, list(order)] if order else target["keypoints"].clone()
        points[..., 0] = torch.where(points[..., 2] > 0, width - points[..., 0], points[..., 0])
        target["keypoints"] = points
    return picture.flip(-1), target


def _as_lists(batch: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    pictures, targets = zip(*batch)
    return list(pictures), list(targets)


@dataclass
class Scenes:
    """What load_scenes gives."""
    name: str
    classes: list[str]
    keypoints: list[str]            # their names; [] where the task has none
    train: Batches
    val: Batches
    ids: list[int]                  # the COCO category of labels 1, 2 ...

    def __repr__(self) -> str:
        return (f"{self.name}: {len(self.classes)} classes, {len(self.train.scenes):,} + {len(self.val.scenes):,} "
                f"pictures on {self.val.device}")

    def truth(self) -> Any:
        """What is true of the validation pictures, as a pycocotools COCO: a folder's own file, crowds included."""
        scenes = self.val.scenes
        if isinstance(scenes, CocoFolder):
            return scenes.coco
        return as_coco([(x.shape[1:], target) for x, target in (scenes[i] for i in range(len(scenes)))], self.ids)


def load_scenes(source: str | Path, task: str, *, size: int = 128, pictures: tuple[int, int] = (400, 100),
                batch_size: int = 8, device: str | torch.device | None = None, seed: int = 0, workers: int = 0,
                shard: tuple[int, int] = (0, 1)) -> Scenes:
    """Toynette scenes, or a folder in COCO's layout, for a task of detection.build.

    source   "toynette", or a folder that holds annotations/instances_train*.json (for keypoints
             person_keypoints_train*.json), the same for val, and the pictures in train*/ and val*/
    size     side of the drawn scenes, px; pictures of a folder keep theirs
    pictures how many scenes to draw for training and for validation (a fifth of a second each)
    workers  processes that read pictures, threads that draw them

    FileNotFoundError or ValueError say what is missing and what to do.
    """
    device = best_device() if device is None else torch.device(device)
    if batch_size % shard[1]:
        raise ValueError(f"A batch of {batch_size} cannot be shared evenly by {shard[1]} processes: take "
                         f"{max(1, batch_size // shard[1]) * shard[1]}.")
    if source == "toynette":
        train, val = (Drawn(split, n, size, max(workers, 1)) for split, n in zip(FIRST, pictures))
        names, points, order, workers = list(toynette.CLASSES), list(toynette.KEYPOINTS), (), 0
        ids = list(range(1, len(names) + 1))
    else:
        need_pycocotools()
        train, val = CocoFolder(source, "train", task), CocoFolder(source, "val", task)
        names, points, ids = val.names, val.points, val.ids
        order = COCO_MIRROR if len(points) == len(COCO_MIRROR) else ()
        if train.names != names:
            raise ValueError(f"The classes of training and validation differ in {source}: {len(train.names)} and "
                             f"{len(names)}. Both files must list the same categories.")
    return Scenes(str(source), names, points if "keypoint" in task else [],
                  Batches(train, batch_size, device, seed, order, workers, shard),
                  Batches(val, batch_size, device, None, order, workers, shard), ids)


# --- Toynette scenes ------------------------------------------------------------------------------------------------

class Drawn(Dataset):
    """`count` scenes of one to four objects, drawn when made and kept in memory: a quarter of a MB each at 128 px."""

    def __init__(self, split: str, count: int, size: int, threads: int = 1) -> None:
        seeds = range(FIRST[split], FIRST[split] + count)
        with ThreadPoolExecutor(threads) as pool:
            drawn = pool.map(lambda seed: scene(seed, size), seeds)
            self.drawn = list(tqdm(drawn, f"draw {split}", count, unit=" scenes", disable=None, leave=False))

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        return self.drawn[i]


@lru_cache(maxsize=1024)
def scene(seed: int, size: int = 128) -> tuple[Tensor, dict]:
    """One Toynette scene as a picture (3, size, size) uint8 and its target.  Its objects, too, follow from the seed."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=rng.integers(1, MOST + 1))
    drawn = toynette.draw(labels, seed, size)
    masks, labels = torch.from_numpy(drawn.masks), torch.from_numpy(drawn.labels) + 1
    return torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous(), {
        "boxes": torch.from_numpy(drawn.boxes), "labels": labels, "masks": masks.byte(),
        "keypoints": torch.from_numpy(drawn.keypoints), "classes": (masks * labels[:, None, None]).amax(0),
        "image_id": seed}


# --- COCO's layout --------------------------------------------------------------------------------------------------

class CocoFolder(Dataset):
    """A split of a folder in COCO's layout.  Training leaves out pictures without an object; no object is a crowd."""

    def __init__(self, root: str | Path, split: str, task: str) -> None:
        from torchvision.datasets import CocoDetection

        kind = "person_keypoints" if "keypoint" in task else "instances"
        found = sorted(Path(root, "annotations").glob(f"{kind}_{split}*.json"))
        if not found:
            raise FileNotFoundError(f"There is no annotations/{kind}_{split}*.json in {root}: name a folder in COCO's "
                                    "layout, or toynette.")
        pictures = Path(root, found[0].stem.removeprefix(f"{kind}_"))
        if not pictures.is_dir():
            raise FileNotFoundError(f"{found[0].name} asks for its pictures in {pictures}, which is no folder.")
        need_pycocotools()
        self.parts = set(task.split("+"))
        with contextlib.redirect_stdout(io.StringIO()):             # it tells its own progress
            self.pictures = CocoDetection(str(pictures), str(found[0]))
        self.coco = self.pictures.coco
        self.ids = sorted(self.coco.getCatIds())
        categories = self.coco.loadCats(self.ids)
        self.names, self.points = [c["name"] for c in categories], categories[0].get("keypoints", [])
        self.label = {id: i for i, id in enumerate(self.ids, 1)}
        self.rows = [row for row, id in enumerate(self.pictures.ids) if split != "train" or self._objects(id)]

    def _objects(self, image_id: int) -> list[dict]:
        """What can be learned from: no crowds, nothing without an area, for keypoints nobody without one."""
        return [o for o in self.coco.imgToAnns[image_id]
                if not o.get("iscrowd") and min(o["bbox"][2:]) >= 1 and o.get("num_keypoints", 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        image_id = self.pictures.ids[self.rows[i]]
        picture, everything = self.pictures[self.rows[i]]
        objects, (width, height) = self._objects(image_id), picture.size
        labels = torch.tensor([self.label[o["category_id"]] for o in objects], dtype=torch.int64)
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).reshape(-1, 4)
        target = {"boxes": box_convert(boxes, "xywh", "xyxy"), "labels": labels, "image_id": image_id}
        if "mask" in self.parts:
            masks = [torch.from_numpy(self.coco.annToMask(o)) for o in objects]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
        if "keypoint" in self.parts:
            points = torch.tensor([o["keypoints"] for o in objects], dtype=torch.float32)
            target["keypoints"] = points.reshape(len(objects), len(self.points), 3)
        if "segment" in self.parts:
            target["classes"] = self._class_map(everything, height, width)
        return pil_to_tensor(picture.convert("RGB")), target

    def _class_map(self, objects: list[dict], height: int, width: int) -> Tensor:
        """The smaller object lies in front: COCO does not say which does."""
        classes = np.zeros((height, width), np.int64)
        for o in sorted(objects, key=lambda o: (not o.get("iscrowd"), -o["area"])):
            classes[self.coco.annToMask(o) > 0] = VOID if o.get("iscrowd") else self.label[o["category_id"]]
        return torch.from_numpy(classes)
