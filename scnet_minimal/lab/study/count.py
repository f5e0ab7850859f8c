"""What a network costs and how far it sees: parameters, multiply-adds, receptive fields; counted, and measured."""
import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """parameters; multiply_adds of convolutions and linear layers; norm_outputs, the values that batch norms write."""

    parameters: int
    multiply_adds: int
    norm_outputs: int

    @property
    def published_flops(self) -> int:
        """2 * (multiply-adds + 2 * norm outputs): fits all digits of the FLOPs in the SCNet authors' read-me."""
        return 2 * (self.multiply_adds + 2 * self.norm_outputs)


def cost(module: nn.Module, *shape: int) -> Cost:
    """The Cost of one input of this shape, without the batch: cost(scnet50(), 3, 224, 224).

    Nothing is computed, and no weight is copied, whatever device holds it: what runs is a copy of the module whose
    tensors are on torch's meta device, with shapes and no values.
    """
    tensors = {id(t): torch.empty_like(t, device="meta") for t in module.buffers()}
    tensors |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in module.parameters()}
    shapes_only = copy.deepcopy(module, tensors).eval()              # its memo: what it takes for what it finds
    norm_outputs = 0

    def add(_module, _inputs, output):
        nonlocal norm_outputs
        norm_outputs += output.numel()

    for m in shapes_only.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(add)
    x = torch.empty(1, *shape, device="meta", dtype=next((p.dtype for p in module.parameters()), None))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_only(x)
    parameters = sum(p.numel() for p in module.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, norm_outputs)     # torch counts a multiply-add as two


def receptive_field(layers: Iterable[tuple[int, int, int]]) -> int:
    """Side, in input pixels, of the square that one output pixel sees through layers in series.

    layers: (kernel, stride, dilation) of each convolution or pooling, from the input on.
    Each adds (kernel - 1) * dilation steps, and a step is as long as the product of all strides before it.
    """
    side, step = 1, 1
    for kernel, stride, dilation in layers:
        side += (kernel - 1) * dilation * step
        step *= stride
    return side


def measured_field(module: nn.Module, channels: int, size: int = 64, at: tuple[int, int] | None = None, *,
                   maps: slice = slice(None), through_relus: bool = False) -> Tensor:
    """Which input pixels reach the output pixel `at` (row, column; default: the middle): bool (size, size).

    Measured, not counted: a pixel is in the field where the gradient of that output, summed over these `maps` of its
    channels, is not zero.  In float64 on the CPU, wherever the module is.  A ReLU (the module, not the function) that
    is at 0 hides what it would see at another input; with through_relus none does.
    """
    module = nn.Sequential(copy.deepcopy(module)).cpu().double().eval()
    if through_relus:
        for part in list(module.modules()):
            for name, layer in part.named_children():
                if isinstance(layer, nn.ReLU):
                    setattr(part, name, nn.Identity())
    x = torch.randn(1, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = module(x.requires_grad_())
    row, column = at or (y.shape[2] // 2, y.shape[3] // 2)
    y[0, maps, row, column].sum().backward()
    return x.grad[0].abs().sum(0) > 0


def sides(field: Tensor) -> tuple[int, int]:
    """Height and width, in px, of the smallest box around a bool field (H, W)."""
    rows, columns = field.any(1).nonzero(), field.any(0).nonzero()
    if not len(rows):
        return 0, 0
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
