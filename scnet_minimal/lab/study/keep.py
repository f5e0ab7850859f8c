"""The small trained networks of data/trained, in half precision: what the notebooks start from."""
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...weights import read_weights
from .. import zoo
from ..checks import make_folder
from ..errors import UserError
from ..train.checkpoint import read_checkpoint, write_torch
from .photographs import run_folder


def train_small(name: str, train: Callable[[list[str]], int], folder: Path = zoo.TRAINED_FOLDER,
                runs: Path = Path("runs", "trained"), epochs: int = 24) -> int:
    """Train a network of zoo.TRAINED and keep its weights in half precision; the exit code of the training.

    train: the classification command, train_imagenet.main.
    """
    arch, seed = name.rsplit("_", 1)
    if code := train(["toynette", "--arch", arch, "--seed", seed, "--crop", "96", "--epochs", str(epochs),
                      "--output", str(runs / name), "--resume", "auto"]):
        return code
    weights = read_weights(runs / name / "last.pt")         # the last, not the best: nothing chosen on validation
    make_folder(folder)
    write_torch(folder / f"{name}.pt", half_precision(weights))
    return 0


def keep_photographs(folder: Path, runs: Path, jobs: Sequence[dict]) -> None:
    """Of the jobs of the study on photographs, seeds 0 to 2 of SCNet and its plain twin, with the names of the classes.

    UserError if one has not been trained to its end.
    """
    make_folder(folder)
    for job in jobs:
        if job["kind"] in ("scnet", "plain") and job["seed"] < 3:
            state = read_checkpoint(run_folder(runs, job))
            if state["epoch"] < job["epochs"]:
                raise UserError(f"{job['kind']}, seed {job['seed']}, has run {state['epoch']} of {job['epochs']} "
                                "epochs.")
            file = folder / f"photographs_{job['kind']}_{job['seed']}.pt"
            write_torch(file, {"classes": state["classes"], "state_dict": half_precision(state["state_dict"])})
            print(f"{file}: {100 * state['history'][-1]['val_top1']:.2f} %")


def half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
