"""How good are boxes, masks, keypoints and class maps?  Average precision is pycocotools' own; mIoU is six lines.

    evaluate_detector(model, data, "mask")                      # over the validation images of a Scenes

    truth = coco_truth([((H, W), target), ...], ids)            # or pycocotools.coco.COCO("instances_val2017.json")
    results = coco_results(prediction, image_id, ids, "mask")   # prediction: a detector's output for one image
    average_precision(truth, results, "mask")                   # {"ap": 0.37, "ap50": ...}

    confusion = confusion_matrix(classes, predicted, n)         # summed over images
    mean_iou(confusion)

Targets and predictions are described in scenes.py.
"""
import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..device import autocast
from ..train import processes
from .coco import coco_results, need_pycocotools
from .scenes import Scenes

COCO_KINDS = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}          # our names -> pycocotools'
AP_NAMES = {kind: ["ap", "ap50", "ap75", *sizes] for kind, sizes in (
    ("box", ["ap_small", "ap_medium", "ap_large"]), ("mask", ["ap_small", "ap_medium", "ap_large"]),
    ("keypoint", ["ap_medium", "ap_large"]))}                                   # in pycocotools' order
# The tolerance of a keypoint, as a share of the object's size: COCO measured its 17 (0.025 for an eye, 0.107 for a
# hip); others get about the mean of these.
SIGMA = 0.06


def average_precision(truth: Any, results: list[dict], kind: str) -> dict[str, float]:
    """COCO's figures, 0 to 1: AP over IoU 0.50:0.95, at 0.50, at 0.75, and by size; -1 if no object has that size."""
    need_pycocotools()
    from pycocotools.cocoeval import COCOeval

    if not results:
        return dict.fromkeys(AP_NAMES[kind], 0.0)
    with contextlib.redirect_stdout(io.StringIO()):         # it prints its own progress
        scorer = COCOeval(truth, truth.loadRes(results), COCO_KINDS[kind])
        if kind == "keypoint" and (k := len(results[0]["keypoints"]) // 3) != len(scorer.params.kpt_oks_sigmas):
            scorer.params.kpt_oks_sigmas = np.full(k, SIGMA)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return dict(zip(AP_NAMES[kind], map(float, scorer.stats)))


def confusion_matrix(classes: Tensor, predicted: Tensor, n: int) -> Tensor:
    """Pixels by true class (row) and predicted class (column): (n, n) int64.  True classes from n on are ignored."""
    inside = classes < n
    return torch.bincount(classes[inside] * n + predicted[inside], minlength=n * n).view(n, n)


def mean_iou(confusion: Tensor) -> float:
    """Intersection over union, averaged over the classes that occur, true or predicted; background is a class."""
    right, either = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return (right / either)[either > 0].mean().item()


@torch.inference_mode()
def evaluate_detector(model: nn.Module, data: Scenes, task: str, amp: bool | None = None) -> dict[str, float]:
    """box_ap, box_ap50 ... for every head (see average_precision); for "segment" miou and pixels, the share of pixels
    that are right.  Over the validation images; each process evaluates its share of them."""
    model.eval()
    n, precision = len(data.classes) + 1, autocast(data.val.device, amp)
    kinds = [] if task == "segment" else ["box", *(kind for kind in ("mask", "keypoint") if kind in task)]
    results, confusion = {kind: [] for kind in kinds}, torch.zeros(n, n, dtype=torch.int64, device=data.val.device)
    for images, targets in data.val:
        with precision:
            predictions = model(images)
        for prediction, target in zip(predictions, targets):
            for kind in kinds:
                results[kind] += coco_results(prediction, target["image_id"], data.ids, kind)
            if not kinds:
                confusion += confusion_matrix(target["classes"], prediction["classes"], n)
    if not kinds:
        confusion = processes.all_sum(confusion).cpu().double()
        return {"miou": mean_iou(confusion), "pixels": (confusion.trace() / confusion.sum()).item()}
    results = {kind: sum(processes.gather(entries), []) for kind, entries in results.items()}
    return processes.from_first(lambda: {
        f"{kind}_{name}": value for kind in kinds
        for name, value in average_precision(data.truth(), results[kind], kind).items()})
