"""Finding pictures, in class folders or parquet tables, and decoding them.  data.py makes batches of them.

    listing = list_split(locate("toynette"), "train")       # what is there: files or bytes, and the class of each
    pictures = Pictures(listing.items, partial(centre, short=146, crop=128))
    pictures[0]                                             # (3, 128, 128) uint8, decoded now
"""
import io
import os
import shutil
import socket
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2
from tqdm import TqdmWarning, tqdm

KNOWN = {                           # name -> folders under root, best first; a download fetches the first
    "toynette": ["toynette"],
    "imagenette": ["imagenette2-160", "imagenette2-320", "imagenette2"],
    "imagenette-160": ["imagenette2-160"],
    "imagenette-320": ["imagenette2-320"],
    "imagenette-full": ["imagenette2"],
}
ARCHIVES = "https://s3.amazonaws.com/fast-ai-imageclas"     # /<folder>.tgz
SIZES = {"imagenette2-160": "160px", "imagenette2-320": "320px", "imagenette2": "full"}     # torchvision's names
HUB = None                          # address of the Hugging Face hub; None: its own
HUB_SET = dict(repo_id="frgfm/imagenette", repo_type="dataset", revision="refs/convert/parquet")
PATIENCE = 20                       # seconds of silence after which a host is given up
MAX_UNREADABLE = 0.1        # of a split: fewer are skipped with a warning; more, and something else is wrong


class DataError(RuntimeError):
    """The data set is damaged, or could not be fetched."""


# --- finding the pictures ---------------------------------------------------------------------------------

class Listing(NamedTuple):
    items: list[str | bytes]    # paths, or encoded pictures
    folders: list[str]          # the class of each: its folder's name
    classes: list[str]          # all classes, in the order of the labels


def list_split(where: Path, *names: str) -> Listing:
    """A split's pictures: where/name/<class>/*.jpg, or the tables where/name*.parquet."""
    for name in names:
        if (where / name).is_dir():
            return _list_folders(where / name)
        if tables := sorted(where.glob(f"{name}*.parquet")):
            return _list_tables(tables)
    found = ", ".join(sorted(path.name for path in where.iterdir())[:5]) or "nothing"
    raise FileNotFoundError(f"No {' or '.join(names)} folder in {where} (it holds: {found}).\n"
                            "Expected train/<class>/*.jpg and val/<class>/*.jpg.")


def _list_folders(split: Path) -> Listing:
    def is_picture(path: str) -> bool:      # hidden ones are not: .ipynb_checkpoints, the ._name.jpg of macOS
        return datasets.folder.is_image_file(path) and not Path(path).name.startswith(".")

    classes = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    order = {name: i for i, name in enumerate(classes)}
    found = classes and datasets.folder.make_dataset(split, order, is_valid_file=is_picture, allow_empty=True)
    if not found:
        raise FileNotFoundError(f"No pictures in {split}: expected a folder for each class, holding "
                                f"{' '.join(datasets.folder.IMG_EXTENSIONS)}.")
    return Listing([path for path, _ in found], [classes[i] for _, i in found], classes)


def _list_tables(tables: list[Path]) -> Listing:
    with warnings.catch_warnings():         # in a notebook it asks for widgets, for bars that we do not show
        warnings.filterwarnings("ignore", "IProgress not found", TqdmWarning)
        import datasets as hf
    import pyarrow.parquet as pq

    # Read as they are; load_dataset would write them to a cache first.
    table = hf.concatenate_datasets([hf.Dataset(pq.read_table(path)) for path in tables])
    if "image" not in table.column_names or not hasattr(table.features.get("label"), "names"):
        raise ValueError(f"{tables[0]} needs columns image and label (a ClassLabel), has {table.features}.")
    classes = table.features["label"].names
    images = table.cast_column("image", hf.Image(decode=False))["image"]
    items = [image["bytes"] or image["path"] for image in images]
    return Listing(items, [classes[i] for i in table["label"]], classes)


def compare(train: Listing, val: Listing, where: Path) -> list[str]:
    """Raise if the classes of the splits do not fit; return those that validation lacks, which is fine."""
    if empty := sorted(set(train.classes) - set(train.folders)):
        raise ValueError(f"No training pictures of {', '.join(empty)} in {where}: add some or remove it.")
    if unknown := sorted(set(val.folders) - set(train.classes)):
        raise ValueError(f"Validation has {', '.join(unknown)}, which training does not know, in {where}.")
    return [name for name in train.classes if name not in set(val.folders)]


