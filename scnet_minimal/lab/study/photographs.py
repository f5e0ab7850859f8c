"""Does the block help on photographs?  Small networks that differ in one thing, on 50 classes of ImageNet at 64 px.

    scnet, plain     scnet_toy and its plain twin
    r1               SCNet that pools nothing: as many weights, no wider look
    no_gate          K3 and K4 alone: neither gate nor wide look, and K2's weights are gone
    added            the gate is added to K3's map instead of multiplied with it
    plain_se         the plain twin with squeeze-and-excitation: as many parameters as SCNet within half a percent

Eight seeds of each.  Runs of one seed see the same photographs in the same order, cropped and mirrored alike, and start
from the same weights wherever their tensors have one name and one shape: so they are compared in pairs (compare.py).  A
row of the table keeps which photographs of the validation split were right, one bit each.

    python -m scnet_minimal.lab.study photographs           makes data/studies/photographs.csv, and resumes it
"""
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import SqueezeExcitation

from ...scnet import SCBottleneck, SelfCalibration
from ..data import Data, load_data
from ..train import fit, predict, top1
from ..train.checkpoint import Keeper, read_checkpoint
from ..zoo import create_model
from .compare import Interval, both_interval, findable, picture_interval, t_interval

PIXELS, BATCH, EPOCHS, LR = 64, 64, 4, 0.1    # side; photographs a step; passes; the peak of one cycle
SEEDS = 8                                   # of every kind
RUN = ("kind", "seed", "epochs", "size")    # of a row: what makes two runs the same run
ABOUT = ("epochs", "size", "classes", "train", "val")       # of a row: what runs that are compared have in common
COMPARED = (("scnet", "plain"), ("scnet", "r1"), ("scnet", "no_gate"), ("scnet", "added"), ("scnet", "plain_se"),
            ("plain_se", "plain"))          # the first is the question; the others ask for its cause


# --- the networks -----------------------------------------------------------------------------------------------------

class NoReach(SCBottleneck):
    """SCNet's block with pooling_r=1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, pooling_r=1)


class Ungated(SCBottleneck):
    """SCNet's block whose calibrated half is K3 and K4 in series."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scconv.__class__ = _Series
        del self.scconv.k2, self.scconv.gate


class _Series(SelfCalibration):
    def forward(self, x: Tensor) -> Tensor:
        return self.k4(self.k3(x))


