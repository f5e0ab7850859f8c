"""How many images a second come from disk, by the number of workers, beside torchvision's usual training loader."""
import statistics
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ..data.batches import MEAN, STD, Streamed
from ..data.images import ImageList, center_view, list_split
from ..data.sampler import EpochSampler
from ..device import cores, synchronize
from ..errors import UserError
from .timing import interleaved, ratio

SCALE = (0.08, 1.0)     # share of an image that a crop shows: ImageNet's usual, torchvision's default
MOST = 1000             # images in a run: more say nothing more


def measure_loaders(folder: Path, size: int, batch: int, rounds: int, device: torch.device) -> tuple[str, list[dict]]:
    """What was read, in a line, and a row for 0, 1, 2, 4 ... workers: workers, images_per_s and torchvisions (of every
    round), ratio (ours over theirs, the median over rounds).

    Both deliver the same: batches (batch, 3, size, size) of random crops, mirrored half the time, normalized, on the
    device.  A run is an epoch over the same images of train/, in another order; the runs of a row take turns, after
    one of each that starts the workers and brings the files into memory.
    """
    if not (folder / "train").is_dir():
        raise UserError(f"{folder} has no train/CLASS/ folders of image files, which this needs.")
    items = list_split(folder, "train").items
    chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(0))[:MOST].tolist()
    sizes = []
    for i in chosen[:100]:
        with Image.open(items[i]) as image:
            sizes.append((*image.size, Path(items[i]).stat().st_size))
    width, height, weight = (statistics.median(column) for column in zip(*sizes))
    what = (f"{len(chosen)} images of {folder}, in the median {width:.0f} x {height:.0f} px and "
            f"{weight / 1000:.0f} kB, in batches of {batch} crops of {size} px")
    counts = sorted({0, *(2**i for i in range(cores().bit_length())), cores()})
    return what, [_row(folder, [items[i] for i in chosen], chosen, workers, size, batch, rounds, device)
                  for workers in counts]


def _row(folder: Path, items: list[str], chosen: list[int], workers: int, size: int, batch: int, rounds: int,
         device: torch.device) -> dict[str, Any]:
    labels, sampler = torch.zeros(len(items), dtype=torch.int64, device=device), EpochSampler(len(items), batch, seed=0)
    ours = Streamed(ImageList(items, center_view), labels, sampler, size, SCALE, workers)
    view = transforms.Compose([transforms.RandomResizedCrop(size, SCALE), transforms.RandomHorizontalFlip(),
                               transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    theirs = DataLoader(Subset(ImageFolder(str(folder / "train"), view), chosen), batch, shuffle=True,
                        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda")

    def read(batches: Any) -> None:
        for x, _ in batches:
            x.to(device, non_blocking=True)

    runs = {"ours": lambda: read(ours), "theirs": lambda: read(theirs)}
    for run in runs.values():
        run()
    times = interleaved(runs, rounds, lambda: synchronize(device))
    per_second = {name: [1000 * len(items) / ms for ms in all_ms] for name, all_ms in times.items()}
    return dict(workers=workers, images_per_s=per_second["ours"], torchvisions=per_second["theirs"],
                ratio=ratio(times["theirs"], times["ours"]))


def loader_table(rows: list[dict]) -> str:
    lines = [f"{'workers':>7} {'images/s':>9} {'(middle half)':17} {'torchvision':>11} {'ratio':>6}"]
    for row in rows:
        low, middle, high = statistics.quantiles(row["images_per_s"], n=4, method="inclusive")
        half = f"({low:.0f} to {high:.0f})"
        lines.append(f"{row['workers']:7} {middle:9.0f} {half:17} {statistics.median(row['torchvisions']):11.0f} "
                     f"{row['ratio']:5.2f}x")
    return "\n".join(lines)
