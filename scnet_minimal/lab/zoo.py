"""A network by its name: ours, their plain twins, any classifier of torchvision; and the small ones trained already.

    model = create_model("scnet_toy", num_classes=10)
    load_weights(model, trained("scnet_toy", seed=0))

A plain twin is the same SCNet with ResNet's bottleneck in place of ours; that of scnet50 is torchvision's resnet50.
The two toy networks are for Toynette: one block per stage, a quarter of the width, half a million parameters each, and
output stride 16, so that a 96 px image leaves a 6 x 6 map where the full networks leave 7 x 7 of 224 px.
"""
import difflib
import hashlib
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from ..scnet import SCNet, scnet50, scnet50_v1d, scnet101, scnet101_v1d
from ..weights import SOURCES, fetch_weights
from .errors import MissingFileError, UserError

_PLAIN = dict(block=Bottleneck, bottleneck_width=64)
_TOY = dict(layers=(1, 1, 1, 1), widths=(16, 32, 64, 128), output_stride=16)
OURS = {
    "scnet50": scnet50, "scnet101": scnet101, "scnet50_v1d": scnet50_v1d, "scnet101_v1d": scnet101_v1d,
    "resnet50_v1d": partial(SCNet, (3, 4, 6, 3), stem_width=32, avg_down=True, **_PLAIN),    # avd is our block's alone
    "scnet_toy": partial(SCNet, **_TOY), "resnet_toy": partial(SCNet, **_TOY, **_PLAIN),
}
TRAINED = [f"{arch}_{seed}" for arch in ("scnet_toy", "resnet_toy") for seed in (0, 1, 2)]
PHOTOGRAPHS = [f"photographs_{kind}_{seed}" for kind in ("scnet", "plain") for seed in (0, 1, 2)]
TRAINED_FOLDER = Path(__file__).resolve().parents[2] / "data" / "trained"


def model_names() -> list[str]:
    """Every name that create_model() knows: ours and the toy networks first, then torchvision's classifiers."""
    return [*OURS, *torchvision.models.list_models(module=torchvision.models)]


def create_model(name: str, num_classes: int = 1000, **kwargs) -> nn.Module:
    """A new network with random weights; kwargs go to its builder.  UserError for an unknown name."""
    if name in OURS:
        return OURS[name](num_classes=num_classes, **kwargs)
    if name not in model_names():
        close = difflib.get_close_matches(name, model_names(), 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"ours are {', '.join(OURS)}."
        raise UserError(f"There is no network {name!r}: {hint}")
    if name.startswith(("inception", "googlenet")):     # by default these two return their auxiliary heads as well
        kwargs = {"aux_logits": False, "init_weights": True} | kwargs
    return torchvision.models.get_model(name, num_classes=num_classes, **kwargs)


def check_size(name: str, size: int) -> None:
    """UserError if a network cannot take images of size x size px, with the next size that it takes.

    Tried on zeros without values (torch's "meta" device), which takes no memory and a fraction of a second.
    """
    def refusal(side: int) -> str:
        try:
            with torch.inference_mode():
                model(torch.zeros(2, 3, side, side, device="meta"))
        except (RuntimeError, ValueError, AssertionError) as error:     # each network has its own way to refuse
            return str(error).strip().split("\n")[0][:90] or type(error).__name__
        return ""

    with torch.device("meta"):
        model = create_model(name, 2).eval()
    if why := refusal(size):
        other = next((f"{side} px is the next size that it can" for side in range(size + 1, 513) if not refusal(side)),
                     "take another network")
        raise UserError(f"{name} cannot take images of {size} px: {other}.\n({why})")


def fetch_imagenet(name: str, version: str = "DEFAULT") -> Path:
    """The file of a network's ImageNet weights: the authors' for ours, torchvision's of that version for its own.

    In torch.hub's cache, or else downloaded into it.  torchvision's files are checked against the hash in their name,
    those in the cache too.  Read it with read_weights() or load_weights(), which run no code in it.

    UserError if there are no such weights or the hash is wrong, RuntimeError or OSError if the download fails.
    """
    if name in OURS:
        if name not in SOURCES:
            raise UserError(f"There are no ImageNet weights of {name}, only of {', '.join(SOURCES)} and of "
                             "torchvision's networks.")
        return fetch_weights(name)
    url = torchvision.models.get_model_weights(name)[version].url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    expected = path.stem.rsplit("-", 1)[-1]                         # torch.hub's convention: how the SHA-256 begins
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(expected):
        raise UserError(f"{path} has the SHA-256 {digest[:8]}..., not {expected}...: delete it, and it is downloaded "
                         "again.")
    return path


def trained(arch: str, seed: int = 0) -> Path:
    """The file of a small network, seeds 0, 1 and 2, of two kinds and their plain twins.

    "scnet_toy", "resnet_toy": trained on Toynette, 10 classes.  "photographs_scnet", "photographs_plain": scnet_toy and
    resnet_toy trained on 50 classes of ImageNet at 64 px; the file keeps their names under "classes".

    MissingFileError if it is neither in the checkout nor in a data/trained above the working folder.
    """
    file = f"{arch}_{seed}.pt"
    above = [folder / "data" / "trained" for folder in (Path.cwd(), *Path.cwd().parents)]
    for folder in (TRAINED_FOLDER, *above):
        if (folder / file).is_file():
            return folder / file
    raise MissingFileError(f"There is no {file} in {TRAINED_FOLDER}, nor in a data/trained above the working folder.\n"
                           f"These come with the repository: {', '.join(TRAINED + PHOTOGRAPHS)}.")
