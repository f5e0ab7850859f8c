"""Boxes, masks, keypoints, class maps: train SCNet under torchvision's heads, evaluate it, draw its predictions.

    python -m scnet_minimal.lab.detection toynette --task mask          (--help has worked examples)

This file reads the flags; models, data, metrics and drawings are in detect/, the loop and what both training commands
share in train/.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .checks import FLAG, Number, Rule, check_fields, check_writable, filled, is_number
from .command_line import run_command
from .data.download import NAMED_SETS, locate
from .data.sampler import seed_of
from .detect.coco import need_pycocotools
from .detect.drawing import save_predictions
from .detect.metrics import evaluate_detector
from .detect.models import BUILD, TASKS, build_detector, load_detector
from .detect.scenes import Scenes, load_scenes
from .errors import UserError
from .train import command
from .train.checkpoint import Keeper, check_classes, write_torch
from .train.loop import Task, Trainer, one_cycle
from .train.processes import Place, first_on_machine, from_first, is_first
from .zoo import trained

# What is taken if the command line is silent. A folder: the papers' 1x schedule at 800 px, and for class maps
# torchvision's reference; toynette: enough to see that it learns, on two CPU cores.
_FOLDER = dict(arch="scnet50", epochs=12, batch_size=16, lr=0.02, size=800, channels=256, trainable=3)
_SEGMENT = _FOLDER | dict(epochs=30, batch_size=32, size=520, trainable=5)
_TOYNETTE = dict(arch="scnet_toy", epochs=20, batch_size=8, lr=0.002, size=128, channels=32, trainable=5,
                 pictures=(200, 50))
_SETTINGS = BUILD | {
    "pictures": Rule(lambda v: isinstance(v, (list, tuple)) and len(v) == 2 and all(map(is_number, v)), "two numbers"),
    "weights": Rule(lambda v: isinstance(v, str), "a text", optional=True), "pretrained": FLAG}
_MODULE = "scnet_minimal.lab.detection"
COMMAND = f"python -m {_MODULE}"
EXAMPLES = f"""
three worked examples:

  {COMMAND} toynette --task mask --output runs/mask
      A rehearsal on drawn scenes, minutes on a laptop: Mask R-CNN on the small scnet_toy, which starts from the weights
      in data/trained. runs/mask then holds best.pt, last.pt, history.csv, curve.png, args.json and predictions.png,
      targets in the upper row, predictions in the lower. Stop it with Ctrl-C, resume it with --resume runs/mask. Its
      plain twin, trained alike:  -a resnet_toy

  {COMMAND} /data/coco --task keypoint -a scnet50 --pretrained -b 2 --lr 0.0025
      Keypoint R-CNN on a folder in COCO's layout (train2017/, val2017/, annotations/), from the official ImageNet
      weights, with frozen norms and the last three stages trained, on one GPU of 12 GB or more; days.

  torchrun --nproc-per-node 8 -m {_MODULE} /data/coco --task box -a scnet50 --pretrained \\
          --output runs/coco-box --resume auto -j 32
      The papers' setting: eight GPUs of one machine, two images on each (-b 16 counts those of the machine), 12 epochs,
      lr 0.02, a tenth of it after 8 and 11. On several machines, lr has to grow with the sum of their batches.
      To evaluate the result:  {COMMAND} /data/coco -e --resume runs/coco-box/best.pt

