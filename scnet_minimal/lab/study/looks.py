"""What the networks of the study on photographs look at: gates replaced, Grad-CAM in boxes, effective fields.

    gates    SCNet's accuracy when its gates give way to some that know less of the picture: GATES
    boxes    how much of Grad-CAM's map for the true class lies in the object's box, beside maps that know less
             or more
    moved    the same, of maps moved to where their cells' fields are centred
    field    the effective receptive field of each stage, before training and after

A row of the table is one number of one network, and value its measure:

    look, kind, seed, epochs, size      what was looked at, and whose run of photographs.csv it was
    stage                               1 to 4, or all
    treatment                           of GATES; whose map, see box_scores(); of a field "untrained" or "trained"
    measure                             gates: accuracy;  boxes, moved: energy, points, area (shares);  field: half,
                                        nine tenths, above (sides in px), far (the share from more than FAR px away)
    value, n                            and over how many pictures

    python -m scnet_minimal.lab.study looks             makes data/studies/looks.csv, and resumes it
"""
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode, functional

from ...fuse import fuse
from ...scnet import SelfCalibration
from ..data.batches import READABLE_NAMES, VAL_RESIZE, normalize
from ..data.images import ImageList, center_view, decode_all, list_split
from ..errors import UserError
from ..train.checkpoint import load_exactly, read_checkpoint
from .compare import Interval, t_interval
from .explain import effective_field, energy_inside, field_side, grad_cam, moved, points_at
from .photographs import KINDS, finished, in_order, run_folder, study_network
from .timing import settled

LOOKS = {"gates": ("scnet",), "boxes": ("scnet", "plain"), "moved": ("scnet", "plain", "r1", "no_gate"),
         "field": ("scnet", "r1", "no_gate", "plain")}                              # of kinds
LOOK = ("look", "kind", "seed", "epochs", "size")       # of a row: what makes two looks the same
EVERY, AT_ONCE = 2, 250         # which pictures of the split are looked at: every second; and in a batch
SIDE = 64                       # px, of a picture of Tiny ImageNet as it is stored: what its boxes count in
FIELDS, POSITIONS, FAR = 8, 2, 40   # pictures and positions in each that a field is averaged over; px
STAGE_NUMBERS = (1, 2, 3, 4)

Numbers = list[tuple[str, str, str, float, int]]        # stage, treatment, measure, value, n


class Pictures(NamedTuple):
    """Of a validation split, EVERY second picture as training sees it: the central square, enlarged by VAL_RESIZE."""
    x: Tensor               # (N, 3, size, size) uint8
    y: Tensor               # (N,)
    boxes: Tensor           # (N, size, size) bool: the box of each picture's object
    classes: list[str]


@lru_cache(maxsize=1)
def read_pictures(folder: str, size: int) -> Pictures:
    """Decoded once in each process.  UserError if the folder's tables have no column of boxes."""
    short = round(size * VAL_RESIZE)
    listing = list_split(Path(folder), "val", "validation")
    tables = sorted(Path(folder).glob("validation*.parquet")) or sorted(Path(folder).glob("val*.parquet"))
    if not tables or any("box" not in pq.read_schema(table).names for table in tables):
        raise UserError(f"{folder} has no validation*.parquet with a column box: take tiny-imagenet-50.")
    edges = torch.tensor([box for table in tables for box in pq.read_table(table, columns=["box"])["box"].to_pylist()])
    chosen = torch.arange(0, len(edges), EVERY)
    images = ImageList([listing.items[i] for i in chosen], partial(center_view, short=short, crop=size))
    x, readable, _ = decode_all(images, size, 1)
    pixel = torch.arange(SIDE)
    left, top, right, bottom = edges[chosen[readable], :, None].unbind(1)       # (N, 1) each; the last pixel counts
    rows, columns = ((first <= pixel) & (pixel <= last) for first, last in ((top, bottom), (left, right)))
    boxes = (rows[:, :, None] & columns[:, None, :]).byte()             # (N, SIDE, SIDE)
    boxes = functional.center_crop(functional.resize(boxes, [short, short], InterpolationMode.NEAREST_EXACT), [size])
    number = {name: i for i, name in enumerate(listing.classes)}
    return Pictures(x, torch.tensor([number[name] for name in listing.folders])[chosen[readable]], boxes.bool(),
                    [READABLE_NAMES.get(name, name) for name in listing.classes])


