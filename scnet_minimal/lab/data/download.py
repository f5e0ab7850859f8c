"""The data sets with a name: where they are, and how they are downloaded."""
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torchvision import datasets

from ..errors import DataError, FileError, MissingFileError, UserError
from .archives import PETS, TINY, pets_from, tiny_from_archive, tiny_from_hub
from .images import list_split, match_classes

NAMED_SETS = {                      # name -> folders under root, best first; a download fetches the first
    "toynette": ["toynette"],
    "imagenette": ["imagenette2-160", "imagenette2-320", "imagenette2"],
    "imagenette-160": ["imagenette2-160"],
    "imagenette-320": ["imagenette2-320"],
    "imagenette-full": ["imagenette2"],
    "tiny-imagenet": ["tiny-imagenet-200"],         # ImageNet at 64 px, 200 classes
    "tiny-imagenet-50": ["tiny-imagenet-50"],       # every fourth of them, by synset id
    "pets": ["oxford-iiit-pet"],                    # 37 breeds, with masks
}
ARCHIVES = "https://s3.amazonaws.com/fast-ai-imageclas"     # /<folder>.tgz
SIZES = {"imagenette2-160": "160px", "imagenette2-320": "320px", "imagenette2": "full"}     # torchvision's names
HUB = None                          # address of the Hugging Face hub; None: its own
HUB_REVISIONS = {"frgfm/imagenette": "refs/convert/parquet"}
PETS_HOSTS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data", "https://thor.robots.ox.ac.uk/~vgg/data/pets"
HOST_TIMEOUT = 20                   # seconds of silence after which a host is given up


def locate(source: str | Path, root: str | Path | None = None, download: bool = False) -> Path:
    """The folder of a named set, or of a folder of images.

    root      where named sets are; None: the repository's data/, or data/ in or above the working folder
    download  fetch a named set into root if it is not there

    UserError if it is not there, saying what was found and what to do.
    """
    if isinstance(source, str) and source in NAMED_SETS:
        return _locate_named(source, root, download)
    folder = Path(os.path.expanduser(source))
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise FileError(f"{folder} is a file or a broken link. Give the folder that holds train/ and val/.")
    if not os.path.exists(folder) and str(source) == folder.name:      # a single word: more likely a misspelt name
        raise UserError(f"Unknown data {str(source)!r}: no folder here, and none of {', '.join(NAMED_SETS)}.")
    if not os.path.exists(folder):
        raise MissingFileError(f"{folder} does not exist. Give the folder that holds train/ and val/.")
    return folder


def _locate_named(name: str, root: str | Path | None, download: bool) -> Path:
    here = [Path(__file__).parents[3], Path.cwd(), *Path.cwd().parents]     # the checkout, or the working folder
    roots = [Path(root).expanduser()] if root else [f / "data" for f in here if (f / "data").is_dir()]
    roots = list(dict.fromkeys(roots)) or [Path.cwd() / "data"]
    for path in [r / folder for folder in NAMED_SETS[name] for r in roots]:
        if path.is_dir():
            return path
    root, folder = roots[0], NAMED_SETS[name][0]
    missing = f"{name} is not there: no {' or '.join(NAMED_SETS[name])} in {', '.join(map(str, roots))}."
    if name == "toynette":
        raise MissingFileError(f"{missing}\nIt comes with the repository in data/: give that as root, or draw it: "
                               f"python -m scnet_minimal.lab.study toynette --out {root / folder}")
    if not download:
        raise MissingFileError(f"{missing}\nFetch it with load_data({name!r}, download=True), or by hand: "
                               f"{_by_hand(root, folder)}.")
    return fetch_named(root, folder)


def _sources(folder: str) -> dict[str, Callable[[Path, str], Path]]:
    """Where a folder can be had, best first: a name for messages, and what makes it in an empty folder."""
    if folder == "oxford-iiit-pet":
        return {host.split("/")[2]: pets_from(host) for host in PETS_HOSTS}
    if folder in SIZES:
        return {"archive": _imagenette_from_archive, "hub": _imagenette_from_hub}
    return {"archive": tiny_from_archive, "hub": lambda scratch, folder: tiny_from_hub(
        scratch, folder, partial(_hub_files, scratch / "hub"))}


def _by_hand(root: Path, folder: str) -> str:
    """What to do with a browser instead."""
    if folder in SIZES:
        return f"unpack {ARCHIVES}/{folder}.tgz in {root}, so that {root / folder / 'train'} is there"
    files = [f"{PETS_HOSTS[0]}/{name}" for name in PETS] if folder == "oxford-iiit-pet" else [TINY[0]]
    return (f"on a machine with a connection, and copy {root / folder} from there; what is fetched is "
            f"{' and '.join(files)}")


def fetch_named(root: Path, folder: str) -> Path:
    """Download root/folder: from its first source, hashes checked, or else from the second.

    Everything is done in a hidden folder beside it, which gets its name when it is complete: nothing half-finished is
    ever taken for a data set.  DataError, with what to do by hand, if neither can be had.
    """
    scratch, timeout, failures = root / f".{folder}.part", socket.getdefaulttimeout(), []
    socket.setdefaulttimeout(HOST_TIMEOUT)
    try:
        for source, make in _sources(folder).items():
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                os.replace(make(scratch, folder), root / folder)
                return root / folder
            except Exception as error:  # noqa: BLE001  whatever it was, the next source may do
                failures.append(f"{source}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(scratch, ignore_errors=True)
    raise DataError(f"{folder} could not be downloaded ({'; '.join(failures)}).\nBy hand: {_by_hand(root, folder)}.")


def _imagenette_from_archive(scratch: Path, folder: str) -> Path:
    datasets.Imagenette(scratch, size=SIZES[folder], download=True)     # one archive holds both splits
    list_split(scratch / folder, "val")
    return scratch / folder


def _imagenette_from_hub(scratch: Path, folder: str) -> Path:
    config = {"full": "full_size"}.get(SIZES[folder], SIZES[folder])
    complete = scratch / folder
    complete.mkdir()
    for path in _hub_files(scratch / "hub", "frgfm/imagenette", f"{config}/"):
        os.replace(path, complete / f"{path.parent.name}-{path.name}")      # 160px/train/0000: train-0000.parquet
    match_classes(list_split(complete, "train"), list_split(complete, "validation"), complete)
    return complete


def _hub_files(folder: Path, repository: str, prefix: str) -> list[Path]:
    """The parquet files of a data set on the hub whose names begin so, downloaded into a folder."""
    from huggingface_hub import HfApi, hf_hub_download

    which = dict(repo_id=repository, repo_type="dataset", revision=HUB_REVISIONS.get(repository))
    names = sorted(name for name in HfApi(endpoint=HUB).list_repo_files(**which)
                   if name.startswith(prefix) and name.endswith(".parquet"))
    return [Path(hf_hub_download(filename=name, local_dir=folder, endpoint=HUB, **which)) for name in names]
