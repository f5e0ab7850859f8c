"""Where a network looks: Grad-CAM, the effective receptive field, the gates; and how much of it lies on the object.

    cam = grad_cam(model, "layer4", x)                  # (B, H, W) in 0..1: what speaks for the predicted class
    moved(cam, 32)                                      # the same, half a cell of 32 px up and to the left
    field = effective_field(model, "layer3", x)         # (side, side): which pixels one position responds to
    field_side(field)                                   # in px: the square that holds half of that response
    gates(model, x)["layer1.0.scconv"]                  # (B, C, H, W) in 0..1: what the calibration lets through

Works on our networks, on torchvision's, on any module that takes (B, C, H, W), on any device. Every function runs the
model in eval mode and leaves its mode, parameters and gradients as they were.
"""
import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...scnet import SCConv, SelfCalibration


def grad_cam(model: nn.Module, layer: str | nn.Module, x: Tensor, classes: Tensor | None = None) -> Tensor:
    """Which places of a layer's map speak for a class (Selvaraju et al. 2017, arXiv:1610.02391).

    Each channel of the map is weighted by the mean gradient of the class's logit; the sum is clipped at zero, scaled to
    at most 1 and upsampled bilinearly to the size of the image.

    Args:
        layer: a module of the model or its name, such as "layer4" or "layer3.0.scconv".
        x: images (B, C, H, W), normalized as in training.
        classes: (B,) indices of the logits to explain; None: the largest of each image.

    Returns (B, H, W) in 0..1; all zero where nothing speaks for the class. As usual, the cells tile the image: with a
    stride of s px, the map lies (s - 1) / 2 px below and to the right of its cells' receptive fields. moved() corrects
    that (notebook 07).
    """
    with evaluating(model):
        logits, map = run_to(model, layer, watched(x))              # a gradient, even of a frozen network
        classes = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device).clone()
        if classes.shape != (len(x),) or classes.min() < 0 or classes.max() >= logits.shape[1]:
            raise ValueError(f"classes must be {len(x)} indices below {logits.shape[1]}, one for each image.")
        scores = logits.gather(1, classes[:, None]).sum()
        gradient, = torch.autograd.grad(scores, map)        # (B, K, h, w)
    weights = gradient.mean((2, 3), keepdim=True)           # (B, K, 1, 1)
    cam = (weights * map.detach()).sum(1, keepdim=True).relu()          # (B, 1, h, w)
    cam = cam / cam.amax((2, 3), keepdim=True).clamp(min=1e-12)
    return F.interpolate(cam, size=x.shape[2:], mode="bilinear")[:, 0]


def moved(maps: Tensor, stride: int) -> Tensor:
    """Maps half a cell further up and to the left, where the fields of their cells are centred.

    grad_cam gives each cell a tile of stride x stride px, but in a network of padded convolutions with strides the
    cell's field is centred on the first pixel of that tile, (stride - 1) / 2 px before its middle. Half a pixel is the
    mean of two neighbours; the last row and column are continued.

    Args:
        maps: (B, H, W), as grad_cam returns them, in pixels of the image.
        stride: px of the image from one cell of the layer to the next, such as 32 for "layer4" of a ResNet-50.

    Returns (B, H, W).
    """
    before, after = (stride - 1) // 2, stride // 2          # the two shifts, in px, whose mean is (stride - 1) / 2
    wide = F.pad(maps[:, None], (0, after, 0, after), mode="replicate")
    return F.avg_pool2d(wide[:, :, before:, before:], after - before + 1, stride=1)[:, 0]


def effective_field(model: nn.Module, layer: str | nn.Module, x: Tensor, *, draws: int = 16, seed: int = 0) -> Tensor:
    """Which pixels one position of a layer's map really responds to (Luo et al. 2016, arXiv:1701.04128).

    The squared gradient of the map at one position with respect to the image, averaged over the channels (by random
    signs, whose cross terms cancel), over the images, and over `draws` random positions in the middle third of each.
    All images have the same weight. Many positions, because what a pooled pixel sees depends on where its window lies.

    Args:
        x: images (B, C, H, W). Whatever lies more than a third of the image away is not seen: take large ones.

    Returns (side, side), sum 1, its centre the pixel of the position itself; side = 2 * (min(H, W) // 3) + 1 px.
    """
    reach = min(x.shape[2:]) // 3
    random = torch.Generator().manual_seed(seed)
    found = x.new_zeros(2 * reach + 1, 2 * reach + 1)
    with evaluating(model):
        x = watched(x)
        _, map = run_to(model, layer, x)                    # (B, K, h, w)
        places = [_inner(size, cells, reach) for size, cells in zip(x.shape[2:], map.shape[2:])]
        for draw in range(draws):
            signs = torch.randint(2, map.shape[:2], generator=random).to(map) * 2 - 1           # (B, K)
            where = [_choose(cells, len(x), random) for cells in places]                        # 2 x (B,) map cells
            score = (map[torch.arange(len(x)), :, where[0], where[1]] * signs).sum()
            gradient, = torch.autograd.grad(score, x, retain_graph=draw + 1 < draws)
            energy = gradient.square().sum(1)                                                   # (B, H, W)
            for e, row, column in zip(energy, *(w * size // cells for w, size, cells in
                                                zip(where, x.shape[2:], map.shape[2:]))):
                seen = e[row - reach:row + reach + 1, column - reach:column + reach + 1]
                found += seen / seen.sum().clamp(min=1e-30)
    return found / found.sum().clamp(min=1e-30)