class GateAdded(SCBottleneck):
    """SCNet's block with K3(x) + gate in place of K3(x) * gate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scconv.__class__ = _Sum


class _Sum(SelfCalibration):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x + F.interpolate(self.k2(x), size=x.shape[2:]))
        return self.k4(self.k3(x) + gate)


class Squeezed(Bottleneck):
    """ResNet's block with squeeze-and-excitation after the norm of its 3x3, squeezed to a sixteenth of the channels."""

    def __init__(self, inplanes, planes, *args, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        self.bn2 = nn.Sequential(self.bn2, SqueezeExcitation(planes, max(1, planes // 16)))


KINDS = {
    "scnet": ("SCNet", "scnet_toy", {}), "plain": ("plain twin", "resnet_toy", {}),
    "r1": ("SCNet, r = 1", "scnet_toy", {"block": NoReach}),
    "no_gate": ("SCNet without gate and K₂", "scnet_toy", {"block": Ungated}),
    "added": ("SCNet, gate added", "scnet_toy", {"block": GateAdded}),
    "plain_se": ("plain twin with SE", "resnet_toy", {"block": Squeezed}),
}       # name in the table -> label, network of the zoo, what is changed in it


def study_network(kind: str, seed: int, classes: int) -> nn.Module:
    """A network with the seed's weights: all kinds share those whose names and shapes agree.  torch's generator stays
    as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shared = {}
        for arch in ("scnet_toy", "resnet_toy"):
            shared |= create_model(arch, classes).state_dict()
        _, arch, changes = KINDS[kind]
        model = create_model(arch, classes, **changes)
    own = model.state_dict()
    model.load_state_dict(own | {name: shared[name] for name in own
                                 if name in shared and shared[name].shape == own[name].shape})
    return model


# --- one run of the record --------------------------------------------------------------------------------------------

def in_order() -> Iterator[tuple[str, int]]:
    """(kind, seed) of all runs, seed by seed: whatever ran first is balanced."""
    return ((kind, seed) for seed in range(SEEDS) for kind in KINDS)


@lru_cache(maxsize=1)
def _photographs(folder: str, size: int, device: str) -> Data:
    """Decoded once in each process: the pictures are the same for every seed."""
    return load_data(folder, size=size, batch_size=BATCH, device=device, workers=1)


def run_folder(runs: Path, job: dict) -> Path:
    """Where a run keeps its checkpoints."""
    return runs / f"{job['kind']}_{job['seed']}_{job['epochs']}x{job['size']}"


def finished(runs: Path, job: dict) -> bool:
    """Whether this run has been trained to its end."""
    folder = run_folder(runs, job)
    return (folder / "last.pt").is_file() and read_checkpoint(folder)["epoch"] >= job["epochs"]


def nothing_finished(runs: Path, epochs: int, size: int) -> str:
    """What to tell a user whose folder of checkpoints has none to look at."""
    return (f"{runs} holds no finished run of {epochs} epochs at {size} px. Train: python -m scnet_minimal.lab.study "
            f"photographs --epochs {epochs} --size {size} --runs {runs} --out {runs}.csv (a new table: what a table "
            "has is not trained again).")


def train_kind(job: dict, folder: str, runs: Path, device: str = "cpu") -> dict:
    """Train job["kind"] with job["seed"] for job["epochs"] at job["size"] px, and the row of it.

    A checkpoint after every epoch in run_folder(): an interrupted run resumes where it was.
    """
    data = _photographs(folder, job["size"], device)
    data.train.sampler.seed = job["seed"]
    model = study_network(job["kind"], job["seed"], len(data.classes))
    keeper = Keeper(run_folder(runs, job), {"arch": job["kind"], "classes": data.classes, "arguments": job})
    keeper.open()
    begun = (keeper.folder / "last.pt").is_file()
    history = fit(model, data, epochs=job["epochs"], lr=LR, keeper=keeper, quiet=True,
                  resume=read_checkpoint(keeper.folder, job["kind"], data.classes) if begun else None)
    logits, labels = predict(model, data.val)
    five = (logits.topk(min(5, len(data.classes))).indices == labels[:, None]).any(1)
    measures = ("train_loss", "train_top1", "val_loss", "val_top1")
    return {
        **job, "classes": len(data.classes), "train": len(data.train.labels), "val": len(labels),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": f"{sum(h['seconds'] for h in history):.0f}",
        "top1": f"{top1(logits, labels):.4f}", "top5": f"{five.sum().item() / len(labels):.4f}",
        "val_loss": f"{F.cross_entropy(logits, labels).item():.4f}",
        "history": " ".join("/".join(f"{h[name]:.3f}" for name in measures) for h in history),
        "right": pack(logits.argmax(1) == labels)}


# --- reading the rows -------------------------------------------------------------------------------------------------

def pack(right: Tensor) -> str:
    """Booleans (N,) as hexadecimal digits, eight to a byte."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpack(row: dict) -> np.ndarray:
    """Which photographs of the validation split a row's network got right, (N,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8), count=int(row["val"])).astype(bool)


class Comparison(NamedTuple):
    """Two kinds on the seeds that both have; shares, 0 to 1."""
    kinds: tuple[str, str]
    differences: list[float]    # of each pair, first minus second
    seeds: Interval             # for new seeds on these photographs
    pictures: Interval          # for new photographs and these networks
    both: Interval
    findable: float             # what so many pairs would find 4 times in 5


def comparisons(rows: Sequence[dict]) -> list[Comparison]:
    """COMPARED, as far as two pairs or more have run."""
    right, found = right_by_kind(rows), []
    for kinds in COMPARED:
        seeds = [seed for seed in right[kinds[0]] if seed in right[kinds[1]]]
        if len(seeds) > 1:
            first, second = (np.stack([right[kind][seed] for seed in seeds]) for kind in kinds)
            d = (first.mean(1) - second.mean(1)).tolist()
            by_picture = picture_interval(first, second)
            found.append(Comparison(kinds, d, t_interval(d), by_picture, both_interval(first, second, by_picture),
                                    findable(d)))
    return found


def photographs_table(rows: Sequence[dict]) -> str:
    """For each setting in the table: accuracy by kind, and the differences of pairs with their intervals."""
    lines = []
    for where in dict.fromkeys(tuple(row[name] for name in ABOUT) for row in rows):
        here = [row for row in rows if tuple(row[name] for name in ABOUT) == where]
        epochs, size, classes, train, val = where
        lines += ["", f"{classes} classes, {train} + {val} photographs of {size} px, {epochs} epochs; top-1 in %", "",
                  f"{'':26} {'n':>2}  parameters   mean    min    max  top-5   loss"]
        for kind, (label, *_) in KINDS.items():
            if own := [row for row in here if row["kind"] == kind]:
                one, five, loss = (np.array([float(row[name]) for row in own]) for name in ("top1", "top5", "val_loss"))
                values = "  ".join(f"{100 * v:5.2f}" for v in (one.mean(), one.min(), one.max(), five.mean()))
                lines.append(f"{label:26} {len(own):2}  {int(own[0]['parameters']):10,}  {values}  {loss.mean():.3f}")
        lines += ["", f"{'differences, in points':42} {'n':>2}   mean  {'new seeds':>14}  {'new pictures':>14}  "
                      f"{'both':>14}  findable"]
        for one in comparisons(here):
            name = " − ".join(KINDS[kind][0] for kind in one.kinds)
            spans = "  ".join(f"{100 * low:+5.2f} to {100 * high:+5.2f}"
                              for _, low, high in (one.seeds, one.pictures, one.both))
            lines.append(f"{name:42} {len(one.differences):2}  {100 * one.seeds.mean:+5.2f}  {spans}  "
                         f"{100 * one.findable:8.2f}")
    return "\n".join(lines[1:]) or "no runs yet"


def right_by_kind(rows: Sequence[dict]) -> dict[str, dict[int, np.ndarray]]:
    """{kind: {seed: (N,) bool}} in the order of KINDS."""
    return {kind: {int(row["seed"]): unpack(row) for row in sorted(rows, key=lambda row: int(row["seed"]))
                   if row["kind"] == kind} for kind in KINDS}
