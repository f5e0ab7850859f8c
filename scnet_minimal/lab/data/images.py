"""Listing images, in class folders or parquet tables, and decoding them.  batches.py makes batches of them.

    listing = list_split(locate("toynette"), "train")       # files or bytes, and the class of each
    images = ImageList(listing.items, partial(center_view, short=146, crop=128))
    images[0]                                               # (3, 128, 128) uint8, decoded now
"""
import io
import math
import os
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import folder
from torchvision.transforms.v2 import functional
from tqdm import TqdmWarning, tqdm

from ..checks import is_file, shown
from ..errors import DataError, FileError, MissingFileError, UserError, user_errors

RATIO = (3 / 4, 4 / 3)  # width : height of a random crop, torchvision's default
MAX_UNREADABLE = 0.1    # of a split: fewer are skipped with a warning; more, and something else is wrong


# --- finding the images ---------------------------------------------------------------------------------------------

class Listing(NamedTuple):
    items: list[str | bytes]    # paths, or encoded images
    folders: list[str]          # the class of each: its folder's name
    classes: list[str]          # all classes, in the order of the labels


def list_split(root: Path, *names: str) -> Listing:
    """The images of a split: root/name/<class>/*.jpg, or the tables root/name*.parquet; the first name that is there.

    UserError if there are none, saying what is there instead.
    """
    with user_errors(OSError):
        for name in names:
            if (root / name).is_dir():
                return _list_folders(root / name)
            if tables := sorted(root.glob(f"{name}*.parquet")):
                return _list_tables(tables)
        found = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise MissingFileError(f"No {' or '.join(names)} folder in {root} (it holds: {found}).\n"
                           "Expected train/<class>/*.jpg and val/<class>/*.jpg.")


def _list_folders(split: Path) -> Listing:
    classes = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [(path, name) for name in classes for path in _images_below(split / name)]
    if not found:
        raise MissingFileError(f"No images in {split}: expected a folder for each class, holding "
                               f"{' '.join(folder.IMG_EXTENSIONS)}.")
    return Listing([path for path, _ in found], [name for _, name in found], classes)


def _images_below(top: Path) -> list[str]:
    """Image files, in torchvision's order.  Linked folders count, each folder once: a link may lead back up.

    Hidden files are none: .ipynb_checkpoints, the ._name.jpg of macOS.  FIFOs and devices neither, whatever their name.
    """
    found, seen, todo = [], set(), [str(top)]
    while todo:
        here = todo.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    todo.append(entry.path)
                elif folder.is_image_file(entry.name) and not entry.name.startswith(".") and is_file(entry):
                    found.append((here, entry.path))
    return [path for _, path in sorted(found)]


def _list_tables(tables: list[Path]) -> Listing:
    with warnings.catch_warnings():         # in a notebook it asks for widgets, for progress bars that we do not show
        warnings.filterwarnings("ignore", "IProgress not found", TqdmWarning)
        import datasets as hf
    import pyarrow.parquet as pq

    first, expected = tables[0], "needs columns image (encoded images) and label (a ClassLabel)"
    if odd := next((path for path in tables if not path.is_file()), None):
        raise FileError(f"{odd} is no file.")
    try:                                    # read directly; load_dataset would copy them to a cache first
        table = hf.concatenate_datasets([hf.Dataset(pq.read_table(path)) for path in tables])
        if "image" not in table.column_names or not getattr(table.features.get("label"), "names", None):
            raise UserError(f"{first} {expected}, has {table.features}.")
        classes = table.features["label"].names
        if not all(isinstance(name, str) for name in classes):
            raise UserError(f"{first} {expected}, and their names must be text: {shown(str(classes), 150)}.")
        images, labels = table.cast_column("image", hf.Image(decode=False))["image"], list(table["label"])
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  on a damaged table or its metadata these raise nearly anything
        raise UserError(f"{first} {expected}: {shown(str(error) or type(error).__name__, 150)}.") from error
    for i, (image, label) in enumerate(zip(images, labels)):
        if type(label) is not int or not 0 <= label < len(classes):
            raise UserError(f"{first}: row {i} has the label {label}, and there are {len(classes)} classes, from 0 on.")
        if not image or not (image["bytes"] or image["path"] and os.path.isfile(image["path"])):
            raise UserError(f"{first}: row {i} has no image.")
    if not labels:
        raise UserError(f"{first} has no rows.")
    return Listing([image["bytes"] or image["path"] for image in images], [classes[i] for i in labels], classes)


def match_classes(train: Listing, val: Listing, root: Path) -> list[str]:
    """The classes that validation lacks, which is allowed.  UserError if the classes of the splits do not match."""
    if empty := sorted(set(train.classes) - set(train.folders)):
        raise UserError(f"No training images of {', '.join(empty)} in {root}: add some, or remove the class.")
    if unknown := sorted(set(val.folders) - set(train.classes)):
        raise UserError(f"Validation has {', '.join(unknown)}, which training has not, in {root}.")
    return [name for name in train.classes if name not in set(val.folders)]


# --- decoding -------------------------------------------------------------------------------------------------------

def _open(item: str | bytes) -> Image.Image:
    """A path or an encoded image; only its header is read."""
    return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)


def _decode(image: Image.Image, least: tuple[int, int]) -> Image.Image:
    """Upright 8-bit RGB.  A JPEG comes at 1/2, 1/4 or 1/8 of its size, in a fraction of the time, if that is no smaller
    than `least` (width and height as stored)."""
    image.draft("RGB", least)
    ImageOps.exif_transpose(image, in_place=True)       # phones store a rotated image and a note to rotate it back
    if image.mode.startswith("I"):              # 16-bit grey, which convert() would clip at 255
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:           # the colour of transparent pixels is arbitrary: show white
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")       # convert() would copy


