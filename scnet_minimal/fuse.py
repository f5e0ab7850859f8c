"""The same network, made for deployment: no batch norms, fewer convolutions, the same outputs."""
import copy
import sys
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from .scnet import SCBottleneck, SCNet


def fuse(model: nn.Module) -> nn.Module:
    """A copy for deployment with the same outputs: of a network, one block, or any model that contains them.

    In eval mode a batch norm is a fixed scale and shift, which folds into the convolution before it; and the two 1x1
    convolutions of an SCBottleneck, which read the same map, become one.  The copy is not for training: its weights ask
    for no gradient, and its state dict has other names.  Fuse first; then channels_last, bfloat16, torch.compile.

    Norms fold in nn.Sequential, SCNet, SCBottleneck, and torchvision's ResNet with its two blocks, which run their
    children in the order of registration.  In any other class they stay, and so do norms other than batch norm.
    Raises ValueError if a module is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("fuse() needs a model in eval mode, where batch norms are constant: call model.eval() first.")
    return _fused(copy.deepcopy(model)).eval().requires_grad_(False)


def _runs_in_order(module: nn.Module) -> bool:
    """Whether the children are known to run in the order of registration.  A subclass may do anything: not known."""
    resnet = sys.modules.get("torchvision.models.resnet")            # imported already if the model is made of it
    known = (SCNet, SCBottleneck, *((resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck) if resnet else ()))
    return type(module) in known or type(module).forward is nn.Sequential.forward


def _fused(module: nn.Module) -> nn.Module:
    children = module._modules                                       # named_children() leaves a module's second use out
    if _runs_in_order(module):
        for (name, conv), (norm_name, norm) in pairwise(list(children.items())):
            siblings = children
            if type(module) is SCNet and type(conv) is nn.Sequential:                                # v1d's stem
                siblings, (name, conv) = conv._modules, list(conv._modules.items())[-1]
            is_batch_norm = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and norm.running_mean is not None
            if is_batch_norm and type(conv) is nn.Conv2d:
                siblings[name], children[norm_name] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for name, child in children.items():
        children[name] = child and _fused(child)
    if type(module) is SCBottleneck and {type(module.bn1_a), type(module.bn1_b), type(module.bn3)} == {nn.Identity}:
        return FusedBottleneck(module)
    return module


class FusedBottleneck(nn.Module):
    """What fuse() makes of an SCBottleneck: one 1x1 convolution in place of two, no norms.  Shapes as there."""

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
        y = self.conv3(self.avd_layer(self.relu(y)))                 # (B, 4 * planes, H/stride, W/stride)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)
