"""Train or evaluate a classifier on a folder in ImageNet's layout, on Imagenette or on Toynette.

    python -m scnet_minimal.lab.train_imagenet toynette -a scnet_toy        (--help tells the rest)

The flags are those of the PyTorch ImageNet example, with their meaning, and some more. This file reads them and says
what happens; training is engine.fit(), checkpoints are checkpoint.Keeper, processes distributed.launch().
"""
import argparse
import contextlib
import netrc
import os
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from ..scnet import SOURCES
from . import distributed, nets
from .checkpoint import Keeper, check_classes, load_whole, read_checkpoint, read_file
from .data import Data, load_data
from .engine import evaluate, fit, pace
from .pictures import KNOWN, locate, seed_of

# What --recipe stands for. paper: the authors' (their issue #5), for the networks of the paper; v1d's is not stated.
RECIPES = {
    "paper": dict(epochs=100, batch_size=256, lr=0.1, momentum=0.9, weight_decay=1e-4, label_smoothing=0.1, crop=224,
                  scale=(0.08, 1.0)),
    "quick": dict(epochs=20, batch_size=64, lr=0.1, momentum=0.9, weight_decay=5e-4, label_smoothing=0.1, crop=128,
                  scale=(0.35, 1.0)),
}
TOY = dict(epochs=40, batch_size=32, lr=0.2, crop=64, scale=(0.5, 1.0))     # quick on Toynette: small drawings
ARCH, DATA = "scnet50", "imagenet"
COMMAND = "python -m scnet_minimal.lab.train_imagenet"
EXAMPLES = f"""
three worked examples:

  {COMMAND} toynette -a scnet_toy --output runs/toy
      A rehearsal on the embedded drawings, a minute or two on a laptop. runs/toy then holds best.pt (the weights of
      the best epoch), last.pt (all that going on takes), history.csv, curve.png and args.json. Stop it with Ctrl-C
      and go on with --resume runs/toy: weights, momentum, learning rate and pictures come as if nothing had happened.

  {COMMAND} imagenette -a scnet50 --epochs 5 --amp
      Imagenette at 128 px in five epochs; the first time it fetches 99 MB into data/. The plain twin of scnet50 is
      -a resnet50, and any other classifier of torchvision trains in the same way.

  torchrun --nproc-per-node 8 --max-restarts 3 -m scnet_minimal.lab.train_imagenet \\
          /data/imagenet -a scnet50 --amp -j 64 --resume auto --output runs/scnet50
      ImageNet by the authors' recipe on eight GPUs of one machine. When a process dies, all start again and go on
      from the last checkpoint: --resume auto. -b counts the pictures of a step on all GPUs of a machine.
      To see what came out:  {COMMAND} /data/imagenet -e --resume runs/scnet50/best.pt

recipes (a flag on the command line goes before its recipe):

  paper  100 epochs, momentum 0.9, lr 0.1, a tenth of it after every 30 epochs, batch 256, weight decay 1e-4, label
         smoothing 0.1, 224 px. The authors' for SCNet-50 and -101; what the v1d networks had is not stated.
  quick  one cycle of the learning rate, Nesterov, weight decay 5e-4 but not on norms and biases, label smoothing 0.1.
         20 epochs of 128 px in batches of 64, --lr the peak for such batches (other batch sizes scale it);
         on toynette 40 epochs of 64 px in batches of 32, --lr 0.2.
  Without --recipe it is quick for imagenette and toynette, and paper for a folder.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0], epilog=EXAMPLES, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="DIR", nargs="?",
                   help=f"a folder that holds train/CLASS/ and val/CLASS/, or {', '.join(KNOWN)} (default: imagenet)")
    p.add_argument("-a", "--arch", help="scnet50 (default), scnet101, scnet50_v1d, scnet101_v1d, their plain twins "
                   "(resnet50, resnet101, resnet50_v1d), scnet_toy, resnet_toy, or any classifier of torchvision")
    p.add_argument("--recipe", choices=list(RECIPES), help="see below")
    p.add_argument("--output", metavar="FOLDER", help="where the run goes (default: runs/ARCH-DATA)")
    p.add_argument("--crop", type=int, metavar="PX", help="side of the pictures, in training and evaluation, where "
                   "the short side is first brought to 256/224 of it (default: the recipe's)")
    p.add_argument("--amp", action="store_true", default=None, help="mixed precision: bfloat16, or float16 with loss "
                   "scaling on a GPU that has no bfloat16")
    p.add_argument("--compile", action="store_true", help="torch.compile the network")
    p.add_argument("--wandb", action="store_true", help="log to Weights & Biases too (pip install wandb); offline "
                   "unless WANDB_API_KEY is set or you are logged in")
    p.add_argument("--label-smoothing", type=float, metavar="X", help="default: the recipe's")

    g = p.add_argument_group("flags of the PyTorch ImageNet example")
    g.add_argument("-j", "--workers", type=int, default=4, metavar="N", help="data loading workers of this machine "
                   "(default: 4)")
    g.add_argument("--epochs", type=int, metavar="N", help="epochs in all (default: the recipe's)")
    g.add_argument("--start-epoch", type=int, default=0, metavar="N", help="count epochs from N, the schedule too")
    g.add_argument("-b", "--batch-size", type=int, metavar="N", help="pictures of a step on this machine, over all "
                   "of its processes (default: the recipe's)")
    g.add_argument("--lr", "--learning-rate", type=float, metavar="LR", help="default: the recipe's")
    g.add_argument("--momentum", type=float, metavar="M", help="default: the recipe's, 0.9")
    g.add_argument("--weight-decay", "--wd", type=float, metavar="W", help="default: the recipe's")
    g.add_argument("-p", "--print-freq", type=int, default=10, metavar="N", help="batches between two looks at loss "
                   "and top-1 (default: 10)")
    g.add_argument("--resume", metavar="PATH", help="go on from this last.pt or its folder, with its settings where "
                   "this line says nothing else; auto: from --output, if there is a checkpoint")
    g.add_argument("-e", "--evaluate", action="store_true", help="evaluate what --resume or --pretrained names on "
                   "the validation pictures, and stop")
    g.add_argument("--pretrained", action="store_true", help="begin with ImageNet weights: the authors' official "
                   "ones for ours, torchvision's DEFAULT for its own")
    g.add_argument("--seed", type=int, help="makes a run repeatable (default: drawn, and written to args.json)")
    distributed.add_flags(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.line = shlex.join(sys.argv[1:] if argv is None else argv)
    return distributed.launch(work, args)


def work(args: argparse.Namespace, device: torch.device, place: distributed.Place) -> int:
    """One process of the command."""
    if args.evaluate:
        return say_errors(args, device, place)
    settings, state = distributed.from_first(lambda: settle(args))
    data = load(settings, device, place, args.workers)
    if state:
        check_classes(state, data.classes, args.resume)
    torch.manual_seed(settings["seed"])
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = args.seed is not None, args.seed is None
    model = network(settings["arch"], len(data.classes), args.pretrained and not state)
    if args.compile:
        model.compile()
    if place.rank:              # layers such as dropout differ between processes; the weights are the first one's
        torch.manual_seed(seed_of(settings["seed"], place.rank))
    keeper = Keeper(settings["output"], {"arch": settings["arch"], "classes": data.classes, "arguments": settings})
    distributed.from_first(keeper.open)
    say(f"{data}\n{settings['arch']} on {place.world} x {device}, recipe {settings['recipe']}: {settings['epochs']} "
        f"epochs, batch {data.train.batch_size}, lr {settings['lr']:g}, seed {settings['seed']} -> {keeper.folder}")
    if state:
        say(f"going on at epoch {state['epoch'] + 1}, step {state['step']}")
    chosen = {name: settings[name] for name in ("lr", "momentum", "weight_decay", "label_smoothing", "recipe")}
    with board(args.wandb, settings) as log:
        def tell(row: dict, best: bool) -> None:
            tqdm.write(line_of(row, settings["epochs"], best), file=sys.stdout)
            log(row)

        try:
            history = fit(model, data, epochs=settings["epochs"], resume=state, start_epoch=args.start_epoch,
                          name=settings["arch"], amp=bool(settings["amp"]), keeper=keeper, on_epoch=tell,
                          print_freq=args.print_freq, quiet=None if distributed.is_first() else True, **chosen)
        except KeyboardInterrupt:
            say(f"\nStopped and saved. Go on with\n  {go_on(args.line, keeper.folder)}")
            return 130
    best = max(history, key=lambda epoch: epoch.val_top1, default=None)
    if best:
        say(f"best: epoch {best.epoch + 1}, top-1 {best.val_top1:.2%} -> {keeper.folder / 'best.pt'}")
    return 0


# --- what is asked for ----------------------------------------------------------------------------------------------

def settle(args: argparse.Namespace) -> tuple[dict, dict | None]:
    """The settings of the run and the state to go on from.  What the command line says goes before what the
    checkpoint was made with, and that before the recipe."""
    said = {name: value for name, value in vars(args).items() if value is not None}
    auto = args.resume == "auto"
    if auto:
        folder = Path(args.output or default_output(said.get("arch", ARCH), said.get("data", DATA)))
        args.resume = str(folder) if (folder / "last.pt").exists() else None
    state = read_checkpoint(args.resume, args.arch) if args.resume else None
    said = {"data": DATA, "arch": ARCH, **(state["arguments"] if state else {}), **said}
    recipe = said.get("recipe") or ("quick" if said["data"] in KNOWN else "paper")
    settings = {"seed": int(torch.randint(2**31, ())), "amp": None, **RECIPES[recipe],
                **(TOY if recipe == "quick" and said["data"] == "toynette" else {})}
    settings = {name: said.get(name, settings.get(name)) for name in ("data", "arch", *settings)} | {"recipe": recipe}
    check(settings)

    here = Path(args.resume) if args.resume else None
    here = here.parent if here and here.is_file() else here
    output = Path(args.output or here or default_output(settings["arch"], settings["data"]))
    anew = not here or output.resolve() != here.resolve()
    if anew and any((output / name).exists() for name in ("last.pt", "best.pt")[:1 if auto else 2]):
        raise ValueError(f"{output} holds a run already: go on with it by --resume {output}, "
                         "or name another folder with --output.")
    wandb_id = None if anew else state["arguments"].get("wandb_id")         # going on is the same run there, too
    return settings | {"output": str(output), "wandb_id": wandb_id or uuid.uuid4().hex[:8]}, state


def default_output(arch: str, data: str) -> str:
    return f"runs/{arch}-{Path(data).name}"


def check(settings: dict) -> None:
    """ValueError for a number that cannot be meant."""
    for name, smallest in dict(epochs=1, batch_size=1, crop=8, lr=0, momentum=0, weight_decay=0).items():
        if not settings[name] >= smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, not {settings[name]}.")
    nets.build(settings["arch"], 2) if settings["arch"] not in nets.names() else None     # its error names close ones


def go_on(line: str, folder: Path) -> str:
    """The command that continues this one."""
    words, kept = shlex.split(line), []
    for i, word in enumerate(words):
        if not word.startswith("--resume") and (i == 0 or words[i - 1] != "--resume"):
            kept.append(word)
    start = "torchrun (with its options) -m " if torch.distributed.is_torchelastic_launched() else "python -m "
    return start + shlex.join(["scnet_minimal.lab.train_imagenet", *kept, "--resume", str(folder)])


# --- data, network --------------------------------------------------------------------------------------------------

def load(settings: dict, device: torch.device, place: distributed.Place, workers: int, **options) -> Data:
    """The data of this process.  Imagenette is fetched where it is missing, by one process of each machine."""
    if place.local_rank == 0:
        locate(settings["data"], download=True)
    distributed.wait()
    return load_data(settings["data"], size=settings["crop"], device=device, seed=settings["seed"],
                     scale=tuple(settings["scale"]), shard=(place.rank, place.world),
                     batch_size=settings["batch_size"] * place.world // place.local_world,
                     workers=-(-workers // place.local_world), **options)


def network(arch: str, classes: int, pretrained: bool) -> nn.Module:
    """A new network; pretrained: with ImageNet's weights, and a new head where its classes are not ImageNet's 1,000.

    ValueError if there are no such weights, or they cannot be had.
    """
    if not pretrained:
        return nets.build(arch, classes)
    try:
        if arch in nets.OURS:
            if arch not in SOURCES:
                raise ValueError(f"No ImageNet weights of {arch} exist: leave --pretrained out, or take "
                                 f"{', '.join(SOURCES)} or a network of torchvision.")
            return nets.build(arch, classes, pretrained=True)
        state = torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(check_hash=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"The weights of {arch} could not be fetched: {error}\n"
                         "Check the network, or put the file into torch.hub's cache by hand.") from None
    model = nets.build(arch, classes)
    own = model.state_dict()
    model.load_state_dict(own | {name: t for name, t in state.items() if name in own and t.shape == own[name].shape})
    return model


# --- evaluation -----------------------------------------------------------------------------------------------------

class Choose(nn.Module):
    """A network's logits of some classes only: ImageNet's 1,000 -> Imagenette's ten."""

    def __init__(self, network: nn.Module, index: list[int]) -> None:
        super().__init__()
        self.network, self.index = network, index

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, self.index]


