"""Pretrained weights: the authors' file, a mirror's copy of it, or a file of your own.

    scnet50(pretrained=True)                   from torch.hub's cache, the authors' server, or the mirror
    scnet50(weights="mine.safetensors")        .pth, .pt or .safetensors; the authors' names or the mirror's

A network is known here by its state dict alone.  Files are read as data: no code in them is ever run.
"""
import hashlib
import os
import re
import socket
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .sources import SOURCES, official_names

TIMEOUT = 10                                                         # seconds of silence before a server is given up


def fetch_weights(network: str) -> Path:
    """The path of a network's ImageNet weights in torch.hub's cache, downloaded into it if need be.

    Raises ValueError for a network whose weights were never released, RuntimeError if no server gives the file.
    """
    if network not in SOURCES:
        raise ValueError(f"No weights were ever released for {network}, only for {', '.join(SOURCES)}.\n"
                         f'A file of your own loads with {network}(weights="PATH").')
    source, cache = SOURCES[network], Path(torch.hub.get_dir(), "checkpoints")
    official, unzipped = cache / Path(source["official"]).name, cache / Path(source["mirror"]).stem
    for path in (official, unzipped):
        if path.is_file():
            return path

    failures, before = [], socket.getdefaulttimeout()
    for download, url, path, digest in (
            (torch.hub.download_url_to_file, source["official"], official, official.stem.split("-")[-1]),
            (_download_and_unzip, source["mirror"], unzipped, source["sha1"])):
        if failures:
            print(f"{failures[0]}; trying {url}", file=sys.stderr)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(TIMEOUT)
            download(url, str(path), digest)
            return path
        except Exception as error:                                   # whatever it was, the next address may work
            failures.append(f"{url} ({error})")
        finally:
            socket.setdefaulttimeout(before)
    raise RuntimeError(f"The weights of {network} could not be downloaded: {', '.join(failures)}.\n"
                       f"Get one of the two (unzip the .zip), or https://drive.google.com/file/d/{source['drive']}/view,\n"
                       f'with a browser, and load it with {network}(weights="PATH"), which checks no hash.')


def _download_and_unzip(url: str, path: str, sha1: str) -> None:
    """To `path`, once it is complete and its hash right, the member of the archive that has its name."""
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as scratch:
        archive, unzipped = Path(scratch, "archive.zip"), Path(scratch, "unzipped.pth")
        torch.hub.download_url_to_file(url, str(archive))
        with zipfile.ZipFile(archive) as members:
            unzipped.write_bytes(content := members.read(Path(path).name))
        if (found := hashlib.sha1(content).hexdigest()) != sha1:
            raise RuntimeError(f'invalid hash value (expected "{sha1}", got "{found}")')
        unzipped.replace(path)


def load_weights(model: nn.Module, path) -> nn.Module:
    """Load a weights file into a network.  Its head and first convolution adapt as told in scnet50; the rest must fit.

    Raises FileNotFoundError, ImportError without the package safetensors, ValueError for any file that does not load.
    """
    own = model.state_dict()
    state = _adapted(read_weights(path), own)
    theirs, ours = ({name: tuple(t.shape) for name, t in s.items() if not name.endswith("num_batches_tracked")}
                    for s in (state, own))                           # old files and frozen norms have no such counters
    wrong = [f"{name} is {theirs.get(name, 'missing')} and should be {ours.get(name, 'absent')}"
             for name in ours | theirs if theirs.get(name) != ours.get(name)]
    if wrong:
        looks = [f"found {a}, expected {b}" for a, b in zip(_description(state), _description(own)) if a != b]
        raise ValueError(f"{': '.join([f'{path} does not fit this network', *looks[:1]])}.\n"
                         f"{len(wrong)} tensors differ: {'; '.join(wrong[:3])}{'; and more' * (len(wrong) > 3)}.")
    model.load_state_dict(state, strict=False)
    return model


def _adapted(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, with the head and the first convolution that a network with the state dict `own` needs."""
    theirs, ours = (len(s.get("fc.weight", ())) for s in (state, own))                   # classes
    if ours not in (1000, theirs) and (theirs == 1000 or ours == 0):
        state = {name: t for name, t in state.items() if not name.startswith("fc.")}
        state |= {name: t for name, t in own.items() if name.startswith("fc.")}
    first = "conv1.weight" if "conv1.weight" in own else "conv1.0.weight"
    if first in state and first in own and state[first].shape[1:] == (3, *own[first].shape[2:]):   # RGB, as timm does
        rgb, in_chans = state[first], own[first].shape[1]
        more = rgb.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans] * (3 / in_chans)
        state = state | {first: rgb.sum(1, keepdim=True) if in_chans == 1 else more}
    return state


def _description(state: dict[str, Tensor]) -> tuple[str, str]:
    blocks = tuple(len({name.split(".")[1] for name in state if name.startswith(f"layer{i}.")}) for i in range(1, 5))
    v1d, name = "_v1d" * ("conv1.0.weight" in state), {(3, 4, 6, 3): "scnet50", (3, 4, 23, 3): "scnet101"}.get(blocks)
    scnet = f"{name}{v1d}" if name else f"an SCNet{v1d} of {blocks} blocks"
    other = "a ResNet" if "layer1.0.conv2.weight" in state else "no SCNet"
    return scnet if "layer1.0.k1.0.weight" in state else other, f"{len(state.get('fc.weight', ()))} classes"


def read_weights(path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, under the authors' names.  Raises as load_weights does."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder: name the file." if path.is_dir() else f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ImportError(f"{path} needs a package that is not installed: pip install safetensors.") from None
    except Exception as error:
        raise ValueError(f"{path} {_why_unreadable(path, error)}.") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state         # inside a checkpoint
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        keys = ", ".join(map(str, state)) if isinstance(state, dict) else ""
        raise ValueError(f"{path} holds no state dict, but a {type(state).__name__} of {keys[:100] or 'no names'}.")
    state = official_names({str(name).removeprefix("module."): tensor for name, tensor in state.items()})
    for name, t in state.items():
        plain = t.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        if t.layout != torch.strided or t.is_meta or not plain and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{path} holds {name} as {t.dtype}, {t.layout}: save dense tensors of 16 to 64 bits.")
    return state


def _why_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(64).strip()
    if not start:
        return "is empty: delete it and download it again"
    if start.startswith(b"<"):
        return "is a web page, not weights: download the file again, with a browser"
    if path.suffix == ".zip":
        return "is an archive: unzip it and name the .pth inside"
    if refused := re.search(r"GLOBAL (\S+)", str(error)):
        return f"was refused, and nothing in it was run: it holds {refused[1]}; ask for a plain state dict"
    return "is cut off, damaged, or no weights file (nothing in it was run): delete it and download it again"
