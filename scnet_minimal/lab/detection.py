"""Boxes, masks, keypoints, class maps: train SCNet under torchvision's heads, judge it, draw what it finds.

    python -m scnet_minimal.lab.detection toynette --task mask          (--help tells the rest)

    model, about = load("runs/mask-scnet_toy-toynette/best.pt")         # what the command kept
    found = model(pictures)                                             # a dict for each picture

Networks are those of heads.py, pictures and targets of scenes.py, figures of precision.py, pictures with what was found
in them of drawing.py; the loop is engine.Trainer.
"""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import distributed
from .checkpoint import Keeper, check_classes, read_checkpoint, write_torch
from .drawing import drawn, picture_of
from .engine import Task, Trainer, one_cycle, pace
from .heads import TASKS, build, load
from .pictures import seed_of
from .precision import evaluate, need_pycocotools
from .scenes import Scenes, load_scenes
from .trained import trained

__all__ = ["build", "drawn", "evaluate", "load", "task_of"]

# What is taken where the command line says nothing. A folder: the papers' 1x schedule at 800 px, and for class maps
# torchvision's reference; toynette: enough to see that it learns, on two CPU cores.
FOLDER = dict(arch="scnet50", epochs=12, batch_size=16, lr=0.02, size=800, channels=256, trainable=3)
SEGMENT = FOLDER | dict(epochs=30, batch_size=32, size=520, trainable=5)
TOY = dict(arch="scnet_toy", epochs=20, batch_size=8, lr=0.002, size=128, channels=32, trainable=5,
           pictures=(200, 50))
