"""The small networks that the notebooks start from, trained on Toynette by this project: where they are, how they came.

    load_weights(build("scnet_toy", 10), trained("scnet_toy", seed=0))

    python -m scnet_minimal.lab.trained                     trains them all again, into data/trained
    python -m scnet_minimal.lab.trained scnet_toy_0         this one

They are for looking at, and for going on where the official weights are not at hand. No number of theirs is a result.
"""
import argparse
from pathlib import Path

from ..scnet import read_weights
from . import checkpoint, train_imagenet

FOLDER = Path(__file__).resolve().parents[2] / "data" / "trained"
NAMES = [f"{arch}_{seed}" for arch in ("scnet_toy", "resnet_toy") for seed in (0, 1, 2)]
EPOCHS, SIZE = 24, 96


def trained(arch: str, seed: int = 0) -> Path:
    """The file of a small trained network: "scnet_toy" or its plain twin "resnet_toy", seeds 0, 1 and 2."""
    file = f"{arch}_{seed}.pt"
    above = [folder / "data" / "trained" for folder in (Path.cwd(), *Path.cwd().parents)]
    for folder in (FOLDER, *above):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"There is no {file} in {FOLDER}, nor in a data/trained above the working folder.\n"
                            f"Such files come with the repository: {', '.join(NAMES)}.")


def make(name: str, folder: Path = FOLDER, runs: Path = Path("runs", "trained"), epochs: int = EPOCHS) -> Path:
    """Train a network by its name in NAMES and keep its weights after the last epoch, in half precision."""
    arch, seed = name.rsplit("_", 1)
    train_imagenet.main(["toynette", "--arch", arch, "--seed", seed, "--crop", str(SIZE), "--epochs", str(epochs),
                         "--output", str(runs / name), "--resume", "auto"])
    weights = read_weights(runs / name / "last.pt")         # the last, not the best: nothing chosen on validation
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_torch(folder / f"{name}.pt", half)
    return folder / f"{name}.pt"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scnet_minimal.lab.trained",
        description=f"Trains the small networks of the notebooks on Toynette ({EPOCHS} epochs of {SIZE} px, the quick "
                    f"recipe) and writes their weights to data/trained. A minute or two each on an idle laptop. An "
                    f"interrupted training goes on where it was, in runs/trained.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(NAMES)}; none means all")
    names = parser.parse_args(arguments).names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no network {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    for name in names:
        print(f"-> {make(name)}")


if __name__ == "__main__":
    main()
