"""The reference numbers of the authors' code (tests/golden/*.json), and the weights that they were made with."""
import json
import math
import pathlib
import zlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent / "golden"


def load(name: str):
    return json.loads((FOLDER / f"{name}.json").read_text())


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Every entry of the state dict in float64, drawn from a seed made of its own name; the model in eval mode."""
    state = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        v = np.random.RandomState(zlib.crc32(name.encode())).randn(math.prod(shape))
        if name.endswith("num_batches_tracked"):
            v = np.zeros(1)
        elif name.endswith("running_mean"):
            v = 0.1 * v
        elif name.endswith("running_var"):
            v = 1 + 0.5 * abs(v)
        elif name.endswith("bias"):
            v = 0.1 * v
        elif len(shape) == 1:
            v = 1 + 0.1 * v
        else:
            v = v * math.sqrt(2 / math.prod(shape[1:]))
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        state[name] = torch.from_numpy(v.reshape(shape)).to(dtype)
    model.double().load_state_dict(state)
    return model.eval()


def picture(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).randn(*shape))


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def close(value, reference, rel: float = 1e-9) -> bool:
    """All of value within rel of the reference, relative to the reference's largest magnitude."""
    value, reference = np.asarray(value, dtype=float), np.asarray(reference, dtype=float)
    return value.shape == reference.shape and bool(abs(value - reference).max() <= rel * abs(reference).max())
