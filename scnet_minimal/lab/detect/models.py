"""SCNet under torchvision's heads: boxes, masks, keypoints, class maps.

    model = build_detector("mask", "scnet50", classes=80, pretrained=True)  # Mask R-CNN with a feature pyramid
    losses = model(images, targets)                                         # in training mode: a dict of losses
    predictions = model.eval()(images)                                      # in eval mode: a dict for each image

    model, about = load_detector("runs/mask/best.pt")                       # what lab/detection.py has trained

Images, targets and predictions are described in scenes.py.
"""
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, faster_rcnn, keypoint_rcnn, mask_rcnn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from ...weights import load_weights
from .. import zoo
from ..checks import FLAG, TEXT, Number, check_fields, one_of
from ..data import MEAN, STD
from ..errors import UserError, user_errors
from ..train.checkpoint import load_exactly, read_file
from .coco import VOID

TASKS = ("box", "mask", "keypoint", "mask+keypoint", "segment")
BUILD = {"task": one_of(*TASKS), "arch": TEXT, "size": Number(int, 32, 4096), "channels": Number(int, 8, 4096),
         "head": one_of("fcn", "deeplab"), "trainable": Number(int, 0, 5), "frozen": FLAG,
         "classes": Number(int, 1, 10**5), "keypoints": Number(int, 1, 1000)}       # what a file says of its model
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")          # from the last on, as in torchvision


def build_detector(task: str = "box", arch: str = "scnet50", classes: int = 80, *, weights: str | Path | None = None,
                   pretrained: bool = False, trainable: int | None = None, frozen: bool | None = None,
                   size: int = 800, channels: int = 256, keypoints: int = 17, head: str = "fcn") -> nn.Module:
    """A classification network under one of torchvision's heads.

    Args:
        task: "box" is Faster R-CNN, "mask" Mask R-CNN, "keypoint" Keypoint R-CNN, each with a feature pyramid;
            "mask+keypoint" has both heads; "segment" is FCN or DeepLabV3, on the network at output stride 8.
        arch: one of ours, a plain twin, or a ResNet or ResNeXt of torchvision.
        classes: of objects; the background is one more, label 0.
        weights: path of a classifier's weights to start from: official ones, or a checkpoint of this project.
        pretrained: start from ImageNet weights: the official ones for ours, torchvision's V1 for its own.
        trainable: how many stages are trained, counted from the last, 0 to 5; None: 3 of a network that starts from
            weights, else all 5.
        frozen: whether norms keep their statistics, scale and shift; None: if the network starts from weights.
        size: images are resized to this shorter side, px (the longer side is at most 5/3 of it); anchors scale with
            it, and are torchvision's at 800.
        channels: of the pyramid; the heads' widths follow from it, and are torchvision's at 256.  32 suits the toy
            networks.
        keypoints: K, per object.
        head: "fcn" or "deeplab", for "segment".

    A model in training mode takes lists of images (3, H, W) in 0..1 and of targets, and returns losses by name.  In
    eval mode it returns a dict for each image, in that image's own pixels: boxes, labels, scores, masks, keypoints as
    torchvision's detectors do, and for "segment" classes (H, W) int64.

    UserError for arguments that do not fit together, and for weights that cannot be had.
    """
    if task not in TASKS or head not in ("fcn", "deeplab"):
        raise UserError(f"task must be one of {', '.join(TASKS)} and head fcn or deeplab, not {task!r} and {head!r}.")
    starts_from_weights = bool(weights or pretrained)
    frozen = starts_from_weights if frozen is None else frozen
    trainable = (3 if starts_from_weights else 5) if trainable is None else trainable
    if not 0 <= trainable <= 5:
        raise UserError(f"trainable counts stages from the last, 0 to 5, not {trainable}.")
    body = _body(arch, weights, pretrained, task == "segment", FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    stages = (*STAGES[:trainable], "bn1") if trainable == 5 else STAGES[:trainable]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(stages))
    if task == "segment":
        return Segmenter(body, classes, size, head)
    return _detector(body, task, classes, size, channels, keypoints)


def _body(arch: str, weights: str | Path | None, pretrained: bool, dense: bool, norm_layer) -> nn.Module:
    """The classification network, without its classifier; dense: at output stride 8."""
    ours, options = arch in zoo.OURS, {"norm_layer": norm_layer}
    if dense:
        options |= {"output_stride": 8} if ours else {"replace_stride_with_dilation": [False, True, True]}
    if not ours and arch in zoo.model_names():
        if torchvision.models.get_model_builder(arch).__module__ != "torchvision.models.resnet":
            raise UserError(f"{arch} has no four stages for these heads: take one of ours, or a ResNet of torchvision.")
        if dense and arch in ("resnet18", "resnet34"):
            raise UserError(f"{arch} cannot be dilated for --task segment: take resnet50, or one of ours.")
    body = zoo.create_model(arch, 1, **options)
    body.fc = nn.Identity()
    if pretrained and not weights:
        with user_errors(RuntimeError, OSError, hint="A file of your own loads with --weights PATH."):
            weights = zoo.fetch_imagenet(arch, "IMAGENET1K_V1")
    with user_errors(ValueError, OSError, ImportError):
        return load_weights(body, weights) if weights else body


