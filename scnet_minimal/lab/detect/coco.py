"""COCO's two formats: a folder to read (images and annotations), and the records that pycocotools scores.

    folder = CocoFolder("/data/coco", "val", "mask")    # folder[i]: image (3, H, W) uint8, target
    truth = coco_truth([((H, W), target), ...], ids)    # a pycocotools COCO, made from targets
    results = coco_results(prediction, image_id, ids, "mask")

Targets and predictions are described in scenes.py.
"""
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import pil_to_tensor

from ..checks import TEXT, TEXTS, Number, Rule, check_fields, is_file, one_of, shown
from ..errors import DataError, FileError, UserError

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
        try:
            files = sorted(Path(root, "annotations").glob(f"{kind}_{split}*.json"))
        except OSError as error:
            raise FileError(f"{root} cannot be read: {error.strerror}.") from error
        if not files or not files[0].is_file():
            raise UserError(f"There is no annotations/{kind}_{split}*.json in {root}: give a folder in COCO's layout, "
                            "or toynette.")
        self.folder = Path(root, files[0].stem.removeprefix(f"{kind}_"))
        if not self.folder.is_dir():
            raise UserError(f"The images of {files[0]} should be in {self.folder}, and there is no such folder.")
        need_pycocotools()
        from pycocotools.coco import COCO

        self.parts = set(task.split("+"))
        self.coco = COCO()
        self.coco.dataset = _read(files[0], self.folder, self.parts)
        with contextlib.redirect_stdout(io.StringIO()):                 # pycocotools prints its own progress
            self.coco.createIndex()
        self.ids = sorted(self.coco.getCatIds())
        categories = self.coco.loadCats(self.ids)
        self.names, self.points = [c["name"] for c in categories], categories[0].get("keypoints") or []
        self.label = {id: i for i, id in enumerate(self.ids, 1)}
        self.images = [id for id in sorted(self.coco.imgs) if split != "train" or self._objects(id)]
        if not self.images:
            raise UserError(f"{files[0]} has no image with an object to learn from.")

    def _objects(self, image_id: int) -> list[dict]:
        """The objects to learn from: no crowds, none under 1 px wide or high, and for keypoints none without one."""
        return [o for o in self.coco.imgToAnns[image_id]
                if not o.get("iscrowd") and min(o["bbox"][2:]) >= 1 and o.get("num_keypoints", 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, dict]:
        image_id = self.images[i]
        path = self.folder / self.coco.imgs[image_id]["file_name"]
        try:
            image = Image.open(path).convert("RGB")
        except Exception as error:  # noqa: BLE001  on a broken file a decoder may raise nearly anything
            raise DataError(f"{path} cannot be read: {shown(str(error), 150)}.") from error
        objects, (width, height) = self._objects(image_id), image.size
        said = self.coco.imgs[image_id]
        if said.get("width", width) != width or said.get("height", height) != height:
            raise DataError(f"{path} has {width} x {height} px, and not {said['width']} x {said['height']} as the "
                            "annotations say.")
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
            target["classes"] = self._class_map(self.coco.imgToAnns[image_id], height, width)
        return pil_to_tensor(image), target

    def _class_map(self, annotations: list[dict], height: int, width: int) -> Tensor:
        """(H, W) int64.  COCO does not say which object is in front: the smaller one is taken to be."""
        classes = np.zeros((height, width), np.int64)
        for o in sorted(annotations, key=lambda o: (not o.get("iscrowd"), -o["area"])):
            classes[self.coco.annToMask(o) > 0] = VOID if o.get("iscrowd") else self.label[o["category_id"]]
        return torch.from_numpy(classes)


ID, SIDE, COORDINATE = Number(int, 0, 2**53), Number(int, 1, 10**5), Number(float, -1e6, 1e6)
IMAGE = {"id": ID, "file_name": TEXT, "height": SIDE._replace(optional=True), "width": SIDE._replace(optional=True)}
CATEGORY = {"id": ID, "name": TEXT}
OBJECT = {"id": ID, "image_id": ID, "category_id": ID, "iscrowd": one_of(0, 1)._replace(optional=True),
          "area": Number(float, 0, 1e12),
          "bbox": Rule(lambda v: isinstance(v, list) and len(v) == 4 and all(map(COORDINATE.holds, v))
                       and v[2] >= 0 and v[3] >= 0, "x, y, width and height, finite and not negative")}


def _read(path: Path, folder: Path, parts: set[str]) -> dict:
    """An annotation file in which every field that is used later has been checked: pycocotools' C code does not
    survive infinite boxes, and a worker's error an hour from now names no file.

    UserError names the file, the entry's id, and the field.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not in COCO's format: {shown(str(error), 150)}.") from error
    lists = Rule(lambda value: isinstance(value, list), "a list")
    check_fields(content, {name: lists for name in ("images", "annotations", "categories")}, f"{path}")
    if not content["images"] or not content["categories"]:
        raise UserError(f"{path} lists {len(content['images'])} images and {len(content['categories'])} categories.")
    masks, points = bool(parts & {"mask", "segment"}), "keypoint" in parts
    sizes = {name: SIDE for name in ("height", "width")} if masks else {}
    for kind, rules in (("images", IMAGE | sizes), ("annotations", OBJECT),
                        ("categories", CATEGORY | ({"keypoints": TEXTS} if points else {}))):
        for i, one in enumerate(content[kind]):
            check_fields(one, rules, f"{path}: {kind}[{i}] (id {shown(one.get('id'))})" if isinstance(one, dict) else
                         f"{path}: {kind}[{i}]")
        if len({one["id"] for one in content[kind]}) < len(content[kind]):
            raise UserError(f"{path}: an id stands twice in {kind}.")
    images, categories = ({one["id"]: one for one in content[kind]} for kind in ("images", "categories"))
    with os.scandir(folder) as entries:
        there = {entry.name for entry in entries if is_file(entry)}
    if absent := next((name for name in (one["file_name"] for one in content["images"])
                       if name not in there and not os.path.isfile(folder / name)), None):
        raise UserError(f"{path} lists the image {shown(absent)}, and there is no such file in {folder}.")
    for o in content["annotations"]:
        what = f"{path}: annotation {o['id']}"
        for name, known in (("image_id", images), ("category_id", categories)):
            if o[name] not in known:
                raise UserError(f"{what} has {name} {o[name]}, which is not in the file.")
        image, category = images[o["image_id"]], categories[o["category_id"]]
        check_fields(o, ({"segmentation": _segmentation(image)} if masks else {})
                     | (_keypoints(len(category["keypoints"])) if points else {}), what)
    return content


def _keypoints(n: int) -> dict[str, Rule | Number]:
    def holds(value: Any) -> bool:
        return (isinstance(value, list) and len(value) == 3 * n and all(map(COORDINATE.holds, value))
                and all(v in (0, 1, 2) for v in value[2::3]))

    return {"keypoints": Rule(holds, f"x, y and 0, 1 or 2 for each of {n}"), "num_keypoints": Number(int, 0, n)}


def _segmentation(image: dict) -> Rule:
    """Polygons of three points or more, or run lengths that fill the image."""
    h, w = image["height"], image["width"]

    def holds(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0
                                       and all(map(COORDINATE.holds, p)) for p in value)
        if not isinstance(value, dict) or value.get("size") != [h, w]:
            return False
        runs = value.get("counts")
        runs = _uncompressed(runs) if isinstance(runs, str) else runs
        return isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs) and sum(runs) == h * w

    return Rule(holds, f"polygons, or run lengths of {h} x {w} px in all")


def _uncompressed(text: str) -> list[int] | None:
    """COCO's compressed run lengths as numbers: six bits a character, as in pycocotools' maskApi.c; None if torn."""
    runs, value, shift = [], 0, 0
    for c in text:
        bits = ord(c) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))     # from the third on: differences
            value = shift = 0
    return None if shift else runs


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