Average precision is pycocotools' (pip install pycocotools). -1 means that no object has that size.
"""


def parser() -> argparse.ArgumentParser:
    p = command.new_parser(COMMAND, __doc__.split("\n")[0], EXAMPLES)
    p.add_argument("data", metavar="DIR", nargs="?", type=filled,
                   help="a folder in COCO's layout, pets (downloaded, 810 MB), or toynette (default)")
    p.add_argument("--task", choices=TASKS, help="box (default): Faster R-CNN; mask: Mask R-CNN; keypoint: Keypoint "
                   "R-CNN; mask+keypoint: both heads; segment: a class for every pixel")
    p.add_argument("-a", "--arch", help="scnet50, scnet101, their v1d, plain twins such as resnet50, scnet_toy, "
                   "resnet_toy (default: scnet50; on toynette scnet_toy)")
    p.add_argument("--weights", type=filled, metavar="PATH",
                   help="a classifier's weights to start from: official ones, or a "
                   "checkpoint of this project; none: random weights (default: for the toy networks data/trained's)")
    p.add_argument("--pretrained", action="store_true", default=None, help="start from ImageNet weights: the official "
                   "ones, or torchvision's V1 for its own networks")
    p.add_argument("--trainable", type=_SETTINGS["trainable"], metavar="N",
                   help="how many stages to train, from the last, 0 to 5 "
                   "(default: 3; 5 on toynette and for segment)")
    p.add_argument("--head", choices=("fcn", "deeplab"), help="for segment (default: fcn)")
    p.add_argument("--size", type=_SETTINGS["size"], metavar="PX",
                   help="shorter side of the images (default: 800; 520 for segment; "
                   "128 on toynette)")
    p.add_argument("--channels", type=_SETTINGS["channels"], metavar="N",
                   help="width of pyramid and heads (default: 256; toynette 32)")
    p.add_argument("--pictures", type=Number(int, 1, 10**6), nargs=2, metavar="N",
                   help="scenes to draw for training and validation "
                   "(toynette; default: 200 50)")
    p.add_argument("--export", type=filled, metavar="FILE",
                   help="at the end, write the last weights to FILE, in half precision")
    command.add_common_flags(p, output="runs/TASK-ARCH-DATA", epochs="12; 30 for segment; 20 on toynette",
                             batch_size="16; 32 for segment; 8 on toynette",
                             lr="0.02, for 16 images per step; 0.002 on toynette")
    return p


def main(argv: list[str] | None = None) -> int:
    return command.start(parser(), work, argv)


def work(args: argparse.Namespace, device: torch.device, place: Place) -> int:
    """One process of the command."""
    if args.evaluate:
        return _evaluate(args, device, place)
    plan = from_first(lambda: command.settle(args, _complete, _default_output))
    settings, task = plan.settings, plan.settings["task"]
    data = _load(settings, device, place, args.workers)
    if plan.state:
        check_classes(plan.state, data.classes, plan.source)
    build = {name: settings[name] for name in ("task", "arch", "size", "channels", "head", "trainable", "frozen")}
    build |= {"classes": len(data.classes), "keypoints": len(data.keypoints) or 17}
    weights = {} if plan.state else {name: settings[name] for name in ("weights", "pretrained")}

    def make() -> nn.Module:
        command.seed_everything(settings)
        return build_detector(**build, **weights)

    model = first_on_machine(make, place).to(device)
    torch.manual_seed(seed_of(settings["seed"], place.rank))        # each process samples proposals of its own
    keeper = Keeper(settings["output"], {"task": task, "arch": settings["arch"], "classes": data.classes,
                                         "build": build, "arguments": settings}, _score(task))
    from_first(keeper.open)
    batch_size = place.total_batch(settings["batch_size"])
    command.print_start(data, f"{task} on {settings['arch']}", plan, batch_size, place, device)

    def report(row: dict, best: bool) -> None:
        command.print_epoch(row, settings["epochs"], best, _results(row))
        save_predictions(model, data, task, keeper.folder / "predictions.png")

    trainer = Trainer(model, data.train, detection_task(data, task, settings["amp"]), *_recipe(settings, model),
                      epochs=settings["epochs"], amp=bool(settings["amp"]), sync_norms=bool(settings["sync_bn"]),
                      keeper=keeper, name=task, on_epoch=report, print_freq=args.print_freq, quiet=None)
    if plan.state:
        trainer.resume(plan.state)
    history = command.train_until_done(trainer.run, keeper, args, _MODULE)
    if history is None:
        return 130
    if args.export and is_first():
        _export(model, keeper.about, history[-1], Path(args.export))
    return 0


def detection_task(data: Scenes, task: str, amp: bool | None = None) -> Task:
    """What Trainer needs: the sum of the heads' losses, and evaluate_detector() after each epoch."""

    def loss(model: nn.Module, batch: tuple[list[Tensor], list[dict]]) -> tuple[Tensor, int, dict[str, Tensor]]:
        images, targets = batch
        losses = model(images, targets)
        more = {name.removeprefix("loss_"): value.detach() * len(images) for name, value in losses.items()}
        return sum(losses.values()), len(images), more if len(more) > 1 else {}

    return Task(loss, lambda model: evaluate_detector(model, data, task, amp))


# --- settings -------------------------------------------------------------------------------------------------------

def _default_output(given: dict) -> str:
    data = given.get("data", "toynette")
    arch = given.get("arch", (_TOYNETTE if data == "toynette" else _FOLDER)["arch"])
    return f"runs/{given.get('task', 'box')}-{arch}-{Path(data).name}"


