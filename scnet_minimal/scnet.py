"""Self-Calibrated Convolutions and SCNet, in one file that needs torch alone.

    Liu, Hou, Cheng, Wang, Feng: "Improving Convolutional Networks with Self-Calibrated Convolutions", CVPR 2020
    https://openaccess.thecvf.com/content_CVPR_2020/html/Liu_Improving_Convolutional_Networks_With_Self-Calibrated_Convolutions_CVPR_2020_paper.html

A 3x3 convolution sees a 3x3 window.  The self-calibrated convolution lets half of its channels look at a small,
pooled copy of the map first, and uses what it saw there to decide, pixel by pixel, what to let through:

    gate = sigmoid(x1 + up(k2(pool_r(x1))))       the wide look, a number in (0, 1) for every value of x1
    y1   = k4(k3(x1) * gate)                      the calibrated half
    y2   = k1(x2)                                 the other half: an ordinary convolution
    y    = [y1, y2]

where k1 ... k4 are 3x3 convolutions, each followed by a norm.  Read on from top to bottom:

    SelfCalibration  ->  SCConv  ->  SCBottleneck  ->  SCNet  ->  scnet50, scnet101, scnet50_v1d, scnet101_v1d

The names inside a state dict are those of the authors' code, so that their weights load as they are.
"""
import re

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"]


# --- the block ------------------------------------------------------------------------------------------------------

class PoolToFit(nn.AvgPool2d):
    """Average pooling whose window (and stride) shrinks to the map where the map is smaller, on each axis by itself.

    On maps of at least `kernel_size` on both axes this is nn.AvgPool2d to the bit; below that nn.AvgPool2d fails,
    which is why the authors' network needs pictures of 97 px or more.
    """

    def forward(self, x: Tensor) -> Tensor:
        window = smaller(self.kernel_size, x.shape[2]), smaller(self.kernel_size, x.shape[3])
        return F.avg_pool2d(x, window, window)


