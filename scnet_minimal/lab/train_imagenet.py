"""Train or evaluate a classifier on a folder in ImageNet's layout, on Imagenette or on Toynette.

    python -m scnet_minimal.lab.train_imagenet toynette -a scnet_toy        (--help explains the rest)

The flags are those of the PyTorch ImageNet example, with their meaning, and some more. This file has the recipes and
what is a classifier's own; lab/train has the rest.
"""
import argparse
import contextlib
import netrc
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ..weights import load_weights
from .checks import Number, Rule, check_fields, filled, is_number, one_of
from .command_line import run_command
from .data import Data, load_data
from .data.download import NAMED_SETS, locate
from .data.sampler import seed_of
from .errors import UserError, user_errors
from .train import compile_for, evaluate, fit
from .train.checkpoint import Keeper, check_classes, load_exactly, read_file
from .train.command import (
    Plan,
    add_common_flags,
    check_given,
    new_parser,
    print_epoch,
    print_first,
    print_start,
    seed_everything,
    settle,
    start,
    train_until_done,
)
from .train.processes import Place, first_on_machine, from_first, is_first
from .zoo import OURS, check_size, create_model, fetch_imagenet

# What --recipe stands for. paper: the authors' (their issue #5), for the networks of the paper; v1d's is not stated.
RECIPES = {
    "paper": dict(epochs=100, batch_size=256, lr=0.1, momentum=0.9, weight_decay=1e-4, label_smoothing=0.1, crop=224,
                  scale=(0.08, 1.0)),
    "quick": dict(epochs=20, batch_size=64, lr=0.1, momentum=0.9, weight_decay=5e-4, label_smoothing=0.1, crop=128,
                  scale=(0.35, 1.0)),
}
QUICK_ON = {"toynette": dict(epochs=40, batch_size=32, lr=0.2, crop=64, scale=(0.5, 1.0)),       # small drawings
            "tiny-imagenet": dict(crop=64), "tiny-imagenet-50": dict(crop=64)}                 # and small photographs
SETTINGS = {"crop": Number(int, 8, 4096), "momentum": Number(float, 0, 1, below=True), "recipe": one_of(*RECIPES),
            "weight_decay": Number(float, 0, 1e30), "label_smoothing": Number(float, 0, 1, below=True),
            "scale": Rule(lambda v: isinstance(v, (list, tuple)) and len(v) == 2 and all(map(is_number, v))
                          and 0 < v[0] <= v[1] <= 1, "two shares of the area")}
DEFAULTS = {"data": "imagenet", "arch": "scnet50"}
MODULE = "scnet_minimal.lab.train_imagenet"
COMMAND = f"python -m {MODULE}"
EXAMPLES = f"""
three worked examples:

  {COMMAND} toynette -a scnet_toy --output runs/toy
      A rehearsal on the embedded drawings, a minute or two on a laptop. runs/toy then holds best.pt (the weights of
      the best epoch), last.pt (all that resuming takes), history.csv, curve.png and args.json. Stop it with Ctrl-C
      and resume it with --resume runs/toy: it ends with the weights of a run that was never stopped.

  {COMMAND} imagenette -a scnet50 --epochs 5 --amp
      Imagenette at 128 px in five epochs; the first run downloads 99 MB into data/. The plain twin of scnet50 is
      -a resnet50, and any other classifier of torchvision trains in the same way.

  torchrun --nproc-per-node 8 --max-restarts 3 -m {MODULE} \\
          /data/imagenet -a scnet50 --amp -j 64 --resume auto --output runs/scnet50
      ImageNet by the authors' recipe on eight GPUs of one machine. When a process dies, all restart and resume from
      the last checkpoint (--resume auto). -b and -j count the images per step and the workers of a machine, over all
      of its GPUs. To evaluate the result:
      {COMMAND} /data/imagenet -e --resume runs/scnet50/best.pt

recipes (a flag on the command line overrides its recipe):

  paper  100 epochs, momentum 0.9, lr 0.1, a tenth of it after every 30 epochs, batch 256, weight decay 1e-4, label
         smoothing 0.1, 224 px. The authors' for SCNet-50 and -101; what the v1d networks had is not stated.
  quick  one cycle of the learning rate, Nesterov, weight decay 5e-4 but not on norms and biases, label smoothing 0.1.
         20 epochs of 128 px in batches of 64, --lr the peak for such batches (other batch sizes scale it);
         on toynette 40 epochs of 64 px in batches of 32, --lr 0.2.
  Without --recipe it is quick for imagenette and toynette, and paper for a folder.
"""


