"""Tiny ImageNet and the pets of Oxford, fetched from a server on this machine and laid out."""
import hashlib
import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from coco_folder import needs_pycocotools
from loopback import SPOILT, Loopback
from PIL import Image

from scnet_minimal.lab.data import archives, download, load_data
from scnet_minimal.lab.data.archives import mask_record
from scnet_minimal.lab.detect.scenes import load_scenes
from scnet_minimal.lab.errors import DataError

# pycocotools' own, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WNIDS = [f"n{i:08}" for i in (50, 10, 20, 30, 40)]          # in no order, as in the archive
ZIP, HUB = "/tiny-imagenet-200.zip", "/datasets/zh-plus/tiny-imagenet/resolve/main/data/"
BREEDS = "Abyssinian", "great_pyrenees"
IMAGES, NOTES = "/first/images.tar.gz", "/first/annotations.tar.gz"


def encoded(colour, format="JPEG", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour).save(buffer, format)
    return buffer.getvalue()


def tiny_zip():
    """Two photographs to train on and one to validate for each of five classes; red is 10 times the class's rank."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        def put(name, content):
            archive.writestr(f"tiny-imagenet-200/{name}", content)

        put("wnids.txt", "\n".join(WNIDS))
        names = {"10": "crane, bird", "50": "crane, machine"}
        put("words.txt", "".join(f"{w}\t{names.get(w[-2:], f'thing {w[-2:]}, x')}\n" for w in [*WNIDS, "n99999999"]))
        for wnid in WNIDS:
            for i in (0, 1):
                put(f"train/{wnid}/images/{wnid}_{i}.JPEG", encoded((int(wnid[-2:]), 0, 0)))
            put(f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58\n{wnid}_1.JPEG\t1\t2\t3\t4\n")
        for i, wnid in enumerate(WNIDS):
            put(f"val/images/val_{i}.JPEG", encoded((int(wnid[-2:]), 0, 0)))
        put("val/val_annotations.txt", "".join(f"val_{i}.JPEG\t{w}\t{i}\t1\t9\t9\n" for i, w in enumerate(WNIDS)))
        put("../../escaped.txt", "never written")
    return buffer.getvalue()


def tiny_tables(folder):
    """The same on the hub: classes by their ids, no boxes."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=sorted(WNIDS))})
    files = {}
    for split, times in (("train", 2), ("valid", 1)):
        rows = {"image": [{"bytes": encoded((10 * (i + 1), 0, 0)), "path": None} for i in range(5)] * times,
                "label": list(range(5)) * times}
        Dataset.from_dict(rows, features).to_parquet(folder / "table")
        files[f"{HUB}{split}-00000-of-00001-0123.parquet"] = (folder / "table").read_bytes()
    return files


def tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pet_archives():
    """A photograph of each breed in both splits, 40 x 30; the pet 4 columns of pixels within a rim of one column."""
    trimap = np.full((30, 40), 2, np.uint8)
    trimap[5:25, 9:15], trimap[5:25, 10:14] = 3, 1
    buffer = io.BytesIO()
    Image.fromarray(trimap).save(buffer, "PNG")
    names = {f"{breed}_{i}": breed for breed in BREEDS for i in (1, 2)}
    notes = {f"annotations/trimaps/{name}.png": buffer.getvalue() for name in names}
    notes |= {f"annotations/{split}.txt": "".join(f"{b}_{i} 1 1 1\n" for b in BREEDS).encode()
              for split, i in (("trainval", 1), ("test", 2))}
    return tar({f"images/{name}.jpg": encoded((9, 9, 9), size=(40, 30)) for name in names}), tar(notes)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    images, notes = pet_archives()
    return {ZIP: tiny_zip(), **tiny_tables(tmp_path_factory.mktemp("hub")), IMAGES: images, NOTES: notes,
            IMAGES.replace("first", "second"): images, NOTES.replace("first", "second"): notes}


@pytest.fixture
def host(served, monkeypatch):
    with Loopback(served) as server:
        md5 = {path: hashlib.md5(content).hexdigest() for path, content in served.items()}
        monkeypatch.setattr(archives, "TINY", (server.address + ZIP, md5[ZIP]))
        monkeypatch.setattr(archives, "PETS", {path.split("/")[-1]: md5[path] for path in (IMAGES, NOTES)})
        monkeypatch.setattr(download, "PETS_HOSTS", [f"{server.address}/first", f"{server.address}/second"])
        monkeypatch.setattr(download, "HUB", server.address)
        monkeypatch.setattr(download, "HOST_TIMEOUT", 2)
        yield server


def load(name, root, **options):
    return load_data(name, root=root, size=16, batch_size=2, device="cpu", workers=0, **options)


# --- Tiny ImageNet ----------------------------------------------------------------------------------------------------

