"""How good are boxes, masks, keypoints and class maps?  Average precision is pycocotools' own; mIoU is six lines.

    evaluate(model, data, "mask")                           # all of it, over the validation pictures of a Scenes

    truth = as_coco([((H, W), target), ...], ids)           # or pycocotools.coco.COCO("instances_val2017.json")
    results = as_results(found, image_id, ids, "mask")      # found: what a detector says of one picture
    average_precision(truth, results, "mask")               # {"ap": 0.37, "ap50": ...}

    confusion = confusion_matrix(classes, found, n)         # summed over pictures
    mean_iou(confusion)

Targets and detections are the dicts of scenes.py and of torchvision's detectors.
"""
import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import distributed
from .engine import autocast

KINDS = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}           # ours -> COCO's
NAMES = {kind: ["ap", "ap50", "ap75", *sizes] for kind, sizes in (
    ("box", ["ap_small", "ap_medium", "ap_large"]), ("mask", ["ap_small", "ap_medium", "ap_large"]),
    ("keypoint", ["ap_medium", "ap_large"]))}                               # COCO's order
# How far a keypoint may lie off, as a share of the object's size: COCO measured its 17 (0.025 for an eye, 0.107 for a
# hip); others get what is about the mean of these.
SIGMA = 0.06


def need_pycocotools() -> None:
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise ValueError("Average precision and COCO's files need pycocotools: pip install pycocotools "
                         "(--task segment on toynette does without).") from None


def encode(mask: Tensor | np.ndarray) -> dict:
    """A mask (H, W), 0 or 1, as COCO's compressed run lengths, in plain text."""
    from pycocotools import mask as rle

    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def _boxes(boxes: Tensor) -> list[list[float]]:
    """Corners -> COCO's x, y, width, height."""
    boxes = boxes.cpu().double()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def as_coco(targets: list[tuple[tuple[int, int], dict]], ids: list[int]) -> Any:
    """Truth as a pycocotools COCO.  targets: ((H, W), target) of each picture; ids: categories of labels 1, 2 ..."""
    need_pycocotools()
    from pycocotools.coco import COCO

    objects = []
    for _, target in targets:
        boxes = _boxes(target["boxes"])
        for i, (box, label) in enumerate(zip(boxes, target["labels"].tolist())):
            one = {"id": len(objects) + 1, "image_id": target["image_id"], "category_id": ids[label - 1], "iscrowd": 0,
                   "bbox": box, "area": box[2] * box[3]}
            if "masks" in target:
                mask = target["masks"][i].cpu().numpy()
                one |= {"segmentation": encode(mask), "area": float(mask.sum())}
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


def as_results(found: dict, image_id: int, ids: list[int], kind: str) -> list[dict]:
    """What a detector says of one picture, in the form of COCO's result files.

    found: boxes (N, 4), labels (N,), scores (N,) and, where kind asks for them, masks (N, 1, H, W) in 0..1 or keypoints
    (N, K, 3).  kind: "box", "mask" or "keypoint".
    """
    if kind == "box":
        parts = [{"bbox": box} for box in _boxes(found["boxes"])]
    elif kind == "mask":
        parts = [{"segmentation": encode(mask)} for mask in (found["masks"][:, 0] > 0.5).cpu().numpy()]
    else:
        points = found["keypoints"].cpu().double()
        parts = [{"keypoints": one.flatten().tolist()} for one in points]
    return [{"image_id": image_id, "category_id": ids[label - 1], "score": score} | part
            for label, score, part in zip(found["labels"].tolist(), found["scores"].tolist(), parts)]


def average_precision(truth: Any, results: list[dict], kind: str) -> dict[str, float]:
    """COCO's figures, 0 to 1: AP over IoU 0.50:0.95, at 0.50, at 0.75, and by size; -1 where no such object is."""
    need_pycocotools()
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(NAMES[kind], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):         # it tells its own progress
        judge = COCOeval(truth, truth.loadRes(results), KINDS[kind])
        if kind == "keypoint" and (points := len(results[0]["keypoints"]) // 3) != len(judge.params.kpt_oks_sigmas):
            judge.params.kpt_oks_sigmas = np.full(points, SIGMA)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(NAMES[kind], map(float, judge.stats)))


def confusion_matrix(classes: Tensor, found: Tensor, n: int) -> Tensor:
    """Pixels by true (row) and predicted class (column): (n, n) int64; true classes from n on count for nothing."""
    inside = classes < n
    return torch.bincount(classes[inside] * n + found[inside], minlength=n * n).view(n, n)


def mean_iou(confusion: Tensor) -> float:
    """Intersection over union, the mean over the classes that are there, truly or as found; the background is one."""
    right, either = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return (right / either)[either > 0].mean().item()


# --- over a whole split -----------------------------------------------------------------------------------------------

@torch.inference_mode()
def evaluate(model: nn.Module, data: Any, task: str, amp: bool | None = None) -> dict[str, float]:
    """box_ap, box_ap50 ... of every head (precision.average_precision), or miou and pixels (the share that is right),
    over the validation pictures; with several processes each looks at its share."""
    model.eval()
    n, precision = len(data.classes) + 1, autocast(data.val.device, amp)
    kinds = [] if task == "segment" else ["box", *(kind for kind in ("mask", "keypoint") if kind in task)]
    results, confusion = {kind: [] for kind in kinds}, torch.zeros(n, n, dtype=torch.int64, device=data.val.device)
    for pictures, targets in data.val:
        with precision:
            found = model(pictures)
        for one, target in zip(found, targets):
            for kind in kinds:
                results[kind] += as_results(one, target["image_id"], data.ids, kind)
            if not kinds:
                confusion += confusion_matrix(target["classes"], one["classes"], n)
    if not kinds:
        confusion = distributed.total(confusion).cpu().double()
        return {"miou": mean_iou(confusion), "pixels": (confusion.trace() / confusion.sum()).item()}
    results = from_all(results)
    return distributed.from_first(lambda: {
        f"{kind}_{name}": value for kind in kinds
        for name, value in average_precision(data.truth(), results[kind], kind).items()})


def from_all(results: dict[str, list]) -> dict[str, list]:
    """The lists of all processes, joined."""
    if not distributed.on():
        return results
    parts = [None] * distributed.world()
    torch.distributed.all_gather_object(parts, results)
    return {kind: [one for part in parts for one in part[kind]] for kind in results}
