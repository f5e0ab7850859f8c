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
                                                              ->  where their ImageNet weights come from
                                                              ->  fuse: the same network, made for speed

The names inside a state dict are those of the authors' code, so that their weights load as they are.
"""
import copy
import hashlib
import re
import socket
import sys
import tempfile
import zipfile
from itertools import pairwise
from pathlib import Path

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["SelfCalibration", "SCConv", "SCBottleneck", "SCNet", "scnet50", "scnet101", "scnet50_v1d", "scnet101_v1d",
           "fuse"]


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
        self.calibrated_channels = channels
        self.k2 = nn.Sequential(PoolToFit(pooling_r), *conv3x3_norm(channels, 1, dilation, groups, norm_layer))
        self.k3 = conv3x3_norm(channels, 1, dilation, groups, norm_layer)
        self.k4 = conv3x3_norm(channels, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = checked_maps(x, self.calibrated_channels, "SelfCalibration")
        gate = x + F.interpolate(self.k2(x), size=x.shape[2:])       # (B, C, H/r, W/r) -> (B, C, H, W), nearest
        gate = gate.sigmoid_()                                       # in place: nobody else needs the sum
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
            raise ValueError(f"SCConv splits its channels into halves, so their number must be even, not {channels}.")
        super().__init__(channels // 2, pooling_r, stride=stride, dilation=dilation, groups=groups,
                         norm_layer=norm_layer)
        self.k1 = conv3x3_norm(channels // 2, stride, dilation, groups, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = checked_maps(x, 2 * self.calibrated_channels, "SCConv")
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

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None,
                 groups: int = 1, base_width: int = 32, dilation: int = 1, norm_layer=nn.BatchNorm2d, *,
                 pooling_r: int = 4, avd: bool = False):
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
        del a, b                                                     # their memory is free for what follows
        y = self.avd_layer(self.relu(y))
        y = self.bn3(self.conv3(y))                                  # (B, 4 * planes, H/stride, W/stride)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


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

    def __init__(self, layers, num_classes: int = 1000, *, block=SCBottleneck, in_chans: int = 3,
                 output_stride: int = 32, groups: int = 1, bottleneck_width: int = 32, widths=(64, 128, 256, 512),
                 stem_width: int | None = None, avg_down: bool = False, avd: bool = False, norm_layer=nn.BatchNorm2d):
        super().__init__()
        for stages in (layers, widths):
            if not isinstance(stages, (tuple, list)) or len(stages) != 4 or min(stages) < 1:
                raise ValueError(f"SCNet has four stages: layers and widths are four positive numbers, not {stages}.")
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
            return nn.Sequential(nn.Conv2d(self.inplanes, outplanes, 1, stride, bias=False), norm_layer(outplanes))
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

def scnet50(pretrained: bool = False, *, weights=None, num_classes: int = 1000, in_chans: int = 3,
            output_stride: int = 32, **kwargs) -> SCNet:
    """SCNet-50: 25,564,584 parameters; 22.19 % top-1 error on ImageNet (published).

    Args:
        pretrained: load the official ImageNet weights, from torch.hub's cache or else downloaded into it.
        weights: path of a weights file to load instead; `pretrained` need not be set, and no hash is checked.
        num_classes: 1000 takes a file as it is.  Any other number keeps its body and starts a new head, unless the
            file was made for just as many classes: then it loads whole.
        in_chans: 3; any other number adapts the first convolution of a file: the filters of R, G and B are added up
            for 1 channel, or repeated over more and scaled by 3 / in_chans.
        output_stride: 32, 16 or 8, which take the same weights.
        **kwargs: go to SCNet.

    The weights expect RGB in [0, 1], less the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225), and were
    evaluated on pictures resized to 256 px on the shorter side, of which the central 224 px were cut out.
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


def _build(network: str, layers, pretrained: bool, weights=None, **kwargs) -> SCNet:
    model = SCNet(layers, **kwargs)
    if pretrained and weights is None:
        weights = fetch_weights(network)
    return model if weights is None else load_weights(model, weights)


# --- where the weights come from ------------------------------------------------------------------------------------

