"""The Ghost module, the detour of notebook 02: some maps by convolution, the rest cheaply from those.

    Han, Wang, Tian, Guo, Xu, Xu: "GhostNet: More Features from Cheap Operations", CVPR 2020
    https://arxiv.org/abs/1911.11907

    p = relu(norm(x * f))                           m = ceil(n / s) primary maps by an ordinary convolution f
    g_ij = relu(norm(p_i * h_ij))                   s - 1 ghosts of each by a k' x k' convolution of that one map alone
    y = the first n of [p, g]
"""
import math

import torch
from torch import Tensor, nn


class GhostModule(nn.Module):
    """Replaces a convolution from inp to oup channels, at about 1/ratio of its multiply-adds.

    Args:
        inp, oup: channels in and out (c and n).
        kernel_size: k of the primary convolution.
        ratio: s, how many maps each primary map yields, itself included; 1 is an ordinary convolution.
        dw_size: k' of the cheap operation, a depthwise convolution.
        stride: of the primary convolution.
        relu: whether both parts end with a ReLU.

    Shapes: (B, inp, H, W) -> (B, oup, ceil(H / stride), ceil(W / stride)), for odd kernel_size and dw_size.
    The names in the state dict are those of the authors' code.
    """

    def __init__(self, inp: int, oup: int, kernel_size: int = 1, ratio: int = 2, dw_size: int = 3, stride: int = 1,
                 relu: bool = True):
        super().__init__()
        if min(inp, oup, kernel_size, ratio, dw_size, stride) < 1 or kernel_size % 2 == 0 or dw_size % 2 == 0:
            raise ValueError("A Ghost module takes positive numbers, odd ones for kernel_size and dw_size; found "
                             f"{inp=}, {oup=}, {kernel_size=}, {ratio=}, {dw_size=}, {stride=}.")
        self.oup = oup
        primary = math.ceil(oup / ratio)
        ghosts = primary * (ratio - 1)

        def norm_act(channels):
            return nn.BatchNorm2d(channels), (nn.ReLU(inplace=True) if relu else nn.Identity())

        self.primary_conv = nn.Sequential(
            nn.Conv2d(inp, primary, kernel_size, stride, kernel_size // 2, bias=False), *norm_act(primary))
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(primary, ghosts, dw_size, 1, dw_size // 2, groups=primary, bias=False), *norm_act(ghosts)
        ) if ghosts else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary_conv(x)                                     # (B, m, H/stride, W/stride)
        if self.cheap_operation is not None:
            y = torch.cat([y, self.cheap_operation(y)], dim=1)       # (B, s * m, H/stride, W/stride)
        return y[:, :self.oup]