def parser() -> argparse.ArgumentParser:
    p = new_parser(COMMAND, __doc__.split("\n")[0], EXAMPLES)
    p.add_argument("data", metavar="DIR", nargs="?", type=filled,
                   help="a folder that holds train/CLASS/ and val/CLASS/, or "
                   f"{', '.join(NAMED_SETS)} (default: imagenet)")
    p.add_argument("-a", "--arch", help="scnet50 (default), scnet101, scnet50_v1d, scnet101_v1d, their plain twins "
                   "(resnet50, resnet101, resnet50_v1d), scnet_toy, resnet_toy, or any classifier of torchvision")
    p.add_argument("--recipe", choices=list(RECIPES), help="see below")
    p.add_argument("--crop", type=SETTINGS["crop"], metavar="PX", help="side of the images, in training and "
                   "evaluation, where the short side is first resized to 256/224 of it (default: the recipe's)")
    p.add_argument("--momentum", type=SETTINGS["momentum"], metavar="M", help="default: the recipe's, 0.9")
    p.add_argument("--weight-decay", "--wd", type=SETTINGS["weight_decay"], metavar="W",
                   help="default: the recipe's")
    p.add_argument("--label-smoothing", type=SETTINGS["label_smoothing"], metavar="X",
                   help="default: the recipe's")
    p.add_argument("--pretrained", action="store_true", help="start from ImageNet weights: the authors' official "
                   "ones for ours, torchvision's DEFAULT for its own")
    p.add_argument("--start-epoch", type=Number(int, 0, 10**6), default=0, metavar="N",
                   help="count epochs from N, the schedule too")
    p.add_argument("--compile", action="store_true", help="torch.compile the network")
    p.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (pip install wandb); offline "
                   "unless WANDB_API_KEY is set or you are logged in")
    recipes = "the recipe's"
    add_common_flags(p, output="runs/ARCH-DATA", epochs=recipes, batch_size=recipes, lr=recipes)
    return p


def main(argv: list[str] | None = None) -> int:
    return start(parser(), work, argv)


def work(args: argparse.Namespace, device: torch.device, place: Place) -> int:
    """One process of the command."""
    if args.evaluate:
        return evaluate_file(args, device, place)
    plan = from_first(lambda: settle(args, complete, default_output))
    settings, state = plan.settings, plan.state
    data = open_data(settings, device, place, args.workers)
    if state:
        check_classes(state, data.classes, plan.source)
    seed_everything(settings)
    pretrained = args.pretrained and not state
    model = first_on_machine(lambda: new_network(settings["arch"], len(data.classes), pretrained), place)
    if args.compile:
        compile_for(model, data.train.batch_size // place.world)
    if place.rank:              # layers such as dropout differ between processes; the weights are the first one's
        torch.manual_seed(seed_of(settings["seed"], place.rank))
    settings["wandb_id"] = wandb_id(plan)
    keeper = Keeper(settings["output"], {"arch": settings["arch"], "classes": data.classes, "arguments": settings})
    from_first(keeper.open)
    print_start(data, f"{settings['arch']}, recipe {settings['recipe']},", plan, data.train.batch_size, place, device)
    chosen = {name: settings[name] for name in ("lr", "momentum", "weight_decay", "label_smoothing", "recipe")}
    with dashboard(args.wandb, settings) as log:
        def on_epoch(row: dict, best: bool) -> None:
            print_epoch(row, settings["epochs"], best, results_of(row))
            log(row)

        history = train_until_done(
            lambda: fit(model, data, epochs=settings["epochs"], resume=state, start_epoch=args.start_epoch,
                        name=settings["arch"], amp=bool(settings["amp"]), sync_norms=bool(settings["sync_bn"]),
                        keeper=keeper, print_freq=args.print_freq, quiet=None, on_epoch=on_epoch, **chosen),
            keeper, args, MODULE)
    if history is None:
        return 130
    if history:
        best = max(history, key=lambda row: row["val_top1"])
        print_first(f"best: epoch {best['epoch'] + 1}, top-1 {best['val_top1']:.2%} -> {keeper.folder / 'best.pt'}")
    return 0


# --- settings -------------------------------------------------------------------------------------------------------

def complete(given: dict, state: dict | None) -> dict:
    """All settings, from those that the command line or the checkpoint names, and the recipe."""
    given = DEFAULTS | given
    check_given(given, SETTINGS)
    recipe = given.get("recipe") or ("quick" if given["data"] in NAMED_SETS else "paper")
    settings = RECIPES[recipe] | (QUICK_ON.get(given["data"], {}) if recipe == "quick" else {})
    settings = {name: given.get(name, settings.get(name)) for name in ("data", "arch", "amp", "sync_bn", *settings)}
    if not state and given.get("start_epoch", 0) >= settings["epochs"]:
        raise UserError(f"--start-epoch {given['start_epoch']} leaves nothing to train: --epochs is "
                        f"{settings['epochs']}, and the first epoch is 0.")
    check_size(settings["arch"], settings["crop"])
    return settings | {"recipe": recipe}


def default_output(given: dict) -> str:
    given = DEFAULTS | given
    return f"runs/{given['arch']}-{Path(given['data']).name}"


# --- data, network --------------------------------------------------------------------------------------------------

def open_data(settings: dict, device: torch.device, place: Place, workers: int, **options) -> Data:
    """The data of this process.  A named set is downloaded if it is missing, by one process of each machine."""
    first_on_machine(lambda: locate(settings["data"], download=True), place)
    return load_data(settings["data"], size=settings["crop"], device=device, seed=settings["seed"],
                     scale=tuple(settings["scale"]), shard=place.shard,
                     batch_size=place.total_batch(settings["batch_size"]), workers=place.own_workers(workers),
                     **options)


def new_network(arch: str, classes: int, pretrained: bool) -> nn.Module:
    """A new network; pretrained: with ImageNet's weights, and a new head where its classes are not ImageNet's 1,000.

    UserError if there are no such weights, or they cannot be downloaded.
    """
    model = create_model(arch, classes)
    if not pretrained:
        return model
    with user_errors(RuntimeError, OSError, ValueError, hint=f"These are the ImageNet weights of {arch}: check the "
                     "connection, or put the file into torch.hub's cache by hand."):
        path = fetch_imagenet(arch)
        if arch in OURS:
            return load_weights(model, path)
    own = model.state_dict()
    state = {name: t for name, t in read_file(path).items() if name in own and t.shape == own[name].shape}
    model.load_state_dict(own | state)
    return model


# --- evaluation -----------------------------------------------------------------------------------------------------

class SelectClasses(nn.Module):
    """A network's logits of some classes only: ImageNet's 1,000 -> Imagenette's ten."""

    def __init__(self, network: nn.Module, index: list[int]) -> None:
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.index]