# An official name ends with the beginning of the file's SHA-256, as torch.hub has it; nobody has confirmed these three.
# sha1 is that of the .pth in the mirror's archive (pytorchcv's), drive the id of the authors' copy on Google Drive.
_AUTHORS = "https://backseason.oss-cn-beijing.aliyuncs.com/scnet/"
_ZOO = "https://github.com/osmr/imgclsmob/releases/download/v0.0.472/"
SOURCES = {
    "scnet50": dict(official=_AUTHORS + "scnet50-dc6a7e87.pth", mirror=_ZOO + "scnet50-0608-61236331.pth.zip",
                    sha1="61236331bf1b7439f32158f09ff877e5b90b0d03", drive="1rA266TftaUymbtPTVHCJYoxDwl6K4gLr"),
    "scnet101": dict(official=_AUTHORS + "scnet101-44c5b751.pth", mirror=_ZOO + "scnet101-0575-40cd4d4c.pth.zip",
                     sha1="40cd4d4ca4407798b569e883eb248a5abfddeb75", drive="11-rW7l9vl-HGrOoCktEjRBPxMeKw334x"),
    "scnet50_v1d": dict(official=_AUTHORS + "scnet50_v1d-4109d1e1.pth", mirror=_ZOO + "scneta50-0468-eb3c25d6.pth.zip",
                        sha1="eb3c25d6c9c8b6c0815a724d798b9b5a2b27ce34", drive="1EWZ4vELJVFNry6SRJEza5-T9nKuoZWgv"),
}
PATIENCE = 10                                                        # seconds of silence after which a host is given up


def fetch_weights(network: str) -> Path:
    """The path of a network's weights in torch.hub's cache; downloaded if need be, from the authors or the mirror."""
    if network not in SOURCES:
        raise ValueError(f"No weights were ever released for {network}, only for {', '.join(SOURCES)}.\n"
                         f'A file of your own loads with {network}(weights="PATH").')
    source, cache = SOURCES[network], Path(torch.hub.get_dir(), "checkpoints")
    official, unzipped = cache / Path(source["official"]).name, cache / Path(source["mirror"]).stem
    for path in (official, unzipped):
        if path.is_file():
            return path

    failures = []
    for download, url, path, digest in ((_download, source["official"], official, official.stem.split("-")[-1]),
                                        (_download_and_unzip, source["mirror"], unzipped, source["sha1"])):
        if failures:
            print(f"{failures[0]}; trying {url}", file=sys.stderr)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            download(url, path, digest)
            return path
        except Exception as error:                                   # whatever it was, the next address may do
            failures.append(f"{url} ({error})")
    raise RuntimeError(f"The weights of {network} could not be downloaded: {', '.join(failures)}.\n"
                       f"Get one of the two (unzip the .zip), or https://drive.google.com/file/d/{source['drive']}/view,\n"
                       f'with a browser, and type {network}(weights="PATH"), which checks no hash.')