def say_errors(args: argparse.Namespace, device: torch.device, place: distributed.Place) -> int:
    """-e: top-1 and top-5 error on the validation pictures."""
    if not args.resume and not args.pretrained:
        raise ValueError("-e evaluates what --resume FILE or --pretrained names: give one of them.")
    found = distributed.from_first(lambda: read_file(args.resume)) if args.resume else {}
    saved = found.get("arguments", {})
    settings = {"seed": 0, "scale": (1, 1), "data": args.data or saved.get("data", DATA),
                "arch": args.arch or found.get("arch", ARCH), "crop": args.crop or saved.get("crop", 224),
                "batch_size": args.batch_size or 256}
    data = load(settings, device, place, args.workers, memory_limit=0, only_val=True)
    if args.resume:
        check_classes(found, data.classes, args.resume)
        model = network(settings["arch"], len(data.classes), False)
        load_whole(model, found, args.resume)
    elif len(data.classes) == 1000:
        model = network(settings["arch"], 1000, True)
    else:
        names = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
        if strange := [name for name in data.classes if name not in names]:
            raise ValueError(f"--pretrained knows ImageNet's classes, and {strange[0]!r} of {args.data} is none of "
                             "them: train a new head first.")
        model = Choose(network(settings["arch"], 1000, True), [names.index(name) for name in data.classes])
    errors = evaluate(model.to(device), data.val, bool(args.amp))
    say(f"{settings['arch']} on {len(data.val.labels):,} pictures of {data.name} at {settings['crop']} px: "
        f"top-1 error {1 - errors['top1']:.2%}, top-5 error {1 - errors['top5']:.2%}, loss {errors['loss']:.3f}")
    return 0


# --- telling --------------------------------------------------------------------------------------------------------

def say(text: str) -> None:
    if distributed.is_first():
        print(text, flush=True)


def line_of(row: dict, epochs: int, best: bool) -> str:
    return (f"epoch {row['epoch'] + 1}/{epochs}: train loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}; "
            f"val loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.1%}, top-5 {row['val_top5']:.1%}; "
            f"{pace(row, epochs)}{' (best)' if best else ''}")


@contextlib.contextmanager
def board(wanted: bool, settings: dict) -> Iterator[Callable[[dict], None]]:
    """A function that logs a row to Weights & Biases, if that is wanted; without an account, to a folder of the run."""
    if not wanted or not distributed.is_first():
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb needs the package wandb: pip install wandb, or leave --wandb out.") from None
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
    sys.exit(main())