def test_tiny_imagenet_has_its_classes_in_the_order_of_their_ids(host, tmp_path):
    data = load("tiny-imagenet", tmp_path, download=True)
    assert data.classes == ["crane, bird", "thing 20", "thing 30", "thing 40", "crane, machine"]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and data.val.labels.tolist() == [0, 1, 2, 3, 4]
    assert ((data.val.images[:, 0].float().mean((1, 2)) - (data.val.labels + 1) * 10).abs() < 3).all()
    assert set(host.asked) == {ZIP} and os.listdir(tmp_path) == ["tiny-imagenet-200"]
    assert not list(tmp_path.parents[1].rglob("escaped.txt"))
    host.asked.clear()
    assert len(load("tiny-imagenet", tmp_path, download=True).classes) == 5 and host.asked == []


def test_the_fifty_are_every_fourth_class_with_the_boxes_of_their_objects(host, tmp_path):
    import pyarrow.parquet as pq
    data = load("tiny-imagenet-50", tmp_path, download=True)
    assert data.classes == ["crane, bird", "crane, machine"]        # not "crane" twice
    table = pq.read_table(tmp_path / "tiny-imagenet-50" / "validation.parquet").to_pydict()
    assert table["wnid"] == ["n00000010", "n00000050"] and table["box"] == [[1, 1, 9, 9], [0, 1, 9, 9]]
    assert os.listdir(tmp_path) == ["tiny-imagenet-50"]


@pytest.mark.parametrize("spoil", ["truncated", "corrupt", "missing", "gone halfway"])
def test_a_spoilt_zip_never_passes_for_a_data_set_and_the_hub_helps_out(host, tmp_path, spoil):
    host.spoil[ZIP] = SPOILT[spoil]
    with pytest.raises(DataError) as error:
        load("tiny-imagenet", tmp_path, download=True)
    assert all(part in str(error.value) for part in ("archive:", "hub:", "cs231n", str(tmp_path)))
    assert os.listdir(tmp_path) == []
    host.hub = True
    data = load("tiny-imagenet", tmp_path, download=True)
    assert (data.classes, data.val.labels.tolist(), len(data.train.labels)) == (sorted(WNIDS), [0, 1, 2, 3, 4], 10)
    assert os.listdir(tmp_path) == ["tiny-imagenet-200"]


# --- the pets ---------------------------------------------------------------------------------------------------------

@needs_pycocotools
def test_the_pets_are_classes_and_objects_with_masks(host, tmp_path, monkeypatch):
    (root := tmp_path / "data").mkdir()
    data = load("pets", root, download=True)
    assert data.classes == ["Abyssinian", "Great Pyrenees"] and data.val.labels.tolist() == [0, 1]
    assert os.listdir(root) == ["oxford-iiit-pet"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "__file__", str(tmp_path / "venv/lib/scnet_minimal/lab/data/download.py"))
    scenes = load_scenes("pets", "mask", batch_size=1, device="cpu")
    assert scenes.classes == data.classes and len(scenes.train.scenes) == len(scenes.val.scenes) == 2
    _, target = scenes.val.scenes[1]
    assert target["boxes"].tolist() == [[9, 5, 15, 25]] and target["labels"].tolist() == [2]
    assert target["masks"].sum() == 6 * 20 and target["masks"][0, 5:25, 9:15].all()


@pytest.mark.parametrize("path", [IMAGES, NOTES])
@pytest.mark.parametrize("spoil", ["truncated", "corrupt", "missing"])
def test_spoilt_pets_come_from_the_second_host_or_not_at_all(host, tmp_path, path, spoil):
    second = path.replace("first", "second")
    host.spoil = {path: SPOILT[spoil], second: SPOILT["corrupt"]}
    with pytest.raises(DataError, match="images.tar.gz.*annotations.tar.gz"):
        load("pets", tmp_path, download=True)
    assert os.listdir(tmp_path) == []
    del host.spoil[second]
    assert load("pets", tmp_path, download=True).classes == ["Abyssinian", "Great Pyrenees"]


def test_an_archive_that_would_write_elsewhere_writes_nowhere(host, tmp_path, monkeypatch):
    evil = tar({"../../escaped.txt": b"x"})
    monkeypatch.setitem(host.files, IMAGES, evil)
    monkeypatch.setitem(host.files, IMAGES.replace("first", "second"), evil)
    monkeypatch.setitem(archives.PETS, "images.tar.gz", hashlib.md5(evil).hexdigest())
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    with pytest.raises(DataError):
        load("pets", root, download=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@needs_pycocotools
@pytest.mark.parametrize("mask", [np.zeros((3, 4)), np.ones((3, 4)), np.eye(4), np.arange(12).reshape(3, 4) % 5 > 2],
                         ids=["none", "all", "diagonal", "other"])
def test_a_mask_becomes_what_pycocotools_reads_back(mask):
    from pycocotools import mask as rle
    one = mask_record(mask > 0)
    code = rle.frPyObjects(one["segmentation"], *mask.shape)
    assert (rle.decode(code) == mask).all() and one["area"] == mask.sum() == rle.area(code)
    assert one["bbox"] == rle.toBbox(code).tolist()
    json.dumps(one)


def test_the_folders_of_a_named_set_are_listed_when_it_is_missing(tmp_path):
    for name, part in (("tiny-imagenet-50", "tiny-imagenet-200.zip"), ("pets", "annotations.tar.gz")):
        with pytest.raises(FileNotFoundError) as error:
            load(name, tmp_path)
        assert part in str(error.value) and "download=True" in str(error.value)