def _download(url: str, path: Path, sha256: str | None = None) -> None:
    """torch.hub's download, which gives the file its name once all is there and the hash right; PATIENCE added."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=True)
    finally:
        socket.setdefaulttimeout(before)


def _download_and_unzip(url: str, path: Path, sha1: str) -> None:
    """The one member of the archive that has the name of `path`, to `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        archive, unzipped = Path(scratch, "archive.zip"), Path(scratch, path.name)
        _download(url, archive)
        with zipfile.ZipFile(archive) as members:
            content = members.read(path.name)
        if (found := hashlib.sha1(content).hexdigest()) != sha1:
            raise RuntimeError(f'invalid hash value (expected "{sha1}", got "{found}")')
        unzipped.write_bytes(content)
        unzipped.replace(path)


def load_weights(model: SCNet, path) -> SCNet:
    """Load a weights file into a network, whose num_classes and in_chans act as they do in scnet50."""
    found, own = read_weights(path), model.state_dict()
    state = _fitted(found, own)
    theirs, ours = ({name: tuple(t.shape) for name, t in s.items() if not name.endswith("num_batches_tracked")}
                    for s in (state, own))                           # old files and frozen norms have no such counters
    wrong = [f"{name} is {theirs.get(name, 'absent')}, not {ours.get(name, 'absent')}"
             for name in ours | theirs if theirs.get(name) != ours.get(name)]
    if wrong:
        shown = wrong if len(wrong) < 4 else [*wrong[:2], "...", wrong[-1]]
        raise ValueError(f"{path} does not fit this network: it looks like {_looks_like(found)}.\n"
                         f"Differences: {len(wrong)}; {'; '.join(shown)}.")
    model.load_state_dict(state, strict=False)
    return model


def _fitted(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, with the head and the first convolution that a network with the state dict `own` needs."""
    if len(own.get("fc.weight", ())) not in (1000, len(state.get("fc.weight", ()))):
        state = {name: t for name, t in state.items() if not name.startswith("fc.")}
        state |= {name: t for name, t in own.items() if name.startswith("fc.")}
    first = "conv1.weight" if "conv1.weight" in own else "conv1.0.weight"
    if first in state and state[first].shape[1:] == (3, *own[first].shape[2:]):          # RGB; adapted as timm does
        rgb, in_chans = state[first], own[first].shape[1]
        more = rgb.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans] * (3 / in_chans)
        state = state | {first: rgb.sum(1, keepdim=True) if in_chans == 1 else more}
    return state


def _looks_like(state: dict[str, Tensor]) -> str:
    classes = f"{len(state.get('fc.weight', ()))} classes"
    if "layer1.0.k1.0.weight" not in state:
        return f"a torchvision ResNet with {classes}" if "layer1.0.conv2.weight" in state else "no SCNet"
    depth = 101 if "layer3.22.k1.0.weight" in state else 50 if "layer3.5.k1.0.weight" in state else "?"
    return f"scnet{depth}{'_v1d' if 'conv1.0.weight' in state else ''} with {classes}"


def read_weights(path) -> dict[str, Tensor]:
    """The tensors of a weights file in either of torch's formats, under the official names; nothing in it is run."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder: name the file." if path.is_dir() else f"There is no file {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} {_why_unreadable(path, error)}.") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state         # inside a checkpoint
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        keys = ", ".join(map(str, state)) if isinstance(state, dict) else ""
        raise ValueError(f"{path} holds no state dict, but a {type(state).__name__} of {keys[:100] or 'no names'}.")
    return official_names({str(name).removeprefix("module."): tensor for name, tensor in state.items()})


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64).strip()
    if not start:
        return "is empty: delete it and download it again"
    if start.startswith(b"<"):
        return "is a web page, not weights: open its address in a browser and save the file that is offered there"
    if path.suffix == ".zip":
        return "is an archive: unzip it and name the .pth inside"
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return f"was refused and nothing in it run: beside tensors it holds {refused[1]}; ask for a plain state dict"
    return "is cut off, damaged, or no weights file (nothing in it was run): delete it and download it again"


# The mirror's files hold the same tensors under other names; these rules apply from top to bottom.
_MIRROR_NAMES = [
    (r"^features\.init_block\.conv\.(conv|bn)\.", r"\g<1>1."), (r"^features\.init_block\.conv3\.bn\.", "bn1."),
    (r"^features\.init_block\.conv([123])\.(conv|bn)\.", lambda m: f"conv1.{3 * int(m[1]) - 3 + (m[2] == 'bn')}."),
    (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."), (r"^output\.", "fc."),
    (r"\.body\.conv1([ab])\.(conv|bn)\.", r".\g<2>1_\1."), (r"\.body\.conv3\.(conv|bn)\.", r".\g<1>3."),
    (r"\.body\.conv2b\.down\.conv\.conv\.", ".scconv.k2.1."), (r"\.body\.conv2b\.down\.conv\.bn\.", ".scconv.k2.2."),
    (r"\.body\.conv2b\.conv1\.", ".scconv.k3."), (r"\.body\.conv2b\.conv2\.", ".scconv.k4."),
    (r"\.identity_block\.conv\.conv\.", ".downsample.1."), (r"\.identity_block\.conv\.bn\.", ".downsample.2."),
    (r"\.identity_block\.", ".downsample."), (r"\.body\.conv2a\.", ".k1."),
    (r"(\.k[134]|\.downsample)\.conv\.", r"\1.0."), (r"(\.k[134]|\.downsample)\.bn\.", r"\1.1."),
]


def official_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the mirror's names (pytorchcv's) under the official ones; official names stay as they are."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _MIRROR_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


# --- the same network, made for speed -------------------------------------------------------------------------------

def fuse(model: nn.Module) -> nn.Module:
    """A copy for deployment with the same outputs: of a network, one block, or any model that contains them.

    Outside of training a batch norm is a fixed scale and shift: it folds into the convolution before it.  The two 1x1
    of an SCBottleneck, which read the same map, become one.  The original stays as it is; the copy is not for training
    (no weight asks for a gradient), and its state dict has other names.

    Fuse first, then move the copy: to channels_last (faster on CPUs), bfloat16, torch.compile, export.

    Norms fold behind a convolution in nn.Sequential, this file's classes and torchvision's ResNets, whose children all
    act in the order of their registration.  Elsewhere they stay, as do norms that are no batch norm.

    Raises ValueError where a module is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("fuse() takes a network in eval mode: in training mode a batch norm depends on the batch, and "
                         "no weights can stand in for it.  Call model.eval() first.")
    return _fused(copy.deepcopy(model)).eval().requires_grad_(False)


def _fused(module: nn.Module) -> nn.Module:
    kind, children = type(module), module._modules
    if kind.forward is nn.Sequential.forward or kind.__module__ in (__name__, "torchvision.models.resnet"):
        for (name, conv), (norm_name, norm) in pairwise(list(children.items())):
            siblings = children
            if type(conv) is nn.Sequential and len(conv):            # v1d's stem, which ends in a convolution
                siblings, (name, conv) = conv._modules, list(conv._modules.items())[-1]
            batch_norm = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and norm.running_mean is not None
            if batch_norm and type(conv) is nn.Conv2d:
                siblings[name], children[norm_name] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for name, child in children.items():
        children[name] = child and _fused(child)
    if kind is SCBottleneck and {type(module.bn1_a), type(module.bn1_b), type(module.bn3)} == {nn.Identity}:
        return FusedBottleneck(module)
    return module


class FusedBottleneck(nn.Module):
    """What fuse() makes of an SCBottleneck: its two 1x1 as one, no norms.  Shapes as there."""

    def __init__(self, block: SCBottleneck):
        super().__init__()
        a, b = block.conv1_a, block.conv1_b
        self.conv1 = nn.Conv2d(a.in_channels, 2 * a.out_channels, 1, device="meta")                  # takes no memory
        self.conv1.weight = nn.Parameter(torch.cat([a.weight, b.weight]))
        self.conv1.bias = None if a.bias is None else nn.Parameter(torch.cat([a.bias, b.bias]))
        self.k1, self.scconv, self.avd_layer = block.k1, block.scconv, block.avd_layer
        self.conv3, self.relu, self.downsample = block.conv3, block.relu, block.downsample

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.relu(self.conv1(x)).chunk(2, dim=1)              # 2 x (B, half, H, W)
        y = torch.cat([self.k1(a), self.scconv(b)], dim=1)           # (B, 2 * half, H/stride, W/stride)
        del a, b
        y = self.conv3(self.avd_layer(self.relu(y)))                 # (B, 4 * planes, H/stride, W/stride)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


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
        raise TypeError(f"{who} takes a torch.Tensor, not {type(x).__name__} (torchvision.transforms.v2 converts it).")
    if x.dim() != 4:
        hint = " (one picture? add the batch dimension with x[None])" if x.dim() == 3 else ""
        raise ValueError(f"{who} takes a batch (B, {channels}, H, W), not shape {tuple(x.shape)}{hint}.")
    if x.shape[1] != channels:
        hint = " (channels last? use x.permute(0, 3, 1, 2))" if x.shape[3] == channels else ""
        raise ValueError(f"{who} was built for {channels} channels, but x has shape {tuple(x.shape)}{hint}.")
    if not x.is_floating_point():
        raise TypeError(f"{who} takes floating-point numbers, not {x.dtype} (x.float() / 255, then normalize).")
    return x