def _detector(body: nn.Module, task: str, classes: int, size: int, channels: int, keypoints: int) -> FasterRCNN:
    widths = [body.inplanes // 8 * 2**i for i in range(4)]                          # of the maps of the four stages
    pyramid = BackboneWithFPN(body, {f"layer{i + 1}": str(i) for i in range(4)}, widths, channels)
    anchors = AnchorGenerator(tuple((size * share // 25,) for share in (1, 2, 4, 8, 16)), ((0.5, 1.0, 2.0),) * 5)
    sizes = dict(min_size=size, max_size=size * 5 // 3, rpn_anchor_generator=anchors)
    if size <= 256:                                                                 # few objects: fewer proposals
        sizes |= dict(rpn_pre_nms_top_n_train=400, rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_train=100,
                      rpn_post_nms_top_n_test=100, box_batch_size_per_image=32)
    heads = dict(box_head=faster_rcnn.TwoMLPHead(49 * channels, 4 * channels),
                 box_predictor=faster_rcnn.FastRCNNPredictor(4 * channels, classes + 1))
    mask = dict(mask_head=mask_rcnn.MaskRCNNHeads(channels, (channels,) * 4, 1),
                mask_predictor=mask_rcnn.MaskRCNNPredictor(channels, channels, classes + 1))
    points = dict(keypoint_head=keypoint_rcnn.KeypointRCNNHeads(channels, (2 * channels,) * 8),
                  keypoint_predictor=keypoint_rcnn.KeypointRCNNPredictor(2 * channels, keypoints))
    if task == "box":
        return FasterRCNN(pyramid, **sizes, **heads)
    if task == "mask":
        return MaskRCNN(pyramid, **sizes, **heads, **mask)
    model = KeypointRCNN(pyramid, num_keypoints=None, **sizes, **heads, **points)
    if task == "mask+keypoint":                     # RoIHeads runs every head that it has
        model.roi_heads.mask_roi_pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        model.roi_heads.mask_head, model.roi_heads.mask_predictor = mask.values()
    return model


class Segmenter(nn.Module):
    """torchvision's FCN or DeepLabV3, without an auxiliary head, with the interface of torchvision's detectors."""

    def __init__(self, body: nn.Module, classes: int, size: int, head: str) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(size, size * 5 // 3, list(MEAN), list(STD))
        if head == "fcn":
            self.network = segmentation.FCN(_LastMap(body), segmentation.fcn.FCNHead(body.inplanes, classes + 1))
        else:
            classifier = segmentation.deeplabv3.DeepLabHead(body.inplanes, classes + 1)
            self.network = segmentation.DeepLabV3(_LastMap(body), classifier)

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict | list[dict]:
        batch, _ = self.transform(images)
        logits = [F.interpolate(one[None, :, :h, :w], size=image.shape[1:], mode="bilinear")        # padding cut off
                  for one, (h, w), image in zip(self.network(batch.tensors)["out"], batch.image_sizes, images)]
        if targets is None:
            return [{"classes": one[0].argmax(0)} for one in logits]
        losses = [F.cross_entropy(one, target["classes"][None], ignore_index=VOID)
                  for one, target in zip(logits, targets)]
        return {"loss_classes": torch.stack(losses).mean()}


class _LastMap(nn.Sequential):
    """A network up to its layer4, under its own names: (B, 3, H, W) -> {"out": (B, C, H / 8, W / 8)}."""

    def __init__(self, body: nn.Module) -> None:
        children = dict(body.named_children())
        names = list(children)
        super().__init__(OrderedDict((name, children[name]) for name in names[:names.index("layer4") + 1]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(x)}


def load_detector(path: str | Path) -> tuple[nn.Module, dict]:
    """A model in eval mode from a file of the detection command (best.pt, last.pt, or what --export wrote), and what
    else the file holds: task, classes (names), the results of its epoch.  UserError if it is no such file."""
    content = read_file(path)
    if not isinstance(content.get("build"), dict):
        raise UserError(f"{path} was not written by the detection command: it does not say how its model is built.")
    check_fields(content["build"], BUILD, f"The model of {path}")
    build = {name: content["build"].get(name) for name in BUILD}
    model = build_detector(**build)
    load_exactly(model, content, path)
    about = {name: value for name, value in content.items() if name != "state_dict"}
    return model.eval(), about | {"build": build, "task": build["task"], "arch": build["arch"]}