def locate(source: str | Path, root: str | Path | None = None, download: bool = False) -> Path:
    """The folder of a named set or of one's own."""
    if isinstance(source, str) and source in KNOWN:
        return _locate_known(source, root, download)
    where = Path(source).expanduser()
    if where.is_file():
        raise NotADirectoryError(f"{where} is a file. Give the folder that holds train/ and val/.")
    if not where.exists() and str(source) == where.name:    # a single word: more likely a misspelt name
        raise ValueError(f"Unknown data {str(source)!r}: no folder here, and none of {', '.join(KNOWN)}.")
    if not where.exists():
        raise FileNotFoundError(f"{where} does not exist. Give the folder that holds train/ and val/.")
    return where


def _locate_known(name: str, root: str | Path | None, download: bool) -> Path:
    here = [Path(__file__).parents[2], Path.cwd(), *Path.cwd().parents]     # the checkout, or where one works
    roots = [Path(root).expanduser()] if root else [f / "data" for f in here if (f / "data").is_dir()]
    roots = list(dict.fromkeys(roots)) or [Path.cwd() / "data"]
    for where in [r / folder for folder in KNOWN[name] for r in roots]:
        if where.is_dir():
            return where
    root, folder = roots[0], KNOWN[name][0]
    looked = f"{name} is not there: no {' or '.join(KNOWN[name])} in {', '.join(map(str, roots))}."
    if name == "toynette":
        raise FileNotFoundError(f"{looked}\nIt comes with the repository in data/: give that as root, or "
                                f"draw it: python -m scnet_minimal.lab.toynette --out {root / folder}")
    if not download:
        raise FileNotFoundError(
            f"{looked}\nFetch it: load_data({name!r}, download=True), which is "
            f'torchvision.datasets.Imagenette("{root}", size="{SIZES[folder]}", download=True).\n'
            f"By hand: unpack {ARCHIVES}/{folder}.tgz in {root}.")
    return fetch_imagenette(root, folder)


