"""SCNet under torchvision's heads: boxes, masks, keypoints, class maps.

    model = build("mask", "scnet50", classes=80, pretrained=True)       # Mask R-CNN with a feature pyramid
    losses = model(pictures, targets)                                   # in training mode: a dict of losses
    found = model.eval()(pictures)                                      # in eval mode: a dict for each picture

Pictures and targets are those of scenes.py.  detection.py trains such a model, and has these two functions, too.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, faster_rcnn, keypoint_rcnn, mask_rcnn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from ..scnet import load_weights
from . import checkpoint, nets
from .data import MEAN, STD
from .scenes import VOID

TASKS = ("box", "mask", "keypoint", "mask+keypoint", "segment")
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")          # from the last on: torchvision's trainable_layers

def build(task: str = "box", arch: str = "scnet50", classes: int = 80, *, weights: str | Path | None = None,
          pretrained: bool = False, trainable: int | None = None, frozen: bool | None = None, size: int = 800,
          channels: int = 256, keypoints: int = 17, head: str = "fcn") -> nn.Module:
    """A network of nets.build() under one of torchvision's heads.

    Args:
        task: "box" is Faster R-CNN, "mask" Mask R-CNN, "keypoint" Keypoint R-CNN, each with a feature pyramid;
            "mask+keypoint" has both heads; "segment" is FCN or DeepLabV3, with the network at output stride 8.
        arch: ours, a plain twin, or a ResNet or ResNeXt of torchvision.
        classes: of objects; the background is one more, label 0.
        weights: path of a classifier's weights to begin with: official ones, or any checkpoint of ours.
        pretrained: begin with ImageNet's weights: the official ones for ours, torchvision's V1 for its own.
        trainable: stages that learn, counted from the last, 0 to 5; None: 3 of a trained network, else all 5.
        frozen: norms keep their statistics, scale and shift; None: those of a trained network do.
        size: the pictures' shorter side is brought to it, px (the longer to at most 5/3 of it); anchors, too, are
            shares of it: torchvision's at 800.
        channels: of the pyramid, from which the heads' widths follow: torchvision's at 256.  32 suits the toy networks.
        keypoints: K, of an object.
        head: "fcn" or "deeplab", for "segment".

    A model in training mode takes lists of pictures (3, H, W) in 0..1 and of targets and gives losses by name; in eval
    mode it gives a dict for each picture, in the picture's own pixels: boxes, labels, scores, masks, keypoints as
    torchvision's detectors do, and for "segment" classes (H, W) int64.  ValueError for what does not go together.
    """
    if task not in TASKS or head not in ("fcn", "deeplab"):
        raise ValueError(f"task must be one of {', '.join(TASKS)} and head fcn or deeplab, not {task!r} and {head!r}.")
    known = bool(weights or pretrained)
    frozen, trainable = known if frozen is None else frozen, (3 if known else 5) if trainable is None else trainable
    if not 0 <= trainable <= 5:
        raise ValueError(f"trainable counts stages from the last, 0 to 5, not {trainable}.")
    body = _body(arch, weights, pretrained, task == "segment", FrozenBatchNorm2d if frozen else nn.BatchNorm2d)
    learning = (*STAGES[:trainable], "bn1") if trainable == 5 else STAGES[:trainable]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(learning))
    return _Segmenter(body, classes, size, head) if task == "segment" else _detector(body, task, classes, size,
                                                                                     channels, keypoints)


def _body(arch: str, weights: str | Path | None, pretrained: bool, dense: bool, norm_layer) -> nn.Module:
    ours, options = arch in nets.OURS, {"norm_layer": norm_layer}
    if dense:
        options |= {"output_stride": 8} if ours else {"replace_stride_with_dilation": [False, True, True]}
    if pretrained and not weights:
        options |= {"pretrained": True} if ours else {"weights": "IMAGENET1K_V1"}
    try:
        body = nets.build(arch, 1000 if "weights" in options else 1, **options)     # the head is not used: 1 is small
    except (RuntimeError, OSError) as error:
        raise ValueError(f"The weights of {arch} could not be fetched: {error}\nCheck the network, or get the file by "
                         "hand and name it with weights=PATH (--weights PATH).") from None
    except TypeError:
        why = "there are no ImageNet weights of it" if pretrained else "it has no four stages"
        raise ValueError(f"{arch} cannot carry these heads: {why}. Take scnet50, or a ResNet of torchvision.") from None
    if not hasattr(body, "layer4"):
        raise ValueError(f"{arch} has no four stages to stand on: take one of ours, or a ResNet of torchvision.")
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


class _Segmenter(nn.Module):
    """torchvision's FCN or DeepLabV3 behind the interface of its detectors; without an auxiliary head."""

    def __init__(self, body: nn.Module, classes: int, size: int, head: str) -> None:
        super().__init__()
        maps = IntermediateLayerGetter(body, {"layer4": "out"})
        self.transform = GeneralizedRCNNTransform(size, size * 5 // 3, list(MEAN), list(STD))
        if head == "fcn":
            self.network = segmentation.FCN(maps, segmentation.fcn.FCNHead(body.inplanes, classes + 1))
        else:
            self.network = segmentation.DeepLabV3(maps, segmentation.deeplabv3.DeepLabHead(body.inplanes, classes + 1))

    def forward(self, pictures: list[Tensor], targets: list[dict] | None = None) -> dict | list[dict]:
        batch, _ = self.transform(pictures)
        logits = [F.interpolate(one[None, :, :h, :w], size=picture.shape[1:], mode="bilinear")      # padding cut off
                  for one, (h, w), picture in zip(self.network(batch.tensors)["out"], batch.image_sizes, pictures)]
        if targets is None:
            return [{"classes": one[0].argmax(0)} for one in logits]
        losses = [F.cross_entropy(one, target["classes"][None], ignore_index=VOID)
                  for one, target in zip(logits, targets)]
        return {"loss_classes": torch.stack(losses).mean()}


def load(path: str | Path) -> tuple[nn.Module, dict]:
    """A network in eval mode from a file of this command (best.pt, last.pt, or what --export wrote), and what else is
    in the file: task, classes (names), the figures of its epoch."""
    found = checkpoint.read_file(path)
    if "build" not in found:
        raise ValueError(f"{path} is no file of this command: it does not say how its network is built.")
    model = build(**found["build"])
    checkpoint.load_whole(model, found, path)
    return model.eval(), {name: value for name, value in found.items() if name != "state_dict"}
