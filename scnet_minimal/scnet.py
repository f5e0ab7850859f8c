"""Self-Calibrated Convolutions and SCNet, in one file that needs torch alone.

    Liu, Hou, Cheng, Wang, Feng: "Improving Convolutional Networks with Self-Calibrated Convolutions", CVPR 2020
    https://openaccess.thecvf.com/content_CVPR_2020/html/Liu_Improving_Convolutional_Networks_With_Self-Calibrated_Convolutions_CVPR_2020_paper.html

A 3x3 convolution sees a 3x3 window.  A self-calibrated convolution lets half of its channels, x1, first look at a
small, pooled copy of themselves; what they see there decides, value by value, how much of the sharp map passes:

    gate = sigmoid(x1 + up(k2(x1)))      k2 pools first, so it looks far; up() brings its map back to the size of x1
    y1   = k4(k3(x1) * gate)             the calibrated half
    y2   = k1(x2)                        the other half: an ordinary convolution
    y    = [y1, y2]

k1 to k4 are 3x3 convolutions, each followed by a norm.  Every part below is made of the parts above it:

    SelfCalibration  ->  SCConv, SCBottleneck  ->  SCNet  ->  scnet50, scnet101, scnet50_v1d, scnet101_v1d

State-dict names are those of the authors' code (https://github.com/MCG-NKU/SCNet), so their weights load as they are.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"]


def conv3x3_norm(channels: int, stride: int, dilation: int, groups: int, norm_layer) -> nn.Sequential:
    """A 3x3 convolution, C -> C, padded so that only the stride shrinks the map; then its norm."""
    conv = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, norm_layer(channels))


@fx.wrap                                                             # one step for torch.fx, which cannot trace an `if`
def smaller(a: int, b: int) -> int:
    return torch.sym_min(a, b) if isinstance(b, torch.SymInt) else min(a, b)         # SymInt: an open size in an export


class PoolToFit(nn.AvgPool2d):
    """Average pooling with stride = window; on an axis where the map is smaller than the window, the window shrinks."""

    def forward(self, x: Tensor) -> Tensor:
        window = smaller(self.kernel_size, x.shape[2]), smaller(self.kernel_size, x.shape[3])
        return F.avg_pool2d(x, window, window)                       # the authors' nn.AvgPool2d fails below 97 px


class SelfCalibration(nn.Module):
    """The calibrated half of the block, k2 to k4: what the authors' code calls `SCConv` and keeps at `.scconv`.

    up() takes the nearest value, as the authors' code does and their weights need; the paper's text says bilinear.

    Args:
        channels: C, in and out.
        pooling_r: r, the side of the pooling window in pixels of the map.
        stride: of k4.  dilation, groups: of all three convolutions; in k2 the dilation counts pooled pixels.
        norm_layer: called with C.

    Shapes: (B, C, H, W) -> (B, C, H / stride, W / stride), rounded up.
    """

    def __init__(self, channels, pooling_r=4, *, stride=1, dilation=1, groups=1, norm_layer=nn.BatchNorm2d):
        super().__init__()
        if min(channels, pooling_r, stride, dilation, groups) < 1 or channels % groups:
            raise ValueError("A half needs positive numbers, and groups that divide its channels; found "
                             f"{channels=}, {pooling_r=}, {stride=}, {dilation=}, {groups=}.")
        self.k2 = nn.Sequential(PoolToFit(pooling_r), *conv3x3_norm(channels, 1, dilation, groups, norm_layer))
        self.gate = nn.Sigmoid()                                     # a module, so that a hook sees it
        self.k3 = conv3x3_norm(channels, 1, dilation, groups, norm_layer)
        self.k4 = conv3x3_norm(channels, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x + F.interpolate(self.k2(x), size=x.shape[2:]))        # (B, C, H/r, W/r) -> (B, C, H, W)
        return self.k4(self.k3(x) * gate)                            # (B, C, H/stride, W/stride)


@fx.wrap
def checked(x: Tensor, channels: int) -> Tensor:
    """x itself, or one line on what is wrong with it."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"Expected a floating-point Tensor, found {x.dtype if isinstance(x, Tensor) else type(x)}.")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"Expected a batch (B, {channels}, H, W), found {tuple(x.shape)}; x[None] makes a batch of an "
                         "image, x.permute(0, 3, 1, 2) moves channels that come last.")
    return x


