"""Do SCNet and its plain twin differ where places matter?  The photographs' networks on other photographs.

    segment     FCN on the network at output stride 8: a class for every pixel
    mask        Mask R-CNN: boxes and masks
    cam         a new classifier on the frozen network, and how much of Grad-CAM's map lies in the objects' masks

All three read a folder in COCO's layout and start from data/trained/photographs_KIND_SEED.pt, so that seeds come in
pairs; cam, which takes seconds, also from all the checkpoints that the study on photographs left.  segment and mask are
the detection command (its last epoch counts, no matter which was best): norms frozen, all stages trained, one learning
rate for both kinds.  A row of the table is one number of one network:

    task, data, kind, seed, epochs, size        what was trained; data is the folder's name
    networks                                    "trained": of data/trained; else the name of the folder of checkpoints
    measure, value, n                           and on how many pictures of the validation split

    python -m scnet_minimal.lab.study transfer DIR --task segment       adds to data/studies/transfer.csv, and resumes
"""
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, functional

from ...fuse import fuse
from ..data.batches import VAL_RESIZE, normalize
from ..detect.coco import CocoFolder
from ..errors import UserError
from ..train.checkpoint import load_exactly, read_checkpoint, read_file
from ..zoo import trained
from .looks import Pictures, batches, box_scores, moved_scores, paired
from .photographs import EPOCHS, KINDS, PIXELS, finished, in_order, run_folder, study_network

PAIR, KEPT_SEEDS = ("scnet", "plain"), 3                # of data/trained
MAPPED = ("scnet", "plain", "r1", "no_gate")            # whose maps are looked at, if there are checkpoints
TRANSFER = ("task", "data", "networks", "kind", "seed", "epochs", "size")   # of a row: what makes two runs the same
SCHEDULES = {"segment": {"epochs": 8, "size": 180}, "mask": {"epochs": 6, "size": 128},
             "cam": {"epochs": 0, "size": PIXELS}}
FLAGS = {"segment": ["-b", "4", "--lr", "0.02"], "mask": ["-b", "4", "--lr", "0.01", "--channels", "64"]}
PENALTY = 1e-3          # of the new classifier's weights, squared


def transfer_jobs(task: str, folder: Path, epochs: int | None, size: int | None,
                  networks: Path | None = None) -> list[dict]:
    """Pair by pair.  networks, for cam: a folder of checkpoints, of which every finished one of MAPPED is looked at."""
    given = {"epochs": epochs, "size": size} if task != "cam" else {}
    settings = SCHEDULES[task] | {name: value for name, value in given.items() if value is not None}
    which = [(kind, seed) for seed in range(KEPT_SEEDS) for kind in PAIR]
    if networks:
        which = [(kind, seed) for kind, seed in in_order()
                 if kind in MAPPED and finished(networks, photographs_run(kind, seed))]
    source = networks.resolve().name if networks else "trained"
    return [{"task": task, "data": folder.name, "networks": source, "kind": kind, "seed": seed} | settings
            for kind, seed in which]


def photographs_run(kind: str, seed: int) -> dict:
    """Of the study on photographs, with its usual setting."""
    return {"kind": kind, "seed": seed, "epochs": EPOCHS, "size": PIXELS}


def transfer_once(job: dict, folder: Path, runs: Path, where: dict, train: Callable[[list[str]], int],
                  networks: Path | None = None) -> list[dict]:
    """The rows of one network.  An interrupted training resumes from its last epoch.

    train: the detection command, detection.main.  networks: as in transfer_jobs().
    """
    measured = look_at_masks(job, folder, networks) if job["task"] == "cam" else train_on(job, folder, runs, train)
    return [job | {"measure": name, "value": f"{value:.5f}", "n": n} | where for name, value, n in measured]