class SelfCalibration(nn.Module):
    """The calibrated half of the block, k2 to k4: what the authors' code names `SCConv` and keeps at `.scconv`.

        y = k4(k3(x) * sigmoid(x + up(k2(pool_r(x)))))

    The paper's text upsamples bilinearly; the authors' code, and so their weights, take the nearest neighbour.

    Args:
        channels: C, in and out.
        pooling_r: window and stride r of the average pooling, in pixels of the map; smaller maps shrink it.
        stride: of the last convolution, k4.
        dilation: of all three convolutions, k2's included (it then counts in pooled pixels).
        groups: of all three convolutions; must divide C.
        norm_layer: called with C; nn.BatchNorm2d in every published network.

    Shapes: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, pooling_r: int = 4, *, stride: int = 1, dilation: int = 1, groups: int = 1,
                 norm_layer=nn.BatchNorm2d):
        super().__init__()
        check_positive(channels=channels, pooling_r=pooling_r, stride=stride, dilation=dilation, groups=groups)
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide the {channels} channels that each convolution works on.")
        self.channels = channels
        self.k2 = nn.Sequential(PoolToFit(pooling_r), *conv3x3_norm(channels, 1, dilation, groups, norm_layer))
        self.k3 = conv3x3_norm(channels, 1, dilation, groups, norm_layer)
        self.k4 = conv3x3_norm(channels, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = checked_maps(x, self.channels, "SelfCalibration")
        wide = F.interpolate(self.k2(x), size=x.shape[2:])           # (B, C, H/r, W/r) -> (B, C, H, W), nearest
        gate = torch.sigmoid(x + wide)                               # (B, C, H, W)
        return self.k4(self.k3(x) * gate)                            # (B, C, H/stride, W/stride)


class SCConv(SelfCalibration):
    """The self-calibrated convolution: stands wherever a 3x3 convolution with C channels in and C out stands.

    The first half of the channels is calibrated, the second goes through k1, a 3x3 convolution of its own.  All four
    convolutions work on C/2 channels: 4 * 9 * (C/2)^2 = 9 * C^2 weights, as many as in the 3x3 that it replaces.

    Not to be confused with "ScConv", the spatial and channel reconstruction convolution (CVPR 2023).

    Args:
        channels: C, in and out; even.
        pooling_r, stride, dilation, groups, norm_layer: as in SelfCalibration; k1 shares stride, dilation and groups,
            and the groups must divide C/2.

    Shapes: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, pooling_r: int = 4, *, stride: int = 1, dilation: int = 1, groups: int = 1,
                 norm_layer=nn.BatchNorm2d):
        check_positive(channels=channels)
        if channels % 2:
            raise ValueError(f"SCConv splits its channels into two halves, so their number must be even, not {channels}.")
        super().__init__(channels // 2, pooling_r, stride=stride, dilation=dilation, groups=groups, norm_layer=norm_layer)
        self.k1 = conv3x3_norm(channels // 2, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = checked_maps(x, 2 * self.channels, "SCConv")
        x1, x2 = x.chunk(2, dim=1)                                   # 2 x (B, C/2, H, W)
        return torch.cat([super().forward(x1), self.k1(x2)], dim=1)  # (B, C, H/stride, W/stride)


class SCBottleneck(nn.Module):
    """The residual block of SCNet: two 1x1 convolutions make the two halves, k1 and k2-k4 work on them, a 1x1 joins.

    It takes the arguments of torchvision.models.resnet.Bottleneck in the same order, so that either can be SCNet's
    `block`.  One half is planes * base_width / 64 * groups channels wide; base_width 32 makes both halves together as
    wide as ResNet's 3x3.  `avd` (the "d" of v1d) moves the stride into a 3x3 average pooling behind the two branches.

    Shapes: (B, inplanes, H, W) -> (B, 4 * planes, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, groups: int = 1,
                 base_width: int = 32, dilation: int = 1, norm_layer=nn.BatchNorm2d, *, pooling_r: int = 4, avd: bool = False):
        super().__init__()
        half = int(planes * base_width / 64) * groups
        if half < 1:
            raise ValueError(f"planes {planes} and bottleneck width {base_width} leave a half without channels: "
                             f"their product must be at least 64.")
        conv_stride = 1 if avd else stride
        self.conv1_a = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn1_a = norm_layer(half)
        self.conv1_b = nn.Conv2d(inplanes, half, 1, bias=False)
        self.bn1_b = norm_layer(half)
        self.k1 = conv3x3_norm(half, conv_stride, dilation, groups, norm_layer)
        self.scconv = SelfCalibration(half, pooling_r, stride=conv_stride, dilation=dilation, groups=groups,
                                      norm_layer=norm_layer)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if avd else nn.Identity()
        self.conv3 = nn.Conv2d(2 * half, planes * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu(self.bn1_a(self.conv1_a(x)))                   # (B, half, H, W)
        b = self.relu(self.bn1_b(self.conv1_b(x)))                   # (B, half, H, W)
        y = torch.cat([self.k1(a), self.scconv(b)], dim=1)           # (B, 2 * half, H/stride, W/stride)
        y = self.avd_layer(self.relu(y))
        y = self.bn3(self.conv3(y))                                  # (B, 4 * planes, H/stride, W/stride)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


# --- the network ----------------------------------------------------------------------------------------------------

class SCNet(nn.Module):
    """A ResNet of SCBottlenecks.  Children are named as in torchvision's ResNet, so that tools made for one fit.

    Args:
        layers: number of blocks in each of the four stages, such as (3, 4, 6, 3).
        num_classes: size of the last linear layer; 0 leaves it out.
        block: called as block(inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer), and with
            avd=True where that applies.  torchvision.models.resnet.Bottleneck fits: with it and bottleneck_width=64
            this class is torchvision's ResNet, the plain twin to compare with.
        in_chans: channels of the picture.
        output_stride: picture pixels per pixel of the last map: 32; or 16 or 8, which keep the last one or two stages
            at the resolution of the stage before and dilate their convolutions instead (for dense prediction).
        groups, bottleneck_width: `groups` and `base_width` of the block; 32 and 2 give SCNeXt.
        widths: `planes` of the four stages; the maps that leave them have 4 times as many channels.
        stem_width: None for ResNet's 7x7 stem; w for three 3x3 convolutions of w, w and 2w channels (v1d).
        avg_down: the shortcuts shrink by average pooling before their 1x1 (v1d) instead of by a strided 1x1.
        avd: the first block of stages 2 to 4 shrinks by average pooling behind its 3x3 convolutions (v1d).
        norm_layer: called with a number of channels.

    Shapes: (B, in_chans, H, W) -> logits (B, num_classes).  Any H and W; the weights were trained at 224.
    """

    def __init__(self, layers, num_classes: int = 1000, *, block=SCBottleneck, in_chans: int = 3, output_stride: int = 32,
                 groups: int = 1, bottleneck_width: int = 32, widths=(64, 128, 256, 512), stem_width: int | None = None,
                 avg_down: bool = False, avd: bool = False, norm_layer=nn.BatchNorm2d):
        super().__init__()
        for stages in (layers, widths):
            if not isinstance(stages, (tuple, list)) or len(stages) != 4 or min(stages) < 1:
                raise ValueError(f"SCNet has four stages: layers and widths are four positive numbers each, not {stages}.")
        if output_stride not in (32, 16, 8):
            raise ValueError(f"output_stride must be 32, 16 or 8, not {output_stride}.")
        check_positive(in_chans=in_chans, groups=groups, bottleneck_width=bottleneck_width)
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (no classifier) or more, not {num_classes}.")

        if stem_width is None:
            self.inplanes = widths[0]
            self.conv1 = nn.Conv2d(in_chans, self.inplanes, 7, stride=2, padding=3, bias=False)
        else:
            self.inplanes = 2 * stem_width
            self.conv1 = nn.Sequential(
                nn.Conv2d(in_chans, stem_width, 3, stride=2, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(inplace=True),
                nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(inplace=True),
                nn.Conv2d(stem_width, self.inplanes, 3, padding=1, bias=False))
        self.bn1 = norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        reached, dilation = 4, 1                                     # the stem has shrunk the picture by 4
        for stage, (blocks, planes) in enumerate(zip(layers, widths)):
            stride, first_dilation = (1 if stage == 0 else 2), dilation
            if reached * stride > output_stride:                     # no further: dilate instead of shrinking
                stride, dilation = 1, dilation * 2
            reached *= stride
            stack = []
            for i in range(blocks):
                first = i == 0
                shortcut = self._shortcut(planes * block.expansion, stride, avg_down, norm_layer) if first else None
                extra = {"avd": True} if avd and first and stage > 0 else {}
                stack.append(block(self.inplanes, planes, stride if first else 1, shortcut, groups, bottleneck_width,
                                   first_dilation if first else dilation, norm_layer, **extra))
                self.inplanes = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*stack))

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = self.inplanes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.in_chans = in_chans
        for module in self.modules():
            if isinstance(module, nn.Conv2d):                        # He et al. 2015, as in torchvision's ResNet
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _shortcut(self, outplanes: int, stride: int, avg_down: bool, norm_layer) -> nn.Module | None:
        if stride == 1 and self.inplanes == outplanes:
            return None
        if not avg_down:
            return nn.Sequential(nn.Conv2d(self.inplanes, outplanes, 1, stride=stride, bias=False), norm_layer(outplanes))
        return nn.Sequential(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                             nn.Conv2d(self.inplanes, outplanes, 1, bias=False), norm_layer(outplanes))

    def forward_features(self, x: Tensor) -> Tensor:
        """Pictures (B, in_chans, H, W) to the last map (B, num_features, H / output_stride, W / output_stride)."""
        x = checked_maps(x, self.in_chans, "SCNet")
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))         # (B, 64, H/4, W/4)
        x = self.layer1(x)                                           # (B, 256, H/4, W/4)
        x = self.layer2(x)                                           # (B, 512, H/8, W/8)
        x = self.layer3(x)                                           # (B, 1024, H/16, W/16)
        return self.layer4(x)                                        # (B, 2048, H/32, W/32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.forward_features(x))                   # (B, 2048, 1, 1)
        return self.fc(torch.flatten(x, 1))                          # (B, num_classes)


# --- the four networks ----------------------------------------------------------------------------------------------

def scnet50(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3, output_stride: int = 32,
            **kwargs) -> SCNet:
    """SCNet-50: 25,564,584 parameters; 22.19 % top-1 error on ImageNet (published).  **kwargs go to SCNet."""
    return _build((3, 4, 6, 3), pretrained, weights, num_classes, in_chans, output_stride, kwargs)


def scnet101(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3, output_stride: int = 32,
             **kwargs) -> SCNet:
    """SCNet-101: 44,565,416 parameters; 21.06 % top-1 error on ImageNet (published).  **kwargs go to SCNet."""
    return _build((3, 4, 23, 3), pretrained, weights, num_classes, in_chans, output_stride, kwargs)


def scnet50_v1d(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3,
                output_stride: int = 32, **kwargs) -> SCNet:
    """SCNet-50 v1d: 25,583,816 parameters; 19.53 % top-1 error on ImageNet (published).  **kwargs go to SCNet."""
    v1d = dict(stem_width=32, avg_down=True, avd=True)
    return _build((3, 4, 6, 3), pretrained, weights, num_classes, in_chans, output_stride, v1d | kwargs)


def scnet101_v1d(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3,
                 output_stride: int = 32, **kwargs) -> SCNet:
    """SCNet-101 v1d: 44,689,192 parameters; its weights were never released.  **kwargs go to SCNet."""
    v1d = dict(stem_width=64, avg_down=True, avd=True)
    return _build((3, 4, 23, 3), pretrained, weights, num_classes, in_chans, output_stride, v1d | kwargs)


def _build(layers, pretrained, weights, num_classes, in_chans, output_stride, kwargs) -> SCNet:
    if pretrained or weights is not None:
        raise NotImplementedError("Loading the official weights is not in this version yet; build with pretrained=False.")
    return SCNet(layers, num_classes, in_chans=in_chans, output_stride=output_stride, **kwargs)


# The mirror's files (pytorchcv) hold the same tensors under other names: one rule a line, applied from top to bottom.
_MIRROR_NAMES = [
    (r"^features\.init_block\.conv1\.conv\.", "conv1.0."), (r"^features\.init_block\.conv1\.bn\.", "conv1.1."),
    (r"^features\.init_block\.conv2\.conv\.", "conv1.3."), (r"^features\.init_block\.conv2\.bn\.", "conv1.4."),
    (r"^features\.init_block\.conv3\.conv\.", "conv1.6."), (r"^features\.init_block\.conv3\.bn\.", "bn1."),
    (r"^features\.init_block\.conv\.conv\.", "conv1."), (r"^features\.init_block\.conv\.bn\.", "bn1."),
    (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
    (r"\.body\.conv1([ab])\.conv\.", r".conv1_\1."), (r"\.body\.conv1([ab])\.bn\.", r".bn1_\1."),
    (r"\.body\.conv2a\.", ".k1."), (r"\.body\.conv3\.conv\.", ".conv3."), (r"\.body\.conv3\.bn\.", ".bn3."),
    (r"\.body\.conv2b\.down\.conv\.conv\.", ".scconv.k2.1."), (r"\.body\.conv2b\.down\.conv\.bn\.", ".scconv.k2.2."),
    (r"\.body\.conv2b\.conv1\.", ".scconv.k3."), (r"\.body\.conv2b\.conv2\.", ".scconv.k4."),
    (r"\.identity_block\.conv\.conv\.", ".downsample.1."), (r"\.identity_block\.conv\.bn\.", ".downsample.2."),
    (r"\.identity_block\.conv\.", ".downsample.0."), (r"\.identity_block\.bn\.", ".downsample.1."),
    (r"(\.k[134])\.conv\.", r"\1.0."), (r"(\.k[134])\.bn\.", r"\1.1."), (r"^output\.", "fc."),
]


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the mirror's names (pytorchcv's) under the official ones; official names stay as they are."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _MIRROR_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


# --- what the classes above lean on ---------------------------------------------------------------------------------

def conv3x3_norm(channels: int, stride: int, dilation: int, groups: int, norm_layer) -> nn.Sequential:
    """A 3x3 convolution, C -> C, padded so that only the stride shrinks the map, and its norm."""
    conv = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, norm_layer(channels))


def check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}.")


@torch.fx.wrap
def smaller(a: int, b: int) -> int:
    """min(a, b), as a leaf for torch.fx, and without fixing a size that torch.export keeps open."""
    return torch.sym_min(a, b) if isinstance(b, torch.SymInt) else min(a, b)


@torch.fx.wrap
def checked_maps(x: Tensor, channels: int, who: str) -> Tensor:
    """x itself, or one sentence on what is wrong with it.  A leaf for torch.fx, which cannot trace an `if`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{who} takes a torch.Tensor, not {type(x).__name__} (a picture? torchvision.transforms.v2 converts it).")
    if x.dim() != 4:
        hint = " (one picture? add the batch dimension with x[None])" if x.dim() == 3 else ""
        raise ValueError(f"{who} takes a batch (B, {channels}, H, W), not shape {tuple(x.shape)}{hint}.")
    if x.shape[1] != channels:
        hint = " (channels last? use x.permute(0, 3, 1, 2))" if x.shape[3] == channels else ""
        raise ValueError(f"{who} was built for {channels} channels, but x has shape {tuple(x.shape)}{hint}.")
    if not x.is_floating_point():
        raise TypeError(f"{who} takes floating-point numbers, not {x.dtype} (a picture? x.float() / 255, then normalize).")
    return x
