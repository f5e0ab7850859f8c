"""Pretrained weights: the authors' file, a mirror's copy of it, or a file of your own.

    scnet50(pretrained=True)                   from torch.hub's cache, the authors' server, or the mirror
    scnet50(weights="mine.safetensors")        .pth, .pt or .safetensors; the authors' names or the mirror's

A network is known here by its state dict alone.  Files are read as data: no code in them is ever run.
"""
import hashlib
import re
import socket
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from .mirror_names import official_names

# An official name ends with the beginning of the file's SHA-256, as torch.hub has it; nobody has confirmed these three.
# sha1: of the .pth in the mirror's archive (pytorchcv's).  drive: the id of the authors' copy on Google Drive.
_AUTHORS = "https://backseason.oss-cn-beijing.aliyuncs.com/scnet/"
_MIRROR = "https://github.com/osmr/imgclsmob/releases/download/v0.0.472/"
SOURCES = {
    "scnet50": dict(official=_AUTHORS + "scnet50-dc6a7e87.pth", mirror=_MIRROR + "scnet50-0608-61236331.pth.zip",
                    sha1="61236331bf1b7439f32158f09ff877e5b90b0d03", drive="1rA266TftaUymbtPTVHCJYoxDwl6K4gLr"),
    "scnet101": dict(official=_AUTHORS + "scnet101-44c5b751.pth", mirror=_MIRROR + "scnet101-0575-40cd4d4c.pth.zip",
                     sha1="40cd4d4ca4407798b569e883eb248a5abfddeb75", drive="11-rW7l9vl-HGrOoCktEjRBPxMeKw334x"),
    "scnet50_v1d": dict(official=_AUTHORS + "scnet50_v1d-4109d1e1.pth",
                        mirror=_MIRROR + "scneta50-0468-eb3c25d6.pth.zip",
                        sha1="eb3c25d6c9c8b6c0815a724d798b9b5a2b27ce34", drive="1EWZ4vELJVFNry6SRJEza5-T9nKuoZWgv"),
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)     # int64: the norms' counters
TIMEOUT = 10                                                         # seconds of silence after which a server is given up


def fetch_weights(network: str) -> Path:
    """The path of a network's ImageNet weights in torch.hub's cache, downloaded into it if need be.

    Raises ValueError for a network whose weights were never released, RuntimeError if no server gives the file.
    """
    if network not in SOURCES:
        raise ValueError(f"No weights were ever released for {network}, only for {', '.join(SOURCES)}.\n"
                         f'A file of your own loads with {network}(weights="PATH").')
    source, cache = SOURCES[network], Path(torch.hub.get_dir(), "checkpoints")
    official, mirrored = cache / Path(source["official"]).name, cache / Path(source["mirror"]).stem
    for path in (official, mirrored):
        if path.is_file():
            return path

    failures = []
    for download, url, path, digest in ((_download, source["official"], official, official.stem.split("-")[-1]),
                                        (_download_and_unzip, source["mirror"], mirrored, source["sha1"])):
        if failures:
            print(f"{failures[0]}; trying {url}", file=sys.stderr)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            download(url, path, digest)
            return path
        except Exception as error:                                   # whatever it was, the next address may work
            failures.append(f"{url} ({error})")
    raise RuntimeError(f"The weights of {network} could not be downloaded: {', '.join(failures)}.\n"
                       f"Get one of the two (unzip the .zip), or https://drive.google.com/file/d/{source['drive']}/view,\n"
                       f'with a browser, and load it with {network}(weights="PATH"), which checks no hash.')


def _download(url: str, path: Path, sha256: str | None = None) -> None:
    """torch.hub's download, which names the file once it is complete and its hash right; with a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    finally:
        socket.setdefaulttimeout(before)


def _download_and_unzip(url: str, path: Path, sha1: str) -> None:
    """To `path`, the member of the archive that has its name."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        archive, unzipped = Path(scratch, "archive.zip"), Path(scratch, path.name)
        _download(url, archive)
        with zipfile.ZipFile(archive) as members:
            content = members.read(path.name)
        if (found := hashlib.sha1(content).hexdigest()) != sha1:
            raise RuntimeError(f'invalid hash value (expected "{sha1}", got "{found}")')
        unzipped.write_bytes(content)
        unzipped.replace(path)


def load_weights(model: nn.Module, path) -> nn.Module:
    """Load a weights file into a network: all of it, but for the two ends that may differ (see scnet50).

    Raises FileNotFoundError, ImportError if safetensors is missing, ValueError if the file is no weights file, or one
    of another network.
    """
    found, own = read_weights(path), model.state_dict()
    state = _adapted(found, own)
    theirs, ours = ({name: tuple(t.shape) for name, t in s.items() if not name.endswith("num_batches_tracked")}
                    for s in (state, own))                           # old files and frozen norms have no such counters
    wrong = [name for name in ours | theirs if theirs.get(name) != ours.get(name)]
    if wrong and all(name.startswith("fc.") for name in wrong):
        raise ValueError(f"{path} has {_classes(found)} classes, and the network {_classes(own)}.\n"
                         f"Build it with num_classes={_classes(found)}, or with 0 to leave the classifier out.")
    if wrong:
        lines = [f"{name} is {theirs.get(name, 'absent')}, not {ours.get(name, 'absent')}" for name in wrong]
        lines = lines if len(lines) < 4 else [*lines[:2], "...", lines[-1]]
        raise ValueError(f"{path} does not fit this network: it looks like {_description(found)}.\n"
                         f"Differences: {len(wrong)}; {'; '.join(lines)}.")
    model.load_state_dict(state, strict=False)
    return model


def _adapted(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors, with the head and the first convolution for a network whose state dict is `own`."""
    if _classes(state) != _classes(own) and (_classes(state) == 1000 or _classes(own) == 0):
        state = {name: t for name, t in state.items() if not name.startswith("fc.")}
        state |= {name: t for name, t in own.items() if name.startswith("fc.")}
    first = "conv1.weight" if "conv1.weight" in own else "conv1.0.weight"
    if first in state and first in own and state[first].shape[1:] == (3, *own[first].shape[2:]):   # RGB, as timm does
        rgb, in_chans = state[first], own[first].shape[1]
        more = rgb.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans] * (3 / in_chans)
        state = state | {first: rgb.sum(1, keepdim=True) if in_chans == 1 else more}
    return state


def _classes(state: dict[str, Tensor]) -> int:
    return len(state.get("fc.weight", ()))


def _description(state: dict[str, Tensor]) -> str:
    if "layer1.0.k1.0.weight" not in state:
        return f"a torchvision ResNet with {_classes(state)} classes" if "layer1.0.conv2.weight" in state else "no SCNet"
    depth = 101 if "layer3.22.k1.0.weight" in state else 50 if "layer3.5.k1.0.weight" in state else "?"
    return f"scnet{depth}{'_v1d' if 'conv1.0.weight' in state else ''} with {_classes(state)} classes"


def read_weights(path) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU, under the authors' names.  Raises as load_weights does."""
    path = Path(path).expanduser()
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
    for name, t in state.items():
        if t.layout != torch.strided or t.is_meta or t.dtype not in _DTYPES:
            raise ValueError(f"{path} holds {name} as {t.dtype}, {t.layout}: save it as dense float16 to float64.")
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
