"""A network by its name: ours, their plain twins, any classifier of torchvision.

    build("scnet50", num_classes=10)
    build("resnet_toy", num_classes=10)

A plain twin is the same SCNet with ResNet's bottleneck in place of ours; that of scnet50 is torchvision's resnet50.
The two toy networks are for Toynette: a block a stage, a quarter of the width, half a million parameters each, and
output stride 16, so that a picture of 96 px leaves a map of 6 x 6 where the full networks make 7 x 7 of 224 px.
"""
import difflib
from functools import partial

import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from .. import scnet

PLAIN = dict(block=Bottleneck, bottleneck_width=64)
TOY = dict(layers=(1, 1, 1, 1), widths=(16, 32, 64, 128), output_stride=16)
V1D = dict(stem_width=32, avg_down=True)                # avd belongs to our block; torchvision's strides its 3x3
OURS = {
    "scnet50": scnet.scnet50, "scnet101": scnet.scnet101,
    "scnet50_v1d": scnet.scnet50_v1d, "scnet101_v1d": scnet.scnet101_v1d,
    "resnet50_v1d": partial(scnet.SCNet, (3, 4, 6, 3), **V1D, **PLAIN),
    "scnet_toy": partial(scnet.SCNet, **TOY), "resnet_toy": partial(scnet.SCNet, **TOY, **PLAIN),
}


def names() -> list[str]:
    """Every name that build() knows: ours and the toy networks first, then torchvision's classifiers."""
    return [*OURS, *torchvision.models.list_models(module=torchvision.models)]


def build(name: str, num_classes: int = 1000, **kwargs) -> nn.Module:
    """A new network with random weights; kwargs go to its builder.  ValueError for a name that nobody knows."""
    if name in OURS:
        return OURS[name](num_classes=num_classes, **kwargs)
    if name not in names():
        close = difflib.get_close_matches(name, names(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"ours are {', '.join(OURS)}."
        raise ValueError(f"There is no network {name!r}: {hint}")
    if name.startswith(("inception", "googlenet")):     # by default these two return their auxiliary heads as well
        kwargs = {"aux_logits": False, "init_weights": True} | kwargs
    return torchvision.models.get_model(name, num_classes=num_classes, **kwargs)
