"""The block in other networks: every 3x3 convolution that fits becomes an SCConv.

    model = torchvision.models.resnext50_32x4d()
    print(sc_replace(model))                    # in place; what was swapped, what was left, and why

The new blocks have random weights: swap first, then train.
"""
from collections import Counter
from typing import NamedTuple

from torch import nn

from ...scnet import SCBottleneck, SCConv, SelfCalibration


class Report(NamedTuple):
    """What sc_replace did.  print() shows it as a table."""
    swapped: list[str]          # names of the modules that are SCConv now
    left: dict[str, str]        # names of the convolutions that stayed, and why
    before: int                 # parameters
    after: int

    def __str__(self) -> str:
        lines = ["   0 swapped: the model is as it was"]
        if self.swapped:
            change = f"{self.before:,} -> {self.after:,} parameters ({self.after / self.before - 1:+.2%})"
            lines = [f"{len(self.swapped):4} swapped for SCConv, {change}"]
        return "\n".join(lines + [f"{n:4} left: {why}" for why, n in Counter(self.left.values()).most_common()])


def sc_replace(model: nn.Module, pooling_r: int = 4) -> Report:
    """Swap, in place, every 3x3 convolution that an SCConv can replace.  Stride, dilation and groups are kept.

    It can if there are as many channels out as in, an even number, in groups that divide each half of them, and if the
    padding equals the dilation, so that the map keeps its size.  An SCConv brings a batch norm for each of its four
    convolutions: so a batch norm right after the old one becomes an Identity, and the old one's bias goes.  Thus
    resnet50 gets exactly the parameters of scnet50, and resnext50_32x4d those of SCNeXt-50: 2 * C more for each
    convolution of C channels.

    The blocks take the device and dtype of the weights they replace; they start as the convolutions of torchvision's
    ResNets do (He).  If their maps are 4 x 4 or smaller, train with batches of two or more.

    For classifiers whose modules run in the order in which they are registered, as torchvision's do.

    Args:
        pooling_r: of the blocks.
    """
    before, swapped, left = _parameters(model), [], {}
    blocks = [name for name, m in model.named_modules() if isinstance(m, (SelfCalibration, SCConv, SCBottleneck))]
    ours = tuple(f"{name}." if name else "" for name in blocks)
    for parent_name, parent in list(model.named_modules()):
        children = list(parent.named_children())
        for i, (name, conv) in enumerate(children):
            if not isinstance(conv, nn.Conv2d):
                continue
            full = f"{parent_name}.{name}" if parent_name else name
            if why := "in a self-calibrated block already" if full.startswith(ours) else _why_not(conv):
                left[full] = why
                continue
            parent.register_module(name, _block_for(conv, pooling_r))
            swapped.append(full)
            behind, norm = children[i + 1] if i + 1 < len(children) else ("", None)
            if isinstance(norm, nn.BatchNorm2d) and norm.num_features == conv.out_channels:
                parent.register_module(behind, nn.Identity())
    return Report(swapped, left, before, _parameters(model))


def _why_not(conv: nn.Conv2d) -> str:
    """Why an SCConv cannot replace it, or "" if it can."""
    if conv.kernel_size != (3, 3):
        return "not 3x3"
    if conv.in_channels != conv.out_channels:
        return "more or fewer channels out than in"
    if conv.groups == conv.in_channels:
        return "depthwise: a single channel has no halves"
    if conv.in_channels % 2 or conv.in_channels // 2 % conv.groups:
        return "its groups do not divide half of its channels"
    if len(set(conv.stride)) > 1 or len(set(conv.dilation)) > 1:
        return "another stride or dilation across than down"
    if conv.padding not in (conv.dilation, "same") or conv.padding_mode != "zeros":
        return "not padded with as many zeros as its dilation"
    return ""


def _block_for(conv: nn.Conv2d, pooling_r: int) -> SCConv:
    block = SCConv(conv.in_channels, pooling_r, stride=conv.stride[0], dilation=conv.dilation[0], groups=conv.groups)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return block.to(conv.weight.device, conv.weight.dtype).train(conv.training)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
