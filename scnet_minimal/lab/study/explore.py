"""The game of dots.py as a page: drag the dots, and see at once what each trained block answers.

The page holds the weights and needs no server and no network.  A network goes into it as a list of steps, each of which
reads maps by their number and makes the next one; explore.html has a small interpreter for them.

    steps(network) -> [{"op": "conv", "x": [0], "at": 0, "shape": [16, 3, 3, 3], ...}, {"op": "relu", "x": [1]}, ...]

Map 0 is the picture, and step i makes map i + 1.  The norms are folded into the convolutions before.
"""
import base64
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from ...fuse import fuse
from ...scnet import SCConv
from ...weights import read_weights
from .. import zoo
from .dots import BLOCKS, SqueezeExcite, network

TEMPLATE = Path(__file__).with_name("explore.html")
PLACE = "@NETWORKS@"                # in the template: here come the networks, as JSON


class Program:
    """A network in evaluation mode, float64 and without norms, as steps over numbered maps; see the module.

    steps: each a dict of "op", "x" (the maps that it reads) and its settings; maps are (C, H, W).
        conv     shape (out, in / groups, k, k), dilation, groups; "at": where in `weights` its weights and bias begin
        pool     average over r x r px                    mean     average over the whole map: (C, 1, 1)
        up       nearest, to the size of the second map   half     the first (0) or second (1) half of the channels
        relu, sigmoid, add, mul, cat                      as in PyTorch; mul stretches (C, 1, 1) over the map
    gate: the number of the map by which another is multiplied, or None.
    """

    def __init__(self, net: nn.Module, weights: list[torch.Tensor]):
        self.weights, self.steps, self.gate = weights, [], None
        self.add(fuse(net), 0)

    def step(self, op: str, *x: int, **settings) -> int:
        self.steps.append({"op": op, "x": x, **settings})
        return len(self.steps)

    def add(self, module: nn.Module, x: int) -> int:
        """The steps of a module that reads map x; returns the number of its output."""
        match module:
            case nn.Sequential():
                for child in module:
                    x = self.add(child, x)
                return x
            case nn.Identity():
                return x
            case nn.Conv2d():
                at = sum(w.numel() for w in self.weights)
                self.weights += [module.weight.detach().flatten(), module.bias.detach()]
                return self.step("conv", x, at=at, shape=tuple(module.weight.shape), dilation=module.dilation[0],
                                 groups=module.groups)
            case nn.AvgPool2d():
                return self.step("pool", x, r=module.kernel_size)
            case nn.AdaptiveAvgPool2d():
                return self.step("mean", x)
            case nn.Upsample():                                # back to the size of the picture
                return self.step("up", x, 0)
            case nn.ReLU() | nn.Sigmoid():
                return self.step(type(module).__name__.lower(), x)
            case SCConv():
                x1, x2 = self.step("half", x, which=0), self.step("half", x, which=1)
                wide = self.step("up", self.add(module.k2, x1), x1)
                self.gate = self.step("sigmoid", self.step("add", x1, wide))
                y1 = self.add(module.k4, self.step("mul", self.add(module.k3, x1), self.gate))
                return self.step("cat", y1, self.add(module.k1, x2))
            case SqueezeExcite():
                x = self.add(module.conv, x)
                self.gate = self.add(module.weigh, x)
                return self.step("mul", x, self.gate)
        raise TypeError(f"The page has no step for {type(module).__name__}.")


def networks(blocks: Iterable[str]) -> dict:
    """The trained networks around these blocks, seed 0: {"blocks": [...], "weights": float32 as base64}.

    MissingFileError for a block without a file in data/trained.
    """
    weights, found = [], []
    for name in blocks:
        block = BLOCKS[name]
        net = network(block.make()).eval()
        net.load_state_dict(read_weights(zoo.trained(f"dots_{name}", seed=0)))
        program = Program(net.double(), weights)
        found.append({"id": name, "label": block.label, "window": block.window, "gate": program.gate,
                      "steps": program.steps})
    values = torch.cat(weights).float().numpy().astype("<f4").tobytes()
    return {"blocks": found, "weights": base64.b64encode(values).decode()}


def write_page(path: Path, blocks: Iterable[str]) -> None:
    """Write the page for these blocks, one HTML file that holds everything."""
    text = TEMPLATE.read_text(encoding="utf-8").replace(PLACE, json.dumps(networks(blocks), separators=(",", ":"),
                                                                          ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