def _inner(size: int, cells: int, reach: int) -> Tensor:
    """The cells of a map whose own pixel has `reach` more pixels of the image on both sides."""
    pixel = torch.arange(cells) * size // cells
    inner = ((pixel >= reach) & (pixel + reach < size)).nonzero()[:, 0]
    if not len(inner):
        raise ValueError(f"A map of {cells} cells over {size} px has none in the middle third: take larger images.")
    return inner


def _choose(cells: Tensor, count: int, random: torch.Generator) -> Tensor:
    return cells[torch.randint(len(cells), (count,), generator=random)]


def field_side(field: Tensor, share: float = 0.5) -> float:
    """The side, in px, of the centred square that holds a share of a field (2n+1, 2n+1), interpolated between pixels.

    One number for the size of a field. Half of the energy depends less on its faint, wide tails than a variance or a
    threshold would.
    """
    field = field.cpu().double()                            # float64 on the CPU: MPS has none
    n = len(field) // 2
    distance = (torch.arange(len(field)) - n).abs()
    ring = torch.maximum(distance[:, None], distance[None, :])                  # 0 at the centre, n at the border
    inside = torch.zeros(n + 1, dtype=torch.float64).index_add_(0, ring.flatten(), field.flatten())
    inside = inside.cumsum(0) / inside.sum()
    k = int(torch.searchsorted(inside, share))
    before = inside[k - 1].item() if k else 0.0
    return max(1.0, 2 * k - 1 + 2 * (share - before) / (inside[k].item() - before))


def gates(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Every gate of a network, (B, C, H, W) in 0..1, by the name of its SelfCalibration or SCConv."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: tuple[Tensor], gate: Tensor) -> None:
            found[name] = gate
        return hook

    with evaluating(model), torch.no_grad(), contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, (SelfCalibration, SCConv)):
                stack.callback(module.gate.register_forward_hook(keep(name)).remove)
        model(x)
    return found


def energy_inside(cam: Tensor, mask: Tensor) -> Tensor:
    """How much of each map (B, H, W) lies inside its mask (B, H, W) bool: (B,) in 0..1; NaN for an empty map."""
    return (cam * mask).sum((1, 2)) / cam.sum((1, 2))


def points_at(cam: Tensor, mask: Tensor) -> Tensor:
    """The pointing game (Zhang et al. 2016, arXiv:1608.00507): is the highest place inside the mask?  (B,) bool."""
    return mask.flatten(1).gather(1, cam.flatten(1).argmax(1, keepdim=True))[:, 0]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and each of its modules back in its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module in training:
            module.training = True


def watched(x: Tensor) -> Tensor:
    """A copy of any x that takes gradients, even of one made in torch.inference_mode()."""
    return x.detach().clone().requires_grad_()


def run_to(model: nn.Module, layer: str | nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of the model, and the layer's map (B, K, h, w) on the way to it."""
    if isinstance(layer, str):
        layers, children = dict(model.named_modules()), ", ".join(name for name, _ in model.named_children())
        if layer not in layers:
            raise ValueError(f"The model has no layer {layer!r}; it has {children}, and what is inside these.")
        layer = layers[layer]
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        maps.append(output)
        return output.clone()           # a ReLU that follows may work in place: it gets a copy

    handle = layer.register_forward_hook(keep)
    try:
        output = model(x)
    finally:
        handle.remove()
    if len(maps) != 1:
        raise ValueError(f"This {type(layer).__name__} ran {len(maps)} times in the model: take one that runs once.")
    if maps[0].dim() != 4:
        raise ValueError(f"This {type(layer).__name__} gives {tuple(maps[0].shape)}, not a map (B, K, h, w): take a "
                         f"convolution or a stage.")
    return output, maps[0]