class SCConv(nn.Module):
    """The self-calibrated convolution: a drop-in replacement for a 3x3 convolution, C channels in and C out.

    The first half of the channels is calibrated, the second goes through k1.  All four convolutions work on C/2
    channels: 4 * 9 * (C/2)^2 = 9 * C^2 weights, as many as in the 3x3 that it replaces.  (Not the "ScConv" of CVPR
    2023.)  The arguments are those of SelfCalibration; C must be even, and groups must divide C/2.

    Shapes: (B, C, H, W) -> (B, C, H / stride, W / stride), rounded up.
    """

    def __init__(self, channels, pooling_r=4, *, stride=1, dilation=1, groups=1, norm_layer=nn.BatchNorm2d):
        super().__init__()
        if channels % 2:
            raise ValueError(f"SCConv splits its channels into halves: their number must be even, not {channels}.")
        self.channels, half = channels, channels // 2
        self.k2, self.gate, self.k3, self.k4 = SelfCalibration(
            half, pooling_r, stride=stride, dilation=dilation, groups=groups, norm_layer=norm_layer).children()
        self.k1 = conv3x3_norm(half, stride, dilation, groups, norm_layer)

    calibrate = SelfCalibration.forward                              # of this block's own k2, gate, k3 and k4

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = checked(x, self.channels).chunk(2, dim=1)           # 2 x (B, C/2, H, W)
        return torch.cat([self.calibrate(x1), self.k1(x2)], dim=1)   # (B, C, H/stride, W/stride)


