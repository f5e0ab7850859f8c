"""Self-Calibrated Convolutions and SCNet, in one file that needs torch alone.

    Jiang-Jiang Liu, Qibin Hou, Ming-Ming Cheng, Changhu Wang, Jiashi Feng
    "Improving Convolutional Networks with Self-Calibrated Convolutions", CVPR 2020
    https://openaccess.thecvf.com/content_CVPR_2020/html/Liu_Improving_Convolutional_Networks_With_Self-Calibrated_Convolutions_CVPR_2020_paper.html
    The authors' code: https://github.com/MCG-NKU/SCNet

A 3x3 convolution sees a 3x3 window.  A self-calibrated convolution lets half of its channels, x1, first look at a
small, pooled copy of themselves; what they see there decides, value by value, how much of the sharp map passes:

    gate = sigmoid(x1 + up(k2(x1)))      k2 pools first: a wide look.  The gate is a number in (0, 1) for each value of x1
    y1   = k4(k3(x1) * gate)             the calibrated half
    y2   = k1(x2)                        the other half: an ordinary convolution
    y    = [y1, y2]

k1 to k4 are 3x3 convolutions, each followed by a norm.  From here on, every part is built of those above it:

    SelfCalibration  ->  SCConv, SCBottleneck  ->  SCNet  ->  scnet50, scnet101, scnet50_v1d, scnet101_v1d

The names in a state dict are those of the authors' code, so their weights load unchanged.  B is the batch, C channels.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d"]


# --- the block ------------------------------------------------------------------------------------------------------

def conv3x3_norm(channels: int, stride: int, dilation: int, groups: int, norm_layer) -> nn.Sequential:
    """A 3x3 convolution, C -> C, padded so that only the stride shrinks the map; then its norm."""
    conv = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, norm_layer(channels))


@fx.wrap                                                             # torch.fx cannot follow an `if`: it skips this
def smaller(a: int, b: int) -> int:
    return torch.sym_min(a, b) if isinstance(b, torch.SymInt) else min(a, b)     # torch.export keeps a SymInt open


class PoolToFit(nn.AvgPool2d):
    """Average pooling with stride = window.  Where the map is smaller, the window shrinks to it, on each axis by itself.

    There nn.AvgPool2d fails, which is why the authors' network needs images of at least 97 px.
    """

    def forward(self, x: Tensor) -> Tensor:
        window = smaller(self.kernel_size, x.shape[2]), smaller(self.kernel_size, x.shape[3])
        return F.avg_pool2d(x, window, window)


def calibrate(x: Tensor, k2: nn.Module, gate: nn.Module, k3: nn.Module, k4: nn.Module) -> Tensor:
    """k4(k3(x) * gate(x + up(k2(x)))).  The paper upsamples bilinearly; its code and weights take the nearest value."""
    g = gate(x + F.interpolate(k2(x), size=x.shape[2:]))             # (B, C, H/r, W/r) -> (B, C, H, W), in (0, 1)
    return k4(k3(x) * g)                                             # (B, C, H/stride, W/stride)


def check_positive(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}.")


class SelfCalibration(nn.Module):
    """The calibrated half, k2 to k4.  The authors' code names this part `SCConv` and keeps it at `.scconv`.

    Args:
        channels: C, in and out.
        pooling_r: r, side and stride of the pooling window, in pixels of the map; smaller maps shrink it.
        stride: of k4, the last convolution.
        dilation: of all three convolutions.  k2 counts it in pooled pixels.
        groups: of all three convolutions; must divide C.
        norm_layer: called with C.

    Shapes: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, pooling_r: int = 4, *, stride: int = 1, dilation: int = 1, groups: int = 1,
                 norm_layer=nn.BatchNorm2d):
        super().__init__()
        check_positive(channels=channels, pooling_r=pooling_r, stride=stride, dilation=dilation, groups=groups)
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide the {channels} channels of each convolution.")
        self.k2 = nn.Sequential(PoolToFit(pooling_r), *conv3x3_norm(channels, 1, dilation, groups, norm_layer))
        self.gate = nn.Sigmoid()
        self.k3 = conv3x3_norm(channels, 1, dilation, groups, norm_layer)
        self.k4 = conv3x3_norm(channels, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        return calibrate(x, self.k2, self.gate, self.k3, self.k4)


@fx.wrap
def checked(x: Tensor, channels: int) -> Tensor:
    """x itself if it is a batch of floating-point maps with that many channels; otherwise one line on what it is."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"Expected a floating-point tensor, found {x.dtype if isinstance(x, Tensor) else type(x)}: "
                        "convert images with torchvision.transforms.v2, then normalize them.")
    if x.dim() != 4 or x.shape[1] != channels:
        hint = {3: ": add the batch dimension to one image with x[None]",
                4: ": if channels come last, x.permute(0, 3, 1, 2)"}.get(x.dim(), "")
        raise ValueError(f"Expected a batch of shape (B, {channels}, H, W), found {tuple(x.shape)}{hint}.")
    return x


class SCConv(nn.Module):
    """The self-calibrated convolution: fits wherever a 3x3 convolution with C channels in and C channels out does.

    The first half of the channels is calibrated, the second goes through k1.  All four convolutions work on C/2
    channels: 4 * 9 * (C/2)^2 = 9 * C^2 weights, as many as in the 3x3 convolution that it replaces.

    Not to be confused with "ScConv", the spatial and channel reconstruction convolution (CVPR 2023).

    Args:
        channels: C, in and out; even.
        pooling_r, stride, dilation, groups, norm_layer: as in SelfCalibration, with C/2 for C.  k1 shares stride,
            dilation and groups.

    Shapes: (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels: int, pooling_r: int = 4, *, stride: int = 1, dilation: int = 1, groups: int = 1,
                 norm_layer=nn.BatchNorm2d):
        super().__init__()
        check_positive(channels=channels)
        if channels % 2:
            raise ValueError(f"SCConv splits its channels into halves: their number must be even, not {channels}.")
        half = SelfCalibration(channels // 2, pooling_r, stride=stride, dilation=dilation, groups=groups,
                               norm_layer=norm_layer)
        self.channels = channels
        self.k2, self.gate, self.k3, self.k4 = half.children()
        self.k1 = conv3x3_norm(channels // 2, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = checked(x, self.channels).chunk(2, dim=1)           # 2 x (B, C/2, H, W)
        y1 = calibrate(x1, self.k2, self.gate, self.k3, self.k4)     # (B, C/2, H/stride, W/stride)
        return torch.cat([y1, self.k1(x2)], dim=1)                   # (B, C, H/stride, W/stride)


class SCBottleneck(nn.Module):
    """The residual block of SCNet: two 1x1 convolutions make the halves, k1 and k2-k4 work on them, a 1x1 joins them.

    The arguments are those of torchvision.models.resnet.Bottleneck, in its order, so that SCNet's `block` can be either.
    A half has planes * base_width / 64 * groups channels; base_width 32 makes both as wide as ResNet's 3x3.
    With `avd` (from ResNeSt, arXiv:2004.08955) a 3x3 average pooling after the two branches carries the stride.

    Shapes: (B, inplanes, H, W) -> (B, 4 * planes, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
                 groups: int = 1, base_width: int = 32, dilation: int = 1, norm_layer=nn.BatchNorm2d, *,
                 pooling_r: int = 4, avd: bool = False):
        super().__init__()
        half = int(planes * base_width / 64) * groups
        if half < 1:
            raise ValueError(f"planes * base_width must be at least 64 for a half to have channels, not {planes} * "
                             f"{base_width}.")
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
        a = self.k1(self.relu(self.bn1_a(self.conv1_a(x))))          # (B, half, H/stride, W/stride)
        b = self.scconv(self.relu(self.bn1_b(self.conv1_b(x))))      # (B, half, H/stride, W/stride)
        y = self.avd_layer(self.relu(torch.cat([a, b], dim=1)))      # (B, 2 * half, H/stride, W/stride)
        y = self.bn3(self.conv3(y))                                  # (B, 4 * planes, H/stride, W/stride)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


# --- the network ----------------------------------------------------------------------------------------------------

class SCNet(nn.Module):
    """A ResNet made of SCBottlenecks.  Its children are named as in torchvision's ResNet, so that tools for one fit.

    Args:
        layers: number of blocks in each of the four stages, such as (3, 4, 6, 3).
        num_classes: outputs of the last linear layer; 0 leaves it out.
        block: called as block(inplanes, planes, stride, downsample, groups, base_width, dilation, norm_layer), and with
            avd=True where `avd` applies.  With torchvision.models.resnet.Bottleneck and bottleneck_width=64 this class
            is torchvision's ResNet: the plain twin, to compare with.
        in_chans: channels of the image.
        output_stride: image pixels per pixel of the last map, 32, 16 or 8.  With 16 or 8 the last one or two stages
            keep the resolution of the stage before and dilate their convolutions instead (for dense prediction).
        groups, bottleneck_width: `groups` and `base_width` of the block; 32 and 2 give SCNeXt.
        widths: `planes` of the four stages; the maps that leave them have block.expansion times as many channels.
        stem_width: None for ResNet's 7x7 stem; w for three 3x3 convolutions of w, w and 2w channels (v1d; ResNet-C).
        avg_down: shortcuts shrink by average pooling before their 1x1, not by striding it (v1d; ResNet-D,
            arXiv:1812.01187), so that no pixel is skipped.
        avd: the first block of stages 2 to 4 leaves its stride to an average pooling (v1d; ResNeSt).
        norm_layer: called with a number of channels.

    Shapes: (B, in_chans, H, W) -> logits (B, num_classes), for any H and W; the weights were trained at 224.
    """

    def __init__(self, layers, num_classes: int = 1000, *, block=SCBottleneck, in_chans: int = 3,
                 output_stride: int = 32, groups: int = 1, bottleneck_width: int = 32, widths=(64, 128, 256, 512),
                 stem_width: int | None = None, avg_down: bool = False, avd: bool = False, norm_layer=nn.BatchNorm2d):
        super().__init__()
        for stages in (layers, widths):
            if not isinstance(stages, (tuple, list)) or len(stages) != 4 or min(stages) < 1:
                raise ValueError(f"layers and widths are four positive integers, one for each stage, not {stages}.")
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
                nn.Conv2d(in_chans, stem_width, 3, 2, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(True),
                nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False), norm_layer(stem_width), nn.ReLU(True),
                nn.Conv2d(stem_width, self.inplanes, 3, padding=1, bias=False))
        self.bn1 = norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        reached, dilation = 4, 1                                     # so far the image has shrunk by 4
        for stage, (blocks, planes) in enumerate(zip(layers, widths), 1):
            stride, first_dilation = (1 if stage == 1 else 2), dilation
            if reached * stride > output_stride:                     # dilate instead of shrinking any further
                stride, dilation = 1, dilation * 2
            reached *= stride
            outplanes, extra = planes * block.expansion, {"avd": True} if avd and stage > 1 else {}
            shortcut = self._shortcut(outplanes, stride, avg_down, norm_layer)
            first = block(self.inplanes, planes, stride, shortcut, groups, bottleneck_width, first_dilation, norm_layer,
                          **extra)
            others = [block(outplanes, planes, 1, None, groups, bottleneck_width, dilation, norm_layer)
                      for _ in range(blocks - 1)]
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
        conv = nn.Conv2d(self.inplanes, outplanes, 1, 1 if avg_down else stride, bias=False)
        pool = [nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)] if avg_down else []
        return nn.Sequential(*pool, conv, norm_layer(outplanes))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the last map (B, num_features, H / output_stride, W / output_stride).

        The shapes in the comments are those of the default arguments; sizes are rounded up.
        """
        x = checked(x, self.in_chans)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))         # (B, 64, H/4, W/4)
        x = self.layer1(x)                                           # (B, 256, H/4, W/4)
        x = self.layer2(x)                                           # (B, 512, H/8, W/8)
        x = self.layer3(x)                                           # (B, 1024, H/16, W/16)
        return self.layer4(x)                                        # (B, 2048, H/32, W/32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.forward_features(x))                   # (B, 2048, 1, 1)
        return self.fc(torch.flatten(x, 1))                          # (B, num_classes)