COMMAND = "python -m scnet_minimal.lab.detection"
EXAMPLES = f"""
three worked examples:

  {COMMAND} toynette --task mask --output runs/mask
      A rehearsal on drawn scenes, minutes on a laptop: Mask R-CNN on the small scnet_toy, which begins with the weights
      in data/trained. runs/mask then holds best.pt, last.pt, history.csv, curve.png, args.json and predictions.png, in
      which the upper row is true and the lower one found. Stop it with Ctrl-C, go on with --resume runs/mask.
      Its plain twin, trained alike:  -a resnet_toy

  {COMMAND} /data/coco --task keypoint -a scnet50 --pretrained -b 2 --lr 0.0025
      Keypoint R-CNN on a folder in COCO's layout (train2017/, val2017/, annotations/), with the official ImageNet
      weights, frozen norms and the last three stages learning, on one GPU of 12 GB or more; days.

  torchrun --nproc-per-node 8 -m scnet_minimal.lab.detection /data/coco --task box -a scnet50 --pretrained
      --output runs/coco-box --resume auto -j 32
      The papers' setting: eight GPUs, two pictures on each (-b 16 is the sum), 12 epochs, lr 0.02, a tenth of it after
      8 and 11. To see what came out:  {COMMAND} /data/coco -e --resume runs/coco-box/best.pt

Average precision is pycocotools' (pip install pycocotools). -1 means: no object of that size is there.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog=COMMAND, description=__doc__.split("\n")[0], epilog=EXAMPLES, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="DIR", nargs="?", help="a folder in COCO's layout, or toynette (default)")
    p.add_argument("--task", choices=TASKS, help="box (default): Faster R-CNN; mask: Mask R-CNN; keypoint: Keypoint "
                   "R-CNN; mask+keypoint: both heads; segment: a class for every pixel")
    p.add_argument("-a", "--arch", help="scnet50, scnet101, their v1d, plain twins such as resnet50, scnet_toy, "
                   "resnet_toy (default: scnet50; on toynette scnet_toy)")
    p.add_argument("--weights", metavar="PATH", help="a classifier's weights to begin with: official ones, or a "
                   "checkpoint of this project; none: begin anew (default: for the toy networks data/trained's)")
    p.add_argument("--pretrained", action="store_true", default=None, help="begin with ImageNet's official weights")
    p.add_argument("--trainable", type=int, metavar="N", help="stages that learn, from the last, 0 to 5 (default: 3; "
                   "5 on toynette and for segment)")
    p.add_argument("--head", choices=("fcn", "deeplab"), help="of segment (default: fcn)")
    p.add_argument("--size", type=int, metavar="PX", help="shorter side of the pictures (default: 800; 520 for "
                   "segment; 128 on toynette)")
    p.add_argument("--channels", type=int, metavar="N", help="width of pyramid and heads (default: 256; toynette 32)")
    p.add_argument("--pictures", type=int, nargs=2, metavar="N", help="scenes to draw for training and validation "
                   "(toynette; default: 200 50)")
    p.add_argument("--epochs", type=int, metavar="N", help="epochs in all (default: 12; 30 for segment; 20 on "
                   "toynette)")
    p.add_argument("-b", "--batch-size", type=int, metavar="N", help="pictures of a step, of all processes together "
                   "(default: 16; 32 for segment; 8 on toynette)")
    p.add_argument("--lr", type=float, metavar="LR", help="default: 0.02, for 16 pictures a step; 0.002 on toynette")
    p.add_argument("--amp", action="store_true", default=None, help="mixed precision")
    p.add_argument("--seed", type=int, help="makes a run repeatable (default: drawn, and written to args.json)")
    p.add_argument("-j", "--workers", type=int, default=2, metavar="N", help="data loading workers of each process")
    p.add_argument("-p", "--print-freq", type=int, default=10, metavar="N", help="batches between two looks at loss")
    p.add_argument("--output", metavar="FOLDER", help="where the run goes (default: runs/TASK-ARCH-DATA)")
    p.add_argument("--resume", metavar="PATH", help="go on from this last.pt or its folder, with its settings where "
                   "this line says nothing else; auto: from --output, if there is a checkpoint")
    p.add_argument("-e", "--evaluate", action="store_true", help="evaluate the file that --resume names, and stop")
    p.add_argument("--export", metavar="FILE", help="in the end, write the last weights in half precision to FILE")
    distributed.add_flags(p)
    return p


def main(argv: list[str] | None = None) -> int:
    return distributed.launch(work, parser().parse_args(argv))


def work(args: argparse.Namespace, device: torch.device, place: distributed.Place) -> int:
    """One process of the command."""
    if args.evaluate:
        return judge(args, device, place)
    settings, state = distributed.from_first(lambda: settle(args))
    task, seed = settings["task"], settings["seed"]
    data = scenes(settings, device, place, args.workers)
    if state:
        check_classes(state, data.classes, args.resume)
    torch.manual_seed(seed)
    how = {name: settings[name] for name in ("task", "arch", "size", "channels", "head", "trainable", "frozen")}
    how |= {"classes": len(data.classes), "keypoints": len(data.keypoints) or 17}
    begin = {} if state else {name: settings[name] for name in ("weights", "pretrained")}
    model = build(**how, **begin) if place.local_rank == 0 else None        # weights are fetched once on a machine
    distributed.wait()
    model = (build(**how, **begin) if model is None else model).to(device)
    torch.manual_seed(seed_of(seed, place.rank))            # which proposals are sampled differs between processes
    keeper = Keeper(settings["output"], {"task": task, "arch": settings["arch"], "classes": data.classes, "build": how,
                                         "arguments": settings}, score_of(task))
    distributed.from_first(keeper.open)
    say(f"{data}\n{task} on {settings['arch']}, {place.world} x {device}: {settings['epochs']} epochs, batch "
        f"{settings['batch_size']}, lr {settings['lr']:g}, seed {seed} -> {keeper.folder}")
    if state:
        say(f"going on at epoch {state['epoch'] + 1}, step {state['step']}")

    def tell(row: dict, best: bool) -> None:
        tqdm.write(line_of(row, settings["epochs"], best), file=sys.stdout)
        picture_of(model, data, task, keeper.folder / "predictions.png")

    trainer = Trainer(model, data.train, task_of(data, task, settings["amp"]), *recipe(settings, model),
                      epochs=settings["epochs"], amp=bool(settings["amp"]), keeper=keeper, name=task, on_epoch=tell,
                      print_freq=args.print_freq, quiet=None if distributed.is_first() else True)
    if state:
        trainer.go_on(state)
    try:
        history = trainer.run()
    except KeyboardInterrupt:
        say(f"\nStopped and saved. Go on with\n  {COMMAND} --resume {keeper.folder}")
        return 130
    if args.export and distributed.is_first():
        export(model, keeper.about, history[-1], Path(args.export))
    return 0


# --- what is asked for ----------------------------------------------------------------------------------------------

def settle(args: argparse.Namespace) -> tuple[dict, dict | None]:
    """The settings of the run and the state to go on from.  What the command line says goes before what the
    checkpoint was made with, and that before the defaults."""
    said = {name: value for name, value in vars(args).items() if value is not None}
    task, data = said.get("task", "box"), said.get("data", "toynette")
    arch = said.get("arch", TOY["arch"] if data == "toynette" else FOLDER["arch"])
    output = Path(args.output or f"runs/{task}-{arch}-{Path(data).name}")
    if args.resume == "auto":
        args.resume = str(output) if (output / "last.pt").exists() else None
    state = read_checkpoint(args.resume, args.arch) if args.resume else None
    if state:
        built = state.get("build", {"task": "that of another command"})
        for name in ("task", "channels", "head"):
            if said.get(name, built.get(name)) != built.get(name) or len(built) == 1:
                raise ValueError(f"{args.resume} is a run whose {name} is {built[name]}: go on with that, "
                                 "or start anew in another folder.")
        said = state["arguments"] | said
        here = Path(args.resume)
        output = Path(args.output or (here.parent if here.is_file() else here))
    if (output / "last.pt").exists() and not (state and (output / "last.pt").samefile(last_of(args.resume))):
        raise ValueError(f"{output} holds a run already: go on with it by --resume {output}, "
                         "or name another folder with --output.")
    return settings_of({"task": task, "data": data} | said) | {"output": str(output)}, state


def last_of(path: str) -> Path:
    return Path(path, "last.pt") if Path(path).is_dir() else Path(path)


def settings_of(said: dict) -> dict:
    """All settings, from those that somebody named."""
    usual = TOY if said["data"] == "toynette" else SEGMENT if said["task"] == "segment" else FOLDER
    usual = {"weights": None, "pretrained": False, "head": "fcn", "pictures": (0, 0), "amp": None, "frozen": None,
             "seed": int(torch.randint(2**31, ()))} | usual
    found = {name: said.get(name, usual.get(name)) for name in ("data", "task", *usual)}
    if found["frozen"] is None:                                     # else all of this was settled when the run began
        if not found["weights"] and not found["pretrained"] and found["arch"].endswith("_toy"):
            found["weights"] = str(trained(found["arch"]))
        found["weights"] = None if found["weights"] == "none" else found["weights"]
        found["frozen"] = bool(found["weights"] or found["pretrained"])
        if not found["frozen"] and "trainable" not in said:
            found["trainable"] = 5                                  # nothing is known yet: all must learn
    for name, smallest in dict(epochs=1, batch_size=1, size=32, channels=8, lr=0).items():
        if not found[name] >= smallest:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {smallest}, not {found[name]}.")
    if found["task"] != "segment":
        need_pycocotools()
    return found


def scenes(settings: dict, device: torch.device, place: distributed.Place, workers: int) -> Scenes:
    return load_scenes(settings["data"], settings["task"], size=settings["size"], pictures=settings["pictures"],
                       batch_size=settings["batch_size"], device=device, seed=settings["seed"], workers=workers,
                       shard=(place.rank, place.world))


def recipe(settings: dict, model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[float], float]]:
    """The optimiser and the learning rate.  On toynette AdamW and one cycle, which learn from few pictures; else SGD
    and the detectors' 1x schedule, for any number of epochs: a short rise (500 steps of COCO's 7,330 an epoch), a tenth
    after 2/3 of the epochs and again after 11/12."""
    learning, peak, epochs = [p for p in model.parameters() if p.requires_grad], settings["lr"], settings["epochs"]
    if settings["data"] == "toynette":
        return torch.optim.AdamW(learning, peak, weight_decay=1e-4), one_cycle(peak, epochs)
    drops = 2 / 3 * epochs, 11 / 12 * epochs
    return (torch.optim.SGD(learning, peak, momentum=0.9, weight_decay=1e-4),
            lambda epoch: peak * min(1, 0.001 + 15 * epoch) * 0.1 ** sum(epoch >= drop for drop in drops))


def export(model: nn.Module, about: dict, row: dict, path: Path) -> None:
    """The weights in half precision, how the network is built, and what the epoch gave."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: about[name] for name in ("task", "arch", "classes", "build")}
    write_torch(path, kept | {"row": row, "state_dict": half})
    say(f"exported -> {path}")