def batches(n: int) -> Iterator[slice]:
    return (slice(i, min(i + AT_ONCE, n)) for i in range(0, n, AT_ONCE))


def other_picture(maps: Tensor) -> Tensor:
    """(N, ...): for each picture what belongs to one half the split away.  Splits are in the order of their classes, so
    that is one of another class."""
    return maps.roll(len(maps) // 2, 0)


# --- gates ------------------------------------------------------------------------------------------------------------

GATES = {       # what a stage's gates (N, C, H, W) are replaced by
    "own": lambda gates: gates,
    "mean over pictures": lambda gates: gates.mean(0, keepdim=True).expand_as(gates),
    "mean over places": lambda gates: gates.mean((2, 3), keepdim=True).expand_as(gates),
    "mean over both": lambda gates: gates.mean((0, 2, 3), keepdim=True).expand_as(gates),
    "another picture's": other_picture,
}


@torch.inference_mode()
def gate_accuracies(net: nn.Module, pictures: Pictures) -> Numbers:
    """Of a network in eval mode with one block a stage: with each of GATES in one stage or in all four.

    What replaces a gate is made of those that the untouched network has, so where all four are replaced, no gate
    depends on what another one has changed.
    """
    stages = [getattr(net, f"layer{stage}") for stage in STAGE_NUMBERS]
    modules = [next(m.gate for m in stage.modules() if isinstance(m, SelfCalibration)) for stage in stages]
    before, gates, answers = _untouched(net, stages, modules, pictures.x)
    numbers = [("all", "own", (answers == pictures.y).float().mean().item())]
    for name, replace in list(GATES.items())[1:]:
        given = {module: replace(gate) for module, gate in zip(modules, gates)}
        for i, module in enumerate(modules):
            one = {module: given[module]}
            numbers.append((str(STAGE_NUMBERS[i]), name, _accuracy(net, stages[i:], before[i], one, pictures.y)))
        numbers.append(("all", name, _accuracy(net, stages, before[0], given, pictures.y)))
    return [(stage, name, "accuracy", value, len(pictures.y)) for stage, name, value in numbers]


def _untouched(net: nn.Module, stages: list, modules: list, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The map before each stage, the gates in it, and the answers, of all pictures."""
    found: dict[nn.Module, list[Tensor]] = {module: [] for module in (*stages, *modules)}
    hooks = [stage.register_forward_pre_hook(lambda stage, inputs: found[stage].append(inputs[0])) for stage in stages]
    hooks += [m.register_forward_hook(lambda module, inputs, gate: found[module].append(gate)) for m in modules]
    answers = torch.cat([net(normalize(x[part])).argmax(1) for part in batches(len(x))])
    for hook in hooks:
        hook.remove()
    return [torch.cat(found[stage]) for stage in stages], [torch.cat(found[module]) for module in modules], answers


def _accuracy(net: nn.Module, stages: list, before: Tensor, given: dict[nn.Module, Tensor], y: Tensor) -> float:
    """Through these stages and the head; in the modules of `given`, these gates instead of their own."""
    right, part = 0, slice(0)
    hooks = [module.register_forward_hook(lambda module, inputs, gate: given[module][part]) for module in given]
    for part in batches(len(y)):                                        # the hooks see it
        x = before[part]
        for stage in stages:
            x = stage(x)
        right += int((net.fc(net.avgpool(x).flatten(1)).argmax(1) == y[part]).sum())
    for hook in hooks:
        hook.remove()
    return right / len(y)


# --- boxes ------------------------------------------------------------------------------------------------------------

def box_scores(net: nn.Module, pictures: Pictures) -> Numbers:
    """Grad-CAM of the last stage for the true class, scored by the box; and beside it, of the same resolution:

    another picture's map, the mean of all maps, and an even one, whose energy is the box's share of the picture: these
    know nothing of the picture.  The box itself, averaged over the map's cells; and of all cells the one with most of
    its energy in the box, which no map exceeds.
    """
    x, _, boxes, _ = pictures
    cams = true_class_maps(net, pictures)
    with torch.no_grad():
        cells = net.forward_features(normalize(x[:1])).shape[2:]
    enlarge = partial(F.interpolate, size=x.shape[2:], mode="bilinear")         # as grad_cam does
    alone = enlarge(torch.eye(cells.numel()).view(-1, 1, *cells)).flatten(1)    # every cell: (h * w, size * size)
    best = (boxes.flatten(1).float() @ (alone / alone.sum(1, keepdim=True)).T).amax(1)
    seen = enlarge(F.adaptive_avg_pool2d(boxes[:, None].float(), cells))[:, 0]
    maps = {"own": cams, "another picture's": other_picture(cams), "mean map": cams.mean(0).expand_as(cams),
            "box itself": seen}
    numbers = [("even", "energy", boxes.float().mean().item(), len(boxes)),
               ("best cell", "energy", best.mean().item(), len(best))]
    return [("4", *number) for number in numbers + map_scores(maps, boxes)]


def moved_scores(net: nn.Module, pictures: Pictures) -> Numbers:
    """box_scores() of maps moved() to where the fields of their cells are centred."""
    with torch.no_grad():
        cells = net.forward_features(normalize(pictures.x[:1])).shape[2:]
    cams = moved(true_class_maps(net, pictures), pictures.x.shape[3] // cells[1])
    maps = {"own": cams, "another picture's": other_picture(cams), "mean map": cams.mean(0).expand_as(cams)}
    return [("4", f"{name}, moved", *number) for name, *number in map_scores(maps, pictures.boxes)]


def true_class_maps(net: nn.Module, pictures: Pictures) -> Tensor:
    """Grad-CAM of the last stage for the true class, (N, size, size)."""
    parts = batches(len(pictures.x))
    return torch.cat([grad_cam(net, "layer4", normalize(pictures.x[part]), pictures.y[part]) for part in parts])


def map_scores(maps: dict[str, Tensor], boxes: Tensor) -> list[tuple[str, str, float, int]]:
    """Name, measure, value, n."""
    numbers = []
    for name, map in maps.items():
        energy = energy_inside(map, boxes)
        some = energy.isfinite()                                                # of an empty map there is none
        numbers += [(name, "energy", energy[some].mean().item(), int(some.sum())),
                    (name, "points", points_at(map, boxes)[some].float().mean().item(), int(some.sum()))]
        if name in ("own", "box itself"):                                       # another picture's is just as large
            numbers.append((name, "area", (map[some] > 0.5).float().mean().item(), int(some.sum())))
    return numbers


# --- field ------------------------------------------------------------------------------------------------------------

def field_sizes(untrained: nn.Module, trained: nn.Module, pictures: Pictures) -> Numbers:
    """Of each stage.  A field is larger than half a picture, so each is continued by its mirror images, three pictures
    wide and high; the untrained network gets its norms' statistics first, and learns nothing."""
    some = pictures.x[::max(1, len(pictures.x) // FIELDS)][:FIELDS]
    wide = torch.cat([some.flip(3), some, some.flip(3)], 3)
    wide = normalize(torch.cat([wide.flip(2), wide, wide.flip(2)], 2))
    untrained = settled(untrained, normalize(pictures.x[::max(1, len(pictures.x) // AT_ONCE)])).eval()
    numbers = []
    for state, net in (("untrained", fuse(untrained)), ("trained", trained)):
        for stage in STAGE_NUMBERS:
            field = effective_field(net, f"layer{stage}", wide, draws=POSITIONS)
            inner = len(field) // 2 - FAR
            far = max(0.0, 1 - field[inner:-inner, inner:-inner].double().sum().item()) if inner > 0 else 0.0
            found = {"half": field_side(field), "nine tenths": field_side(field, 0.9), "above": side_above(field),
                     "far": far}
            numbers += [(str(stage), state, measure, value, len(some)) for measure, value in found.items()]
    return numbers


def side_above(field: Tensor) -> float:
    """The size of a field as in Luo et al. 2016: the root of the number of pixels to which the response is above 4.55 %
    of the strongest.  (The field holds squared responses.)"""
    return (field > 0.0455 ** 2 * field.max()).sum().item() ** 0.5


# --- the record -------------------------------------------------------------------------------------------------------

def look_jobs(runs: Path, epochs: int, size: int) -> list[dict]:
    """Every look at every network of the study that has been trained to its end, in the study's order."""
    jobs = []
    for kind, seed in in_order():
        run = {"kind": kind, "seed": seed, "epochs": epochs, "size": size}
        looks = [look for look, kinds in LOOKS.items() if kind in kinds]
        if looks and finished(runs, run):
            jobs += [{"look": look} | run for look in looks]
    return jobs


def look_once(job: dict, folder: str, runs: Path, where: dict) -> list[dict]:
    """The rows of one look at one network."""
    pictures = read_pictures(folder, job["size"])
    path = run_folder(runs, job)
    untrained, net = (study_network(job["kind"], job["seed"], len(pictures.classes)) for _ in range(2))
    load_exactly(net, read_checkpoint(path, job["kind"], pictures.classes), path / "last.pt")
    net = fuse(net.eval())                              # the same function, a third faster
    numbers = {"gates": gate_accuracies, "boxes": box_scores, "moved": moved_scores,
               "field": partial(field_sizes, untrained)}[job["look"]]
    return [{**job, "stage": stage, "treatment": treatment, "measure": measure, "value": f"{value:.5f}", "n": n}
            | where for stage, treatment, measure, value, n in numbers(net, pictures)]


# --- reading the rows -------------------------------------------------------------------------------------------------

def looked(rows: Sequence[dict], kind: str, measure: str, treatment: str, stage: str | int = 4) -> dict[int, float]:
    """{seed: value}."""
    asked = {"kind": kind, "measure": measure, "treatment": treatment, "stage": str(stage)}
    return {int(row["seed"]): float(row["value"]) for row in sorted(rows, key=lambda row: int(row["seed"]))
            if all(row[name] == value for name, value in asked.items())}


def paired(first: dict[int, float], second: dict[int, float]) -> Interval:
    """The first minus the second on the seeds that both have: mean and 95 % interval for new seeds."""
    return t_interval([first[seed] - second[seed] for seed in first if seed in second])


def looks_table(rows: Sequence[dict]) -> str:
    """For each setting: the mean over seeds of every number, by stage, and the half width of its 95 % interval."""
    lines, columns = [], [*map(str, STAGE_NUMBERS), "all"]
    for where in dict.fromkeys((row["epochs"], row["size"]) for row in rows):
        here = [row for row in rows if (row["epochs"], row["size"]) == where]
        lines += ["", f"runs of {where[0]} epochs at {where[1]} px; shares in %, sides in px", "",
                  f"{'':67}  n " + "".join(f"{stage:>15}" for stage in columns)]
        groups = dict.fromkeys((row["look"], row["kind"], row["measure"], row["treatment"]) for row in here)
        for look, kind, measure, name in sorted(groups, key=lambda group: list(LOOKS).index(group[0])):
            by_stage = {stage: list(looked(here, kind, measure, name, stage).values()) for stage in columns}
            unit = 1 if measure in ("half", "nine tenths", "above") else 100
            cells = [f"{unit * one.mean:8.2f} ±{unit * (one.high - one.mean):5.2f}" if one else "" for one in
                     (t_interval(values) if len(values) > 1 else None for values in by_stage.values())]
            lines.append(f"{look + ', ' + KINDS[kind][0] + ', ' + measure + ', ' + name:67} "
                         f"{max(map(len, by_stage.values())):2} " + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines[1:]) or "no looks yet"