# --- the four networks ----------------------------------------------------------------------------------------------

def _build(network: str, layers, pretrained: bool, weights=None, **kwargs) -> SCNet:
    model = SCNet(layers, **kwargs)
    if not pretrained and weights is None:
        return model
    try:
        from .weights import fetch_weights, load_weights
    except ImportError:
        raise ImportError("pretrained= and weights= need weights.py of scnet_minimal.  Without it, get a file from "
                          "https://github.com/MCG-NKU/SCNet and pass torch.load(FILE) to load_state_dict().") from None
    return load_weights(model, fetch_weights(network) if weights is None else weights)


def scnet50(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3,
            output_stride: int = 32, **kwargs) -> SCNet:
    """SCNet-50: 25,564,584 parameters; 22.19 % top-1 error on ImageNet (published).

    Args:
        pretrained: load the official ImageNet weights, from torch.hub's cache or else downloaded into it.
        weights: path of a .pth, .pt or .safetensors file to load instead; no hash is checked.
        num_classes: any number but 1000 replaces the head of an ImageNet file by a new one, 0 leaves it out.  A file of
            another number of classes loads into a network of just as many.
        in_chans: any number but 3 adapts the first convolution of an RGB file: for 1 channel its filters are summed,
            for more they are repeated and scaled by 3 / in_chans.
        output_stride: 32, 16 or 8; all take the same weights.
        **kwargs: go to SCNet.

    The official weights expect RGB in [0, 1], less the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).
    They were evaluated on the central 224 x 224 px of images resized to 256 px on the shorter side.
    """
    return _build("scnet50", (3, 4, 6, 3), pretrained, weights, num_classes=num_classes, in_chans=in_chans,
                  output_stride=output_stride, **kwargs)


def scnet101(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-101: 44,565,416 parameters; 21.06 % top-1 error on ImageNet (published).  Arguments as in scnet50."""
    return _build("scnet101", (3, 4, 23, 3), pretrained, **kwargs)


def scnet50_v1d(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-50 v1d: 25,583,816 parameters; 19.53 % top-1 error on ImageNet (published).  Arguments as in scnet50."""
    return _build("scnet50_v1d", (3, 4, 6, 3), pretrained, **dict(stem_width=32, avg_down=True, avd=True) | kwargs)


def scnet101_v1d(pretrained: bool = False, **kwargs) -> SCNet:
    """SCNet-101 v1d: 44,689,192 parameters; its weights were never released.  Arguments as in scnet50."""
    return _build("scnet101_v1d", (3, 4, 23, 3), pretrained, **dict(stem_width=64, avg_down=True, avd=True) | kwargs)