# --- the task, judged -----------------------------------------------------------------------------------------------

def score_of(task: str) -> str:
    """The entry of an epoch's row that decides which one was best."""
    return "val_miou" if task == "segment" else f"val_{task.split('+')[0]}_ap"


def task_of(data: Scenes, task: str, amp: bool | None = None) -> Task:
    """What engine.Trainer needs: the sum of the heads' losses, and after each epoch evaluate()."""

    def loss(model: nn.Module, batch: tuple[list[Tensor], list[dict]]) -> tuple[Tensor, int, dict[str, Tensor]]:
        pictures, targets = batch
        losses = model(pictures, targets)
        more = {name.removeprefix("loss_"): value.detach() * len(pictures) for name, value in losses.items()}
        return sum(losses.values()), len(pictures), more if len(more) > 1 else {}

    return Task(loss, lambda model: evaluate(model, data, task, amp))


def judge(args: argparse.Namespace, device: torch.device, place: distributed.Place) -> int:
    """-e: the figures of a file, on the validation pictures."""
    if not args.resume:
        raise ValueError("-e evaluates the file that --resume names: give it.")
    model, found = distributed.from_first(lambda: load(args.resume))
    said = {name: value for name, value in vars(args).items() if value is not None}
    settings = {"data": "toynette", "batch_size": 8, "pictures": TOY["pictures"], "seed": 0}
    settings |= found.get("arguments", {}) | said | {"task": found["task"], "size": found["build"]["size"]}
    data = scenes(settings | {"pictures": (1, settings["pictures"][1])}, device, place, args.workers)
    check_classes(found, data.classes, args.resume)
    figures = evaluate(model.to(device), data, found["task"], bool(args.amp))
    say(f"{found['task']} on {found['arch']}, {len(data.val.scenes):,} pictures of {data.name}:")
    say("\n".join(f"  {name:20} {value:.3f}" for name, value in figures.items()))
    return 0


# --- telling --------------------------------------------------------------------------------------------------------

def say(text: str) -> None:
    if distributed.is_first():
        print(text, flush=True)


def line_of(row: dict, epochs: int, best: bool) -> str:
    figures = ", ".join(f"{name.removeprefix('val_').replace('_', ' ')} {row[name]:.3f}" for name in row
                        if name.endswith(("_ap", "_ap50", "miou", "val_pixels")))
    return (f"epoch {row['epoch'] + 1}/{epochs}: loss {row['train_loss']:.3f}; {figures}; "
            f"{pace(row, epochs)}{' (best)' if best else ''}")


if __name__ == "__main__":
    sys.exit(main())