def _complete(given: dict, state: dict | None) -> dict:
    """All settings, checked; see command.settle()."""
    given = {"data": "toynette", "task": "box"} | given
    command.check_given(given, _SETTINGS)
    if given.get("export"):
        check_writable(given["export"])
    if state:
        build = state.get("build")
        if not isinstance(build, dict):
            raise UserError("That is a checkpoint of the classification command: it has no task. Name another.")
        for name in ("task", "channels", "head"):
            if given[name] != build[name]:
                raise UserError(f"The checkpoint's {name} is {build[name]}, not {given[name]}: resume it with that, "
                                "or start a new run in another folder.")
    usual = _TOYNETTE if given["data"] == "toynette" else _SEGMENT if given["task"] == "segment" else _FOLDER
    usual = dict(weights=None, pretrained=False, head="fcn", pictures=(0, 0), amp=None, sync_bn=None,
                 frozen=None) | usual
    settings = {name: given.get(name, usual.get(name)) for name in ("data", "task", *usual)}
    if settings["task"] != "segment" or settings["data"] != "toynette":
        need_pycocotools()
    if settings["frozen"] is None:                          # a new run; a checkpoint's settings have all of this
        if not settings["weights"] and not settings["pretrained"] and settings["arch"].endswith("_toy"):
            settings["weights"] = str(trained(settings["arch"]))
        settings["weights"] = None if settings["weights"] == "none" else settings["weights"]
        settings["frozen"] = bool(settings["weights"] or settings["pretrained"])
        if not settings["frozen"] and "trainable" not in given:
            settings["trainable"] = 5                       # random weights: all must be trained
        with torch.device("meta"):                          # what cannot be built is refused before any data is read
            build_detector(settings["task"], settings["arch"], trainable=settings["trainable"], head=settings["head"])
    return settings


def _load(settings: dict, device: torch.device, place: Place, workers: int, **options) -> Scenes:
    if settings["data"] in NAMED_SETS and settings["data"] != "toynette":
        first_on_machine(lambda: locate(settings["data"], download=True), place)
    return load_scenes(settings["data"], settings["task"], size=settings["size"], images=settings["pictures"],
                       batch_size=place.total_batch(settings["batch_size"]), device=device, seed=settings["seed"],
                       workers=place.own_workers(workers), shard=place.shard, **options)


def _recipe(settings: dict, model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[float], float]]:
    """Optimizer and learning rate.  On toynette AdamW and one cycle, which learn from few images; else SGD and the
    detectors' 1x schedule, for any number of epochs: a short warm-up (500 steps of COCO's 7,330 an epoch), a tenth
    after 2/3 of the epochs and again after 11/12."""
    parameters, peak, epochs = [p for p in model.parameters() if p.requires_grad], settings["lr"], settings["epochs"]
    if settings["data"] == "toynette":
        return torch.optim.AdamW(parameters, peak, weight_decay=1e-4), one_cycle(peak, epochs)
    drops = 2 / 3 * epochs, 11 / 12 * epochs
    fused = parameters[0].device.type == "cuda" or None             # None: torch's choice
    return (torch.optim.SGD(parameters, peak, momentum=0.9, weight_decay=1e-4, fused=fused),
            lambda epoch: peak * min(1, 0.001 + 15 * epoch) * 0.1 ** sum(epoch >= drop for drop in drops))


# --- results --------------------------------------------------------------------------------------------------------

def _score(task: str) -> str:
    """The entry of an epoch's row that decides which one was best."""
    return "val_miou" if task == "segment" else f"val_{task.split('+')[0]}_ap"


def _results(row: dict) -> str:
    values = ", ".join(f"{name.removeprefix('val_').replace('_', ' ')} {row[name]:.3f}" for name in row
                       if name.endswith(("_ap", "_ap50", "miou", "val_pixels")))
    return f"loss {row['train_loss']:.3f}; {values}"


def _export(model: nn.Module, about: dict, row: dict, path: Path) -> None:
    """The weights in half precision, how the model is built, and the last epoch's row."""
    half = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    kept = {name: about[name] for name in ("task", "arch", "classes", "build")}
    write_torch(path, kept | {"row": row, "state_dict": half})
    command.print_first(f"exported -> {path}")


def _evaluate(args: argparse.Namespace, device: torch.device, place: Place) -> int:
    """-e: the results of a file on the validation images."""
    if not args.resume:
        raise UserError("-e evaluates the file that --resume names: add --resume FILE.")
    model, content = first_on_machine(lambda: load_detector(args.resume), place)
    saved = content.get("arguments") or {}
    check_fields(saved, {}, f"arguments of {args.resume}")
    for name in ("task", "arch", "size", "channels", "head"):
        asked, build = getattr(args, name), content["build"]
        if asked not in (None, build[name]):
            raise UserError(f"{args.resume} has {name} {build[name]}, not {asked}: leave that flag out, or name "
                            "another file.")
    settings = {"data": "toynette", "batch_size": 8, "pictures": _TOYNETTE["pictures"]} | saved
    settings |= {name: value for name in settings if (value := getattr(args, name, None)) is not None}
    settings |= {"task": content["task"], "size": content["build"]["size"], "seed": 0}
    command.check_given(settings, _SETTINGS)
    data = _load(settings, device, place, args.workers, only_val=True)
    check_classes(content, data.classes, args.resume)
    results = evaluate_detector(model.to(device), data, content["task"], bool(args.amp))
    command.print_first(f"{content['task']} on {content['arch']}, {len(data.val.scenes):,} images of {data.name}:")
    command.print_first("\n".join(f"  {name:20} {value:.3f}" for name, value in results.items()))
    return 0


if __name__ == "__main__":
    run_command(main)
