"""Photographs as their authors publish them, turned into what load_data and load_scenes read.

A maker gets an empty folder to work in and the name of the data set's folder, and returns that folder when it is
complete; download.py calls it.  Archives are checked against their hash before they are opened.
"""
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.utils import download_and_extract_archive, download_url

TINY = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de")     # 248 MB, md5
TINY_HUB = "zh-plus/tiny-imagenet"      # the same photographs; without boxes, and the classes by their synset ids
PETS = {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}
BACKGROUND = 2                          # in a trimap of the pets: 1 is the pet, 3 the rim that may be either

Row = tuple[bytes, str, list[int] | None]       # an encoded photograph, its synset id, the box of its object if known


# --- Tiny ImageNet ----------------------------------------------------------------------------------------------------

def tiny_from_archive(scratch: Path, folder: str) -> Path:
    """Stanford's zip -> tables.  Read in place: nothing of it is unpacked."""
    url, md5 = TINY
    download_url(url, scratch, "tiny.zip", md5)
    with zipfile.ZipFile(scratch / "tiny.zip") as archive:
        def lines(name: str) -> list[list[str]]:
            return [line.split("\t") for line in archive.read(f"tiny-imagenet-200/{name}").decode().splitlines()]

        words = {line[0]: line[-1] for line in lines("words.txt")}
        wnids = _chosen([wnid for wnid, in lines("wnids.txt")], folder)

        def train() -> Iterator[Row]:
            for wnid in wnids:
                for name, *box in lines(f"train/{wnid}/{wnid}_boxes.txt"):
                    yield archive.read(f"tiny-imagenet-200/train/{wnid}/images/{name}"), wnid, list(map(int, box))

        def val() -> Iterator[Row]:
            for name, wnid, *box in sorted(lines("val/val_annotations.txt"), key=lambda line: line[1]):
                if wnid in wnids:
                    yield archive.read(f"tiny-imagenet-200/val/images/{name}"), wnid, list(map(int, box))

        return _write_tables(scratch / folder, {wnid: words[wnid] for wnid in wnids},
                             {"train": train(), "validation": val()})


def tiny_from_hub(scratch: Path, folder: str, fetch: Callable[[str, str], list[Path]]) -> Path:
    """The hub's tables -> ours.  fetch(repository, prefix of the files' names) -> their paths here."""
    import datasets as hf
    import pyarrow.parquet as pq

    def table(split: str) -> hf.Dataset:
        files = fetch(TINY_HUB, f"data/{split}")
        return hf.concatenate_datasets([hf.Dataset(pq.read_table(path)) for path in files]).cast_column(
            "image", hf.Image(decode=False))

    tables = {"train": table("train"), "validation": table("valid")}
    names = tables["train"].features["label"].names
    wnids = _chosen(names, folder)

    def rows(split: str) -> Iterator[Row]:
        for image, label in zip(tables[split]["image"], tables[split]["label"]):
            if names[label] in wnids:
                yield image["bytes"], names[label], None

    return _write_tables(scratch / folder, {wnid: wnid for wnid in wnids}, {split: rows(split) for split in tables})


def _chosen(wnids: list[str], folder: str) -> list[str]:
    """All classes in the order of their ids; in tiny-imagenet-50 every fourth."""
    return sorted(wnids)[::4 if folder == "tiny-imagenet-50" else 1]


def _write_tables(folder: Path, words: dict[str, str], splits: dict[str, Iterator[Row]]) -> Path:
    """folder/SPLIT.parquet with columns image, label, box and wnid; words: the name of each synset id."""
    import datasets as hf

    first = {wnid: text.split(",")[0] for wnid, text in words.items()}
    once = [name for name in first.values() if list(first.values()).count(name) == 1]
    names = [first[wnid] if first[wnid] in once else words[wnid] for wnid in words]
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names),
                            "box": hf.Sequence(hf.Value("int32")), "wnid": hf.Value("string")})
    label = {wnid: i for i, wnid in enumerate(words)}
    folder.mkdir()
    for split, rows in splits.items():
        rows = list(rows)
        table = {"image": [{"bytes": image, "path": None} for image, _, _ in rows],
                 "label": [label[wnid] for _, wnid, _ in rows], "box": [box for *_, box in rows],
                 "wnid": [wnid for _, wnid, _ in rows]}
        hf.Dataset.from_dict(table, features).to_parquet(folder / f"{split}.parquet")
    return folder


# --- the pets of Oxford -----------------------------------------------------------------------------------------------

def pets_from(address: str) -> Callable[[Path, str], Path]:
    """A maker of the pets from one host: class folders and COCO's annotations in one folder."""
    def make(scratch: Path, folder: str) -> Path:
        for name, md5 in PETS.items():
            download_and_extract_archive(f"{address}/{name}", str(scratch / "raw"), md5=md5, remove_finished=True)
        return lay_out_pets(scratch / "raw", scratch / folder)
    return make


def lay_out_pets(raw: Path, folder: Path) -> Path:
    """The unpacked archives -> folder/{train,val}/<breed>/*.jpg, and folder/annotations/instances_*.json.

    The authors' trainval is train, their test val.  One object each: its breed, and as its mask the trimap's foreground
    with the undecided rim.
    """
    (folder / "annotations").mkdir(parents=True)
    lists = {split: [line.split()[0] for line in (raw / "annotations" / f"{name}.txt").read_text().splitlines()]
             for split, name in (("train", "trainval"), ("val", "test"))}
    breeds = sorted({_breed(name) for name in lists["train"]})
    for split, names in lists.items():
        images, objects = [], []
        for i, name in enumerate(names, 1):
            breed = _breed(name)
            place = folder / split / breed / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(raw / "images" / f"{name}.jpg", place)
            with Image.open(place) as image, Image.open(raw / "annotations" / "trimaps" / f"{name}.png") as trimap:
                mask = np.asarray(trimap.resize(image.size, Image.Resampling.NEAREST)) != BACKGROUND
            images.append({"id": i, "file_name": f"{breed}/{place.name}", "height": mask.shape[0],
                           "width": mask.shape[1]})
            objects.append({"id": i, "image_id": i, "category_id": breeds.index(breed) + 1, "iscrowd": 0,
                            **mask_record(mask)})
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps({
            "images": images, "annotations": objects,
            "categories": [{"id": i, "name": breed} for i, breed in enumerate(breeds, 1)]}))
    return folder


def _breed(name: str) -> str:
    """"great_pyrenees_12" -> "Great Pyrenees"."""
    return name.rsplit("_", 1)[0].replace("_", " ").title()


def mask_record(mask: np.ndarray) -> dict:
    """A mask (H, W) as an entry of a COCO file: bbox, area, and segmentation as run lengths down the columns."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))                   # starts and ends of runs of ones, in turn
    runs = np.diff(np.concatenate([[0], edges, [mask.size]]))
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    x, y = (int(found[0]) if len(found) else 0 for found in (columns, rows))
    width, height = (int(np.ptp(found)) + 1 if len(found) else 0 for found in (columns, rows))
    return {"bbox": [x, y, width, height], "area": int(mask.sum()),
            "segmentation": {"size": list(mask.shape), "counts": runs.tolist()}}