def evaluate_file(args: argparse.Namespace, device: torch.device, place: Place) -> int:
    """-e: top-1 and top-5 error on the validation images."""
    if not args.resume and not args.pretrained:
        raise UserError("-e needs something to evaluate: --resume FILE or --pretrained.")
    content = from_first(lambda: read_file(args.resume)) if args.resume else {}
    saved = content.get("arguments") or {}
    check_fields(saved, {}, f"arguments of {args.resume}")
    if args.arch and content.get("arch", args.arch) != args.arch:
        raise UserError(f"{args.resume} holds {content['arch']}, not {args.arch}: leave -a out, or name another file.")
    settings = {"seed": 0, "scale": (1, 1), "data": args.data or saved.get("data", DEFAULTS["data"]),
                "arch": args.arch or content.get("arch", DEFAULTS["arch"]), "crop": args.crop or saved.get("crop", 224),
                "batch_size": args.batch_size or 256}
    check_given(settings, SETTINGS)
    check_size(settings["arch"], settings["crop"])
    data = open_data(settings, device, place, args.workers, memory_limit=0, only_val=True)
    if args.resume:
        check_classes(content, data.classes, args.resume)
        model = create_model(settings["arch"], len(data.classes))
        load_exactly(model, content, args.resume)
    else:
        model = first_on_machine(lambda: new_network(settings["arch"], 1000, True), place)
        if len(data.classes) != 1000:
            model = SelectClasses(model, imagenet_indices(data.classes, settings["data"]))
    result = evaluate(model.to(device), data.val, amp=bool(args.amp))
    print_first(f"{settings['arch']} on {len(data.val.labels):,} images of {data.name} at {settings['crop']} px: "
                f"top-1 error {1 - result['top1']:.2%}, top-5 error {1 - result['top5']:.2%}, "
                f"loss {result['loss']:.3f}")
    return 0


def imagenet_indices(classes: list[str], data: str) -> list[int]:
    """Which of ImageNet's 1,000 classes these are."""
    names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    if unknown := [name for name in classes if name not in names]:
        raise UserError(f"--pretrained knows ImageNet's classes, and {unknown[0]!r} of {data} is none of them: train a "
                        "new head first.")
    return [names.index(name) for name in classes]


# --- printing -------------------------------------------------------------------------------------------------------

def results_of(row: dict) -> str:
    return (f"train loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}; val loss {row['val_loss']:.3f}, "
            f"top-1 {row['val_top1']:.1%}, top-5 {row['val_top5']:.1%}")


def wandb_id(plan: Plan) -> str:
    """Of the run on the dashboard: a resumed run keeps its own."""
    saved = plan.state["arguments"].get("wandb_id") if plan.continues else None
    return saved or uuid.uuid4().hex[:8]


@contextlib.contextmanager
def dashboard(wanted: bool, settings: dict) -> Iterator[Callable[[dict], None]]:
    """A function that logs a row to Weights & Biases, if that is wanted; without an account, to a folder of the run."""
    if not wanted or not is_first():
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs the package wandb: pip install wandb, or leave --wandb out.") from None
    account = None
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        account = netrc.netrc().authenticators("api.wandb.ai")
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") or account else "offline")
    run = wandb.init(project="scnet-minimal", name=Path(settings["output"]).name, dir=settings["output"],
                     config=settings, mode=mode, id=settings["wandb_id"], resume="allow")
    try:
        yield run.log
    finally:
        run.finish()


if __name__ == "__main__":
    run_command(main)
