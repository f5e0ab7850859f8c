"""Targets or predictions, drawn over an image.

    overlay(image, prediction, "mask", CLASSES)         # (3, h, w) uint8, for imshow after permute(1, 2, 0)
"""
import colorsys
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from .scenes import Scenes


def overlay(image: Tensor, objects: dict, task: str, classes: list[str], *, above: float = 0.5) -> Tensor:
    """A target or a prediction over its image (3, H, W) in 0..1: (3, h, w) uint8, small images enlarged.

    task: what to draw, as for build_detector.  Predictions with a score of at most `above` are left out.
    """
    scale = max(1, round(384 / image.shape[2]))
    canvas = F.interpolate(image[None].cpu(), scale_factor=scale, mode="bicubic")[0].clamp(0, 1).mul(255).byte()
    hues = [colorsys.hsv_to_rgb(i * 0.618 % 1, 0.65, 1) for i in range(len(classes))]   # light: names are black on them
    palette = [tuple(round(255 * c) for c in hue) for hue in hues]

    def enlarged(masks: Tensor) -> Tensor:
        return masks.repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    if task == "segment":
        masks = enlarged(objects["classes"].cpu()) == torch.arange(1, len(classes) + 1)[:, None, None]
        return draw_segmentation_masks(canvas, masks, alpha=0.6, colors=palette)
    keep = objects["scores"] > above if "scores" in objects else objects["labels"] > 0
    parts = {"boxes", "labels", "scores", "masks", "keypoints"} & objects.keys()
    objects = {name: objects[name][keep].cpu() for name in parts}
    if not len(objects["labels"]):
        return canvas
    labels = (objects["labels"] - 1).tolist()
    colours = [palette[i] for i in labels]
    if "mask" in task:
        masks = enlarged(objects["masks"].flatten(0, -3)) > 0.5
        canvas = draw_segmentation_masks(canvas, masks, alpha=0.5, colors=colours)
    points = [p[p[:, 2] > 0, :2] * scale for p in objects["keypoints"]] if "keypoint" in task else []
    for colour, radius in (("black", 5), ("white", 3)):              # visible on any colour
        for p in points:
            canvas = draw_keypoints(canvas, p[None], colors=colour, radius=radius)
    scores = [f" {score:.0%}" for score in objects["scores"].tolist()] if "scores" in objects else [""] * len(labels)
    names = [classes[i] + score for i, score in zip(labels, scores)]
    return draw_bounding_boxes(canvas, objects["boxes"] * scale, names, colours, fill_labels=True, width=2)


@torch.inference_mode()
def save_predictions(model: nn.Module, data: Scenes, task: str, path: Path, count: int = 6) -> None:
    """Write a PNG of the first validation images: targets in the upper row, the model's predictions in the lower."""
    model.eval()
    rows = [[], []]
    for i in range(min(count, len(data.val.scenes))):
        image, target = data.val.scenes[i]
        image = image.to(data.val.device).float() / 255
        for row, objects in zip(rows, (target, model([image])[0])):
            row.append(overlay(image, objects, task, data.classes))
    height, width = (max(x.shape[side] for x in rows[0]) for side in (1, 2))
    tiles = [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for row in rows for x in row]
    grid = torchvision.utils.make_grid(tiles, nrow=len(rows[0]))
    torchvision.transforms.functional.to_pil_image(grid).save(path)