class SCBottleneck(nn.Module):
    """The residual block of SCNet: two 1x1 convolutions make the halves, k1 and k2-k4 work on them, a 1x1 joins them.

    The arguments are those of torchvision.models.resnet.Bottleneck, in its order: either can be the `block` of SCNet.
    A half has planes * base_width / 64 * groups channels: at base_width=32 the two are as wide as ResNet's one 3x3.
    avd: a 3x3 average pooling after the two halves carries the stride (from ResNeSt, https://arxiv.org/abs/2004.08955).

    Shapes: (B, inplanes, H, W) -> (B, 4 * planes, H / stride, W / stride), rounded up.
    """

    expansion = 4

    def __init__(self, inplanes, planes, stride=1, downsample=None, groups=1, base_width=32, dilation=1,
                 norm_layer=nn.BatchNorm2d, *, pooling_r=4, avd=False):
        super().__init__()
        half, conv_stride = int(planes * base_width / 64) * groups, 1 if avd else stride
        self.conv1_a, self.bn1_a = nn.Conv2d(inplanes, half, 1, bias=False), norm_layer(half)
        self.conv1_b, self.bn1_b = nn.Conv2d(inplanes, half, 1, bias=False), norm_layer(half)
        self.k1 = conv3x3_norm(half, conv_stride, dilation, groups, norm_layer)
        self.scconv = SelfCalibration(half, pooling_r, stride=conv_stride, dilation=dilation, groups=groups,
                                      norm_layer=norm_layer)
        self.avd_layer = nn.AvgPool2d(3, stride, padding=1) if avd else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(2 * half, 4 * planes, 1, bias=False), norm_layer(4 * planes)
        self.relu, self.downsample = nn.ReLU(inplace=True), downsample

    def forward(self, x: Tensor) -> Tensor:
        a = self.k1(self.relu(self.bn1_a(self.conv1_a(x))))          # (B, half, H/stride, W/stride)
        b = self.scconv(self.relu(self.bn1_b(self.conv1_b(x))))      # (B, half, H/stride, W/stride), first in SCConv
        y = self.avd_layer(torch.cat([F.relu(a), F.relu(b)], dim=1))    # ReLU first: a norm's gradient is then no slice
        y = self.bn3(self.conv3(y))                                  # (B, 4 * planes, H/stride, W/stride)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class SCNet(nn.Module):
    """A ResNet of SCBottlenecks, its children named as in torchvision's ResNet, so that tools for one fit the other.

    Args:
        layers: number of blocks in each of the four stages, such as (3, 4, 6, 3).
        in_chans, num_classes: channels of the image; outputs of the classifier, where 0 leaves it out.
        block: takes the first eight arguments of SCBottleneck, and avd=True where that applies.  With torchvision's
            Bottleneck and bottleneck_width=64 this class is torchvision's ResNet: the plain twin to compare with.
        output_stride: image pixels per pixel of the last map, 32, 16 or 8.  At 16 and 8 the last one or two stages
            keep their resolution and dilate their convolutions instead.
        groups, bottleneck_width, widths: the block's `groups`, `base_width` and `planes` (by stage).  32 and 2: SCNeXt.
        stem_width: None for ResNet's 7x7 stem; w for three 3x3 convolutions of w, w and 2w channels (v1d).
        avg_down: shortcuts pool before their 1x1 (v1d; from ResNet-D, https://arxiv.org/abs/1812.01187).
        avd: the block's `avd`, in the first block of stages 2 to 4 (v1d).
        norm_layer: called with a number of channels.

    Shapes: (B, in_chans, H, W) -> logits (B, num_classes), for any H and W.
    """

    def __init__(self, layers, num_classes=1000, *, block=SCBottleneck, in_chans=3, output_stride=32, groups=1,
                 bottleneck_width=32, widths=(64, 128, 256, 512), stem_width=None, avg_down=False, avd=False,
                 norm_layer=nn.BatchNorm2d):
        super().__init__()
        if not all(isinstance(four, (tuple, list)) and len(four) == 4 and min(four) > 0 for four in (layers, widths)):
            raise ValueError(f"layers and widths need a positive number for each of four stages: {layers}, {widths}.")
        if output_stride not in (32, 16, 8) or in_chans < 1 or num_classes < 0:
            raise ValueError(f"Out of range: {output_stride=} (32, 16 or 8), {in_chans=} or {num_classes=}.")
        self.inplanes = widths[0] if stem_width is None else 2 * stem_width
        if stem_width is None:
            self.conv1 = nn.Conv2d(in_chans, self.inplanes, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Sequential(
                nn.Conv2d(in_chans, stem_width, 3, 2, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(True),
                nn.Conv2d(stem_width, stem_width, 3, 1, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(True),
                nn.Conv2d(stem_width, self.inplanes, 3, 1, padding=1, bias=False))
        self.bn1, self.relu, self.maxpool = norm_layer(self.inplanes), nn.ReLU(True), nn.MaxPool2d(3, 2, padding=1)

        for stage, shrunk, blocks, planes in zip((1, 2, 3, 4), (4, 8, 16, 32), layers, widths):
            dilation = max(1, shrunk // output_stride)               # past output_stride, dilate instead of shrinking
            first_dilation = max(1, shrunk // 2 // output_stride)    # the first block keeps that of the stage before
            stride, outplanes = 1 if stage == 1 or dilation > 1 else 2, planes * block.expansion
            shortcut = self._shortcut(outplanes, stride, avg_down, norm_layer)
            first = block(self.inplanes, planes, stride, shortcut, groups, bottleneck_width, first_dilation, norm_layer,
                          **{"avd": True} if avd and stage > 1 else {})
            others = (block(outplanes, planes, 1, None, groups, bottleneck_width, dilation, norm_layer)
                      for _ in range(1, blocks))
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            self.inplanes = outplanes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.inplanes, num_classes) if num_classes else nn.Identity()
        self.in_chans, self.num_features = in_chans, self.inplanes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):                        # He et al. 2015, as in torchvision's ResNet
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _shortcut(self, outplanes: int, stride: int, avg_down: bool, norm_layer) -> nn.Module | None:
        if stride == 1 and self.inplanes == outplanes:
            return None
        pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
        conv = nn.Conv2d(self.inplanes, outplanes, 1, 1 if avg_down else stride, bias=False)
        return nn.Sequential(*pool, conv, norm_layer(outplanes))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (B, num_features, H / output_stride, W / output_stride); below, the shapes of scnet50()."""
        x = checked(x, self.in_chans)                                # (B, 3, H, W)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))         # (B, 64, H/4, W/4)
        x = self.layer1(x)                                           # (B, 256, H/4, W/4)
        x = self.layer2(x)                                           # (B, 512, H/8, W/8)
        x = self.layer3(x)                                           # (B, 1024, H/16, W/16)
        return self.layer4(x)                                        # (B, 2048, H/32, W/32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.forward_features(x))                   # (B, 2048, 1, 1)
        return self.fc(torch.flatten(x, 1))                          # (B, num_classes)


def _build(network: str, layers, pretrained: bool, weights=None, **kwargs) -> SCNet:
    model = SCNet(layers, **kwargs)
    if not pretrained and weights is None:
        return model
    try:
        from .weights import fetch_weights, load_weights
    except ImportError:
        raise ImportError("pretrained= and weights= need scnet_minimal/weights.py; without it, get a file from "
                          "https://github.com/MCG-NKU/SCNet and give torch.load(FILE) to load_state_dict().") from None
    return load_weights(model, fetch_weights(network) if weights is None else weights)


def scnet50(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-50: 25,564,584 parameters; 22.19 % top-1 error on ImageNet (published).

    Args:
        pretrained: load the official ImageNet weights, downloaded once into torch.hub's cache.  They expect RGB in
            [0, 1], less the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225); they were evaluated on the
            central 224 px of images resized to 256 px on the shorter side.
        weights: path of a .pth, .pt or .safetensors file to load instead; no hash is checked.
        **kwargs: of SCNet.  With ImageNet weights, a num_classes other than 1000 starts a new head, and in_chans other
            than 3 adapts the first convolution: its filters are summed for one channel, else repeated and scaled.
    """
    return _build("scnet50", (3, 4, 6, 3), pretrained, **kwargs)


def scnet101(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-101: 44,565,416 parameters; 21.06 % top-1 error on ImageNet (published).  Arguments as in scnet50."""
    return _build("scnet101", (3, 4, 23, 3), pretrained, **kwargs)


def scnet50_v1d(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-50 v1d: 25,583,816 parameters; 19.53 % top-1 error on ImageNet (published).  Arguments as in scnet50."""
    return _build("scnet50_v1d", (3, 4, 6, 3), pretrained, **dict(stem_width=32, avg_down=True, avd=True) | kwargs)


def scnet101_v1d(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-101 v1d: 44,689,192 parameters; its weights were never released.  Arguments as in scnet50."""
    return _build("scnet101_v1d", (3, 4, 23, 3), pretrained, **dict(stem_width=64, avg_down=True, avd=True) | kwargs)
