"""COCO's two formats: a folder to read (images and annotations), and the records that pycocotools scores.

    folder = CocoFolder("/data/coco", "val", "mask")    # folder[i]: image (3, H, W) uint8, target
    truth = coco_truth([((H, W), target), ...], ids)    # a pycocotools COCO, made from targets
    results = coco_results(prediction, image_id, ids, "mask")

Targets and predictions are described in scenes.py.
"""
import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CocoDetection
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import UserError

VOID = 255          # a pixel of a class map that counts for nothing


def need_pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise UserError("Average precision and COCO's files need pycocotools: pip install pycocotools "
                        "(--task segment on toynette works without).") from None


# --- a folder -------------------------------------------------------------------------------------------------------

class CocoFolder(Dataset):
    """One split of a folder in COCO's layout, without crowds; in training, without images that have no object.

    `coco` is the annotation file as pycocotools reads it, crowds included; `ids` are its category ids in order, and
    label i + 1 stands for ids[i].  UserError where files are missing or hold what cannot be trained on.
    """

    def __init__(self, root: str | Path, split: str, task: str) -> None:
        kind = "person_keypoints" if "keypoint" in task else "instances"
        files = sorted(Path(root, "annotations").glob(f"{kind}_{split}*.json"))
        if not files:
            raise UserError(f"There is no annotations/{kind}_{split}*.json in {root}: give a folder in COCO's layout, "
                            "or toynette.")
        folder = Path(root, files[0].stem.removeprefix(f"{kind}_"))
        if not folder.is_dir():
            raise UserError(f"The images of {files[0]} should be in {folder}, and there is no such folder.")
        need_pycocotools()
        try:
            with contextlib.redirect_stdout(io.StringIO()):             # pycocotools prints its own progress
                self.images = CocoDetection(str(folder), str(files[0]))
            self.coco = self.images.coco
            _check(self.coco.dataset)
            self.ids = sorted(self.coco.getCatIds())
            categories = self.coco.loadCats(self.ids)
            self.names, self.points = [c["name"] for c in categories], categories[0].get("keypoints", [])
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            why = f"an entry lacks {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{files[0]} is not in COCO's format: {why}.") from error
        self.parts = set(task.split("+"))
        self.label = {id: i for i, id in enumerate(self.ids, 1)}
        self.rows = [row for row, id in enumerate(self.images.ids) if split != "train" or self._objects(id)]

    def _objects(self, image_id: int) -> list[dict]:
        """The objects to learn from: no crowds, none under 1 px wide or high, and for keypoints none without one."""
        return [o for o in self.coco.imgToAnns[image_id]
                if not o.get("iscrowd") and min(o["bbox"][2:]) >= 1 and o.get("num_keypoints", 1)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        image_id = self.images.ids[self.rows[i]]
        image, annotations = self.images[self.rows[i]]
        objects, (width, height) = self._objects(image_id), image.size
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
            target["classes"] = self._class_map(annotations, height, width)
        return pil_to_tensor(image), target

    def _class_map(self, annotations: list[dict], height: int, width: int) -> Tensor:
        """(H, W) int64.  COCO does not say which object is in front: the smaller one is taken to be."""
        classes = np.zeros((height, width), np.int64)
        for o in sorted(annotations, key=lambda o: (not o.get("iscrowd"), -o["area"])):
            classes[self.coco.annToMask(o) > 0] = VOID if o.get("iscrowd") else self.label[o["category_id"]]
        return torch.from_numpy(classes)


def _check(dataset: dict) -> None:
    """KeyError, TypeError or ValueError for annotations that would fail, or worse, far from here: pycocotools' C code
    does not survive infinite boxes."""
    images, categories = ({one["id"] for one in dataset[name]} for name in ("images", "categories"))
    if not images or not categories:
        raise ValueError(f"it lists {len(images)} images and {len(categories)} categories")
    for o in dataset["annotations"]:
        if o["category_id"] not in categories:
            raise ValueError(f"annotation {o['id']} has category_id {o['category_id']!r}, which is not in categories")
        if o["image_id"] not in images:
            raise ValueError(f"annotation {o['id']} has image_id {o['image_id']!r}, which is not in images")
        if len(o["bbox"]) != 4 or not all(map(math.isfinite, o["bbox"])):
            raise ValueError(f"annotation {o['id']} has the bbox {o['bbox']}, which is not four finite numbers")


# --- records --------------------------------------------------------------------------------------------------------

def encode_mask(mask: Tensor | np.ndarray) -> dict:
    """A mask (H, W), 0 or 1, as COCO's compressed run lengths, in plain text."""
    from pycocotools import mask as rle

    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def coco_truth(targets: list[tuple[tuple[int, int], dict]], ids: list[int]) -> Any:
    """A pycocotools COCO of targets: ((H, W), target) of each image; ids: the categories of labels 1, 2 ..."""
    need_pycocotools()
    from pycocotools.coco import COCO

    objects = []
    for _, target in targets:
        boxes = _xywh(target["boxes"])
        for i, (box, label) in enumerate(zip(boxes, target["labels"].tolist())):
            one = {"id": len(objects) + 1, "image_id": target["image_id"], "category_id": ids[label - 1], "iscrowd": 0,
                   "bbox": box, "area": box[2] * box[3]}
            if "masks" in target:
                mask = target["masks"][i].cpu().numpy()
                one |= {"segmentation": encode_mask(mask), "area": float(mask.sum())}
            if "keypoints" in target:
                points = target["keypoints"][i].cpu().double()
                one |= {"keypoints": points.flatten().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
            objects.append(one)
    coco = COCO()
    coco.dataset = {"images": [{"id": t["image_id"], "height": h, "width": w} for (h, w), t in targets],
                    "annotations": objects, "categories": [{"id": id, "name": str(id)} for id in ids]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_results(prediction: dict, image_id: int, ids: list[int], kind: str) -> list[dict]:
    """The prediction for one image as entries of a COCO result file.

    prediction: boxes (N, 4), labels (N,), scores (N,) and, where kind asks for them, masks (N, 1, H, W) in 0..1 or
    keypoints (N, K, 3).  kind: "box", "mask" or "keypoint".
    """
    if kind == "box":
        parts = [{"bbox": box} for box in _xywh(prediction["boxes"])]
    elif kind == "mask":
        parts = [{"segmentation": encode_mask(mask)} for mask in (prediction["masks"][:, 0] > 0.5).cpu().numpy()]
    else:
        parts = [{"keypoints": one.flatten().tolist()} for one in prediction["keypoints"].cpu().double()]
    return [{"image_id": image_id, "category_id": ids[label - 1], "score": score} | part
            for label, score, part in zip(prediction["labels"].tolist(), prediction["scores"].tolist(), parts)]


def _xywh(boxes: Tensor) -> list[list[float]]:
    """Corners (N, 4) -> COCO's x, y, width, height, in double precision."""
    return box_convert(boxes.cpu().double(), "xyxy", "xywh").tolist()