def train_on(job: dict, folder: Path, runs: Path, train: Callable[[list[str]], int]) -> list[tuple[str, float, int]]:
    """The detection command, with what it prints in log.txt of the run's folder."""
    run = runs / "_".join(str(job[name]) for name in TRANSFER)
    run.mkdir(parents=True, exist_ok=True)
    line = [str(folder), "--task", job["task"], "-a", KINDS[job["kind"]][1], "--trainable", "5",
            "--weights", str(trained(f"photographs_{job['kind']}", job["seed"])), "--seed", str(job["seed"]),
            "--epochs", str(job["epochs"]), "--size", str(job["size"]), *FLAGS[job["task"]], "-j", "0",
            "--output", str(run), "--resume", "auto"]
    with (run / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if code := train(line):
            raise UserError(f"{run} ended with code {code}: {run / 'log.txt'} says why.")
    last = read_checkpoint(run)["history"][-1]
    n = len(CocoFolder(folder, "val", job["task"]))
    return [(name.removeprefix("val_"), value, n) for name, value in last.items() if name.startswith("val_")]


# --- Grad-CAM in masks ------------------------------------------------------------------------------------------------

def look_at_masks(job: dict, folder: Path, networks: Path | None) -> list[tuple[str, float, int]]:
    """The new classifier's accuracy, and looks.box_scores() and moved_scores() with masks for boxes."""
    kind, seed = job["kind"], job["seed"]
    if networks:
        path = run_folder(networks, photographs_run(kind, seed)) / "last.pt"
    else:
        path = trained(f"photographs_{kind}", seed)
    content = read_file(path)
    net = study_network(kind, seed, len(content["classes"]))
    load_exactly(net, content, path)
    net = fuse(net.eval())
    learn, test = (pictures_with_masks(folder, split, job["size"]) for split in ("train", "val"))
    net.fc = new_classifier(features(net, learn.x), learn.y, len(learn.classes))
    right = (net.fc(features(net, test.x)).argmax(1) == test.y).float().mean().item()
    scores = box_scores(net, test) + moved_scores(net, test)
    return [("top1", right, len(test.y))] + [(f"{measure}, {name}", value, n) for _, name, measure, value, n in scores]


def pictures_with_masks(folder: Path, split: str, size: int) -> Pictures:
    """As training saw photographs: the central square, enlarged by VAL_RESIZE.  Class and mask are the largest
    object's; the order is the classes'."""
    scenes, short, found = CocoFolder(folder, split, "mask"), round(size * VAL_RESIZE), []
    for image, target in (scenes[i] for i in range(len(scenes))):
        if len(target["masks"]):
            largest = target["masks"].sum((1, 2)).argmax()
            mask = functional.resize(target["masks"][largest][None], [short], InterpolationMode.NEAREST_EXACT)
            image = functional.resize(image, [short], antialias=True)
            label = int(target["labels"][largest]) - 1
            found.append((label, *(functional.center_crop(x, [size]) for x in (image, mask))))
    found.sort(key=lambda one: one[0])
    return Pictures(torch.stack([image for _, image, _ in found]), torch.tensor([label for label, *_ in found]),
                    torch.cat([mask for *_, mask in found]).bool(), scenes.names)


@torch.no_grad()
def features(net: nn.Module, x: Tensor) -> Tensor:
    """What the classifier sees of pictures (N, 3, H, W) uint8: (N, C)."""
    return torch.cat([net.avgpool(net.forward_features(normalize(x[part]))).flatten(1) for part in batches(len(x))])


def new_classifier(x: Tensor, y: Tensor, classes: int) -> nn.Linear:
    """Softmax regression, from zero to its minimum, which is unique."""
    linear = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(linear(x), y) + PENALTY * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return linear


# --- reading the rows -------------------------------------------------------------------------------------------------

def transferred(rows: Sequence[dict], task: str, kind: str, measure: str) -> dict[str, float]:
    """{seed: value}, a share of 0 to 1.  The rows must be of one folder and setting."""
    return {row["seed"]: float(row["value"]) for row in rows
            if (row["task"], row["kind"], row["measure"]) == (task, kind, measure)}


def transfer_table(rows: Sequence[dict]) -> str:
    """For each training, kind and measure: the mean over seeds beside the plain twin's, and the difference of pairs
    with its 95 % interval."""
    lines = []
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("task", "data", "networks", "epochs", "size")), []).append(row)
    for (task, data, networks, epochs, size), here in groups.items():
        for kind in KINDS:
            if kind == "plain":
                continue
            found = []
            for measure in dict.fromkeys(row["measure"] for row in here):
                own, plain = (transferred(here, task, one, measure) for one in (kind, "plain"))
                if len(seeds := [seed for seed in own if seed in plain]) > 1:
                    first, second = (100 * sum(one[seed] for seed in seeds) / len(seeds) for one in (own, plain))
                    mean, low, high = (100 * value for value in paired(own, plain))
                    found.append(f"{measure:34} {len(seeds):5}  {first:10.2f}  {second:10.2f}  {mean:+10.2f}  "
                                 f"{low:+.2f} to {high:+.2f}")
            if found:
                lines += ["", f"{task} on {data}, {epochs} epochs at {size} px, networks {networks}; in %; "
                              f"{KINDS[kind][0]} − {KINDS['plain'][0]}", "",
                          f"{'':34} {'pairs':>5}  {'first':>10}  {'plain twin':>10}  difference  95 % interval", *found]
    return "\n".join(lines[1:]) or "no runs yet"