def fetch_imagenette(root: Path, folder: str) -> Path:
    """Download root/folder: the archive (torchvision, its hash checked), or else the hub's parquet files.

    All is done in a hidden folder beside it, and what is whole gets its name at the end: nothing half-finished is ever
    taken for a data set.  DataError, with what to do by hand, if neither can be had.
    """
    scratch, patience, failures = root / f".{folder}.part", socket.getdefaulttimeout(), []
    socket.setdefaulttimeout(PATIENCE)
    try:
        for source, fetch in (("archive", _from_archive), ("hub", _from_hub)):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                os.replace(fetch(scratch, folder), root / folder)
                return root / folder
            except Exception as error:  # noqa: BLE001  whatever it was, the next source may do
                failures.append(f"{source}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    finally:
        socket.setdefaulttimeout(patience)
        shutil.rmtree(scratch, ignore_errors=True)
    raise DataError(f"Imagenette could not be fetched ({'; '.join(failures)}).\nBy hand, with a browser: unpack "
                    f"{ARCHIVES}/{folder}.tgz in {root}, so that {root / folder / 'train'} is there.")


def _from_archive(scratch: Path, folder: str) -> Path:
    datasets.Imagenette(scratch, size=SIZES[folder], download=True)     # one archive holds both splits
    list_split(scratch / folder, "val")
    return scratch / folder


def _from_hub(scratch: Path, folder: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    config = {"full": "full_size"}.get(SIZES[folder], SIZES[folder])
    whole = scratch / folder
    whole.mkdir()
    for name in HfApi(endpoint=HUB).list_repo_files(**HUB_SET):
        if name.startswith(f"{config}/") and name.endswith(".parquet"):
            path = hf_hub_download(filename=name, local_dir=scratch / "hub", endpoint=HUB, **HUB_SET)
            os.replace(path, whole / "-".join(Path(name).parts[1:]))    # 160px/train/0000.parquet: train-0000.parquet
    compare(list_split(whole, "train"), list_split(whole, "validation"), whole)
    return whole


# --- from a file to a picture -----------------------------------------------------------------------------

def _open(item: str | bytes, short: int) -> Image.Image:
    """A path or an encoded picture -> upright 8-bit RGB, its short side at least min(its own, 2 * short)."""
    image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    # A JPEG can be decoded at 1/2, 1/4 or 1/8 in a fraction of the time. Twice the wanted size, as
    # in Pillow's thumbnail(), leaves the resize that follows enough pixels to average.
    image.draft("RGB", (2 * short, 2 * short))
    image = ImageOps.exif_transpose(image)      # phones store a turned picture and a note to turn it back
    if image.mode.startswith("I"):              # 16-bit grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:           # what transparent pixels hide is arbitrary: show paper
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def centre(item: str | bytes, index: int, *, short: int, crop: int) -> Tensor:
    """Short side to `short`, antialiased, then the central square: (3, crop, crop) uint8."""
    image = v2.functional.resize(_open(item, short), [short], antialias=True)
    return v2.functional.pil_to_tensor(v2.functional.center_crop(image, [crop, crop]))


def augmented(item: str | bytes, index: int, *, short: int, transform: v2.Transform, key: tuple) -> Tensor:
    """transform(picture), its random draws a function of `key` and `index` alone: (3, size, size) uint8."""
    image = _open(item, short)
    with torch.random.fork_rng(devices=[]):         # torchvision draws from the global CPU generator
        torch.default_generator.manual_seed(seed_of(*key, index))
        return transform(image)


def seed_of(*key: int) -> int:
    """One seed from several numbers; (seed 0, epoch 1) and (seed 1, epoch 0) have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class Pictures(Dataset):
    """Pictures decoded when they are asked for: pictures[i] is (3, side, side) uint8."""

    def __init__(self, items: list[str | bytes], view: Callable[[str | bytes, int], Tensor],
                 never_empty: bool = False) -> None:
        self.items, self.view, self.never_empty = items, view, never_empty

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Tensor:
        return self.view(self.items[i], i)

    def attempt(self, i: int) -> tuple[Tensor | None, str]:
        """The picture, or None and what is wrong with it."""
        try:
            return self[i], ""
        except Exception as error:  # noqa: BLE001  on a broken file a decoder may raise nearly anything
            name = self.items[i] if isinstance(self.items[i], str) else f"picture {i} of the table"
            return None, f"{name} ({error})"

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, list[str]]:
        """What DataLoader calls: the readable ones (B, 3, side, side) uint8, their indices, the troubles.

        With never_empty, the next readable picture stands in where none of a batch is readable.
        """
        tried = [(i, *self.attempt(i)) for i in indices]
        if self.never_empty and all(picture is None for _, picture, _ in tried):
            others = ((indices[0] + i) % len(self) for i in range(1, len(self)))
            tried += next(([(i, picture, "")] for i in others if (picture := self.attempt(i)[0]) is not None), [])
        good = [picture for _, picture, _ in tried if picture is not None]
        index = torch.tensor([i for i, picture, _ in tried if picture is not None], dtype=torch.int64)
        return torch.stack(good) if good else index, index, [trouble for *_, trouble in tried if trouble]


def report(troubles: list[str], total: int, warn: bool = True) -> None:
    """Raise if too many pictures of a split are unreadable, else warn of them."""
    text = f"{len(troubles)} of {total} pictures are unreadable: {'; '.join(troubles[:3])}"
    text += "; ..." if len(troubles) > 3 else "."
    if len(troubles) > MAX_UNREADABLE * total:
        raise DataError(f"{text}\nMore than {MAX_UNREADABLE:.0%}: is the data set damaged?")
    if warn and troubles:
        warnings.warn(f"{text} They are skipped.", stacklevel=2)


def decode(pictures: Pictures, side: int, threads: int) -> tuple[Tensor, Tensor, list[str]]:
    """The readable pictures (N, 3, side, side) uint8, their indices (N,), and the troubles of the others."""
    images = torch.empty(len(pictures), 3, side, side, dtype=torch.uint8)

    def put(i: int) -> str:
        picture, trouble = pictures.attempt(i)
        if picture is not None:
            images[i] = picture
        return trouble

    with ThreadPoolExecutor(threads) as pool:   # threads will do: Pillow decodes outside of Python's lock
        results = pool.map(put, range(len(pictures)))
        troubles = list(tqdm(results, "decode", len(pictures), leave=False, disable=len(pictures) <= 2000,
                             file=sys.stdout))              # a notebook shows stderr in red
    keep = torch.tensor([i for i, trouble in enumerate(troubles) if not trouble], dtype=torch.int64)
    troubles = [trouble for trouble in troubles if trouble]
    report(troubles, len(pictures))
    return images[keep] if troubles else images, keep, troubles