def center_view(item: str | bytes, key: tuple = (), *, short: int, crop: int) -> Tensor:
    """Short side to `short`, antialiased, then the central square: (3, crop, crop) uint8."""
    # Twice the wanted size, as in Pillow's thumbnail(), leaves the resize that follows enough pixels to average.
    image = functional.resize(_decode(_open(item), (2 * short, 2 * short)), [short], antialias=True)
    return functional.pil_to_tensor(functional.center_crop(image, [crop, crop]))


def augmented_view(item: str | bytes, key: tuple[int, ...], *, size: int, scale: tuple[float, float]) -> Tensor:
    """A random crop at size x size, antialiased, mirrored half the time: (3, size, size) uint8; random by `key` alone.

    The crop is known before the image is decoded, so that a JPEG is decoded no larger than the crop needs.
    """
    random, image = np.random.default_rng(key), _open(item)
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    width, height = image.size[::-1] if turned else image.size
    left, top, w, h = random_crop(width, height, scale, random)
    enough = max(size / w, size / h)
    image = _decode(image, (math.ceil(enough * image.width), math.ceil(enough * image.height)))
    box = [round(edge * decoded / whole) for edge, decoded, whole in (
        (left, image.width, width), (top, image.height, height),
        (left + w, image.width, width), (top + h, image.height, height))]
    x = torch.from_numpy(np.array(image.crop(box))).permute(2, 0, 1)
    x = functional.resize(x, [size, size], antialias=True)          # of bytes: several times as fast as Pillow's
    return x.flip(-1) if random.random() < 0.5 else x


def random_crop(width: int, height: int, scale: tuple[float, float], random: np.random.Generator,
                ) -> tuple[int, int, int, int]:
    """Left, top, width and height of torchvision's RandomResizedCrop: of ten draws the first that fits, else the
    largest central crop of an allowed shape."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(width - w + 1)), int(random.integers(height - h + 1)), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


class ImageList(Dataset):
    """Images that are decoded when they are asked for: images[i] is (3, side, side) uint8.

    view(item, key) makes one; the key is what a random view depends on.
    """

    def __init__(self, items: list[str | bytes], view: Callable[[str | bytes, tuple[int, ...]], Tensor],
                 never_empty: bool = False) -> None:
        self.items, self.view, self.never_empty = items, view, never_empty

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Tensor:
        return self.view(self.items[i], ())

    def attempt(self, i: int, key: tuple[int, ...] = ()) -> tuple[Tensor | None, str]:
        """The image, or None and what is wrong with it."""
        try:
            return self.view(self.items[i], key), ""
        except Exception as error:  # noqa: BLE001  on a broken file a decoder may raise nearly anything
            name = self.items[i] if isinstance(self.items[i], str) else f"image {i} of the table"
            return None, f"{name} ({error})"

    def __getitems__(self, asked: list[tuple[int, tuple[int, ...]]]) -> tuple[Tensor, Tensor, list[str]]:
        """What DataLoader calls, with indices and keys: the readable images (B, 3, side, side) uint8, their indices,
        the others' errors.

        With never_empty, the next readable image stands in where none of a batch is readable.
        """
        tried = [(i, *self.attempt(i, key)) for i, key in asked]
        if self.never_empty and all(image is None for _, image, _ in tried):
            first, key = asked[0]
            others = ((first + i) % len(self) for i in range(1, len(self)))
            tried += next(([(i, image, "")] for i in others if (image := self.attempt(i, key)[0]) is not None), [])
        good = [image for _, image, _ in tried if image is not None]
        index = torch.tensor([i for i, image, _ in tried if image is not None], dtype=torch.int64)
        return torch.stack(good) if good else index, index, [error for *_, error in tried if error]


def report_unreadable(errors: list[str], total: int, warn: bool = True) -> None:
    """Warn of a split's unreadable images; DataError if there are too many."""
    text = f"{len(errors)} of {total} images are unreadable: {'; '.join(errors[:3])}"
    text += "; ..." if len(errors) > 3 else "."
    if len(errors) > MAX_UNREADABLE * total:
        raise DataError(f"{text}\nMore than {MAX_UNREADABLE:.0%}: is the data set damaged?")
    if warn and errors:
        warnings.warn(f"{text} They are skipped.", stacklevel=2)


def decode_all(images: ImageList, side: int, threads: int) -> tuple[Tensor, Tensor, list[str]]:
    """The readable images (N, 3, side, side) uint8, their indices (N,), and the errors of the others."""
    decoded = torch.empty(len(images), 3, side, side, dtype=torch.uint8)

    def put(i: int) -> str:
        image, error = images.attempt(i)
        if image is not None:
            decoded[i] = image
        return error

    with ThreadPoolExecutor(threads) as pool:   # threads suffice: Pillow decodes outside of Python's lock
        results = pool.map(put, range(len(images)))
        errors = list(tqdm(results, "decode", len(images), leave=False, disable=len(images) <= 2000,
                           file=sys.stdout))                # a notebook shows stderr in red
    keep = torch.tensor([i for i, error in enumerate(errors) if not error], dtype=torch.int64)
    errors = [error for error in errors if error]
    report_unreadable(errors, len(images))
    return decoded[keep] if errors else decoded, keep, errors
