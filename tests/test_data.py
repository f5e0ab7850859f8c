"""Images become batches: complete, upright, repeatable, with a clear error where something is wrong."""
import hashlib
import io
import json
import os
import re
import tarfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback import SPOILT, Loopback
from PIL import Image
from tqdm import tqdm

from scnet_minimal.lab.data import denormalize, download, images, load_data, normalize
from scnet_minimal.lab.data.batches import InMemory, Streamed
from scnet_minimal.lab.data.sampler import EpochSampler
from scnet_minimal.lab.data.toynette import CLASSES, WNIDS
from scnet_minimal.lab.errors import DataError, UserError

COLOURS = {"blue": (20, 40, 230), "green": (30, 200, 40), "red": (220, 30, 20)}     # class -> its colour
SIZE = 16


def save(path, colour=(90, 90, 90), shape=(24, 20), **options):
    """A plain image of shape (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape, colour).save(path, **options)


def photo_like(width, height):
    """Red grows to the right, green downwards, blue sits in a corner: no flip or turn looks the same."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 * ((x < 64) & (y < 64))], 2).astype(np.uint8))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """13 + 7 images of three classes, each of its class's colour, of several shapes and formats."""
    root = tmp_path_factory.mktemp("colours")
    for split, count in {"train": 13, "val": 7}.items():
        for i in range(count):
            name = list(COLOURS)[i % 3]
            file = f"{i:02}.{['jpg', 'png', 'JPEG'][i % 3]}"
            save(root / split / name / file, COLOURS[name], (20 + 7 * i, 40 - i))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """9 + 5 different images of two classes, wide, tall, small and large."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in {"train": 9, "val": 5}.items():
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            noise.resize((12 + 31 * i, 140 - 12 * i), Image.Resampling.BICUBIC).save(path, quality=95)
    return root


def load(folder, **options):
    return load_data(folder, **{"size": SIZE, "batch_size": 4, "device": "cpu", "workers": 0, **options})


def pair(root):
    """root with one sound image in train/a and val/a."""
    save(root / "train/a/0.png")
    save(root / "val/a/0.png")
    return root


ways = pytest.mark.parametrize("way", [{}, {"memory_limit": 0}, {"memory_limit": 0, "workers": 2}],
                               ids=["in memory", "streamed", "streamed by workers"])


def test_the_parameters_do_choose_between_memory_and_streaming(colours):
    assert isinstance(load(colours).train, InMemory)
    assert isinstance(load(colours, memory_limit=0).train, Streamed)


@ways
def test_batches_have_the_promised_shapes_types_and_device(colours, way):
    data = load(colours, **way)
    for split in (data.train, data.val):
        for x, y in split:
            assert x.shape == (len(y), 3, SIZE, SIZE) and len(y) <= 4
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            assert x.device.type == y.device.type == "cpu"


@ways
def test_labels_stay_with_their_images(colours, way):
    data = load(colours, **way)
    assert data.classes == list(COLOURS)
    colour = torch.tensor([COLOURS[name] for name in data.classes]) / 255
    for split in (data.train, data.val):
        for x, y in split:
            seen = denormalize(x).mean((2, 3))
            assert torch.equal(torch.cdist(seen, colour).argmin(1), y)
            assert (seen - colour[y]).abs().max() < 0.02        # and no border darkens a crop


@ways
def test_validation_shows_every_image_once_and_in_order(photos, way):
    for batch_size in [3] if way.get("workers") else [1, 3, 5, 7, 64]:
        val = load(photos, batch_size=batch_size, **way).val
        batches = list(val)
        assert len(batches) == len(val) == -(-5 // batch_size)
        expected = normalize(torch.stack([val.images[i] for i in range(5)]))
        assert torch.equal(torch.cat([x for x, _ in batches]), expected)
        assert torch.cat([y for _, y in batches]).tolist() == val.labels.tolist() == [0, 0, 0, 1, 1]
        assert len({x.sum().item() for x in expected}) == 5


@ways
def test_a_training_epoch_shows_every_image_once_in_another_order(colours, way):
    train = load(colours, batch_size=5, **way).train
    order = torch.cat([y for _, y in train])
    assert sorted(order.tolist()) == sorted(train.labels.tolist()) and order.tolist() != train.labels.tolist()


@ways
def test_batches_are_a_function_of_seed_and_epoch(photos, way):
    def epoch(seed, number):
        train = load(photos, seed=seed, **way).train
        train.set_epoch(number)
        return torch.cat([x for x, _ in train])

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 0))        # what seed + epoch would get wrong


@ways
def test_a_resumed_run_sees_the_epoch_that_the_straight_run_saw(photos, way):
    straight, resumed = load(photos, **way).train, load(photos, **way).train
    for number in range(4):
        straight.set_epoch(number)
        seen = list(straight)
    torch.manual_seed(123)                                  # whatever else the resumed run has drawn
    resumed.set_epoch(3)
    for (x, y), (x2, y2) in zip(seen, resumed, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_loading_and_iterating_leave_the_global_generator_alone(photos):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for way in ({}, {"memory_limit": 0}):
        list(load(photos, **way).train)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_the_augmentation_of_an_image_does_not_depend_on_the_batch_size(photos, way):
    small, large = (torch.cat([x for x, _ in load(photos, batch_size=b, **way).train]) for b in (3, 9))
    assert torch.allclose(small, large, atol=1e-6)


def test_memory_and_streaming_agree_on_validation_images(photos):
    kept, streamed = load(photos).val, load(photos, memory_limit=0).val
    for (x, y), (x2, y2) in zip(kept, streamed, strict=True):
        assert torch.allclose(x, x2, atol=1e-6) and torch.equal(y, y2)


def test_validation_is_torchvisions_resize_and_centre_crop(photos):
    from torchvision import transforms
    val = load(photos, size=32, memory_limit=0).val
    steps = [transforms.Resize(37), transforms.CenterCrop(32), transforms.PILToTensor()]
    standard = transforms.Compose(steps)
    for i, path in enumerate(val.images.items):
        with Image.open(path) as image:
            difference = (val.images[i].float() - standard(image.convert("RGB"))).abs()
        assert difference.mean() < 2 and difference.max() < 16      # of 255: JPEGs are decoded smaller


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (90, 40)])
def test_a_validation_image_stays_upright(tmp_path, way, shape):
    pair(tmp_path)
    photo_like(*shape).save(tmp_path / "val/a/0.png")
    (x, _), = load(tmp_path, size=32, **way).val
    red, green, _ = denormalize(x)[0]
    assert (red.diff(dim=1) > 0).all() and red.diff(dim=0).abs().max() < 0.02           # to the right
    assert (green.diff(dim=0) > 0).all() and green.diff(dim=1).abs().max() < 0.02       # downwards


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_training_crops_are_flipped_half_the_time_never_turned_and_of_the_promised_area(tmp_path, way):
    pair(tmp_path)
    for i in range(200):
        photo_like(64, 64).save(tmp_path / f"train/a/{i}.png")
    train = load(tmp_path, batch_size=200, size=32, **way).train
    x = denormalize(next(iter(train))[0])
    across, down = x[:, 0, :, -2] - x[:, 0, :, 1], x[:, 1, -2] - x[:, 1, 1]     # over 29 of 32 pixels
    assert 70 < (across > 0).all(1).sum() < 130 and ((across > 0).all(1) | (across < 0).all(1)).all()
    assert (down > 0).all()
    assert x[:, 0].diff(dim=1).abs().max() < 0.02 and x[:, 1].diff(dim=2).abs().max() < 0.02
    area = across.abs().mean(1) * down.mean(1) * (32 / 29) ** 2
    assert area.min() > 0.33 and area.max() < 1.1
    assert 0.62 < area.mean() < 0.73            # uniform over 0.35 ... 1: 0.675
    assert area.std() > 0.1


def test_half_precision_contexts_do_not_move_the_crops(photos):
    train = load(photos).train
    expected = [x for x, _ in train]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(a, x) for a, (x, _) in zip(expected, train, strict=True))


def test_normalizing_can_be_undone_and_is_torchvisions():
    from torchvision.transforms.v2 import functional
    x = torch.arange(3 * 256, dtype=torch.uint8).reshape(1, 3, 16, 16)
    assert torch.equal((denormalize(normalize(x)) * 255).round().to(torch.uint8), x)
    theirs = functional.normalize(x / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(normalize(x), theirs, atol=1e-5)
    assert denormalize(torch.full((3, 1, 1), 99.0)).max() == 1


def test_constants_are_copied_to_a_device_once(monkeypatch):
    x = torch.zeros(1, 3, 2, 2)
    expected = normalize(x), denormalize(x)

    def refuse(*_, **__):
        raise AssertionError("a copy in every batch: on a GPU, a wait")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(normalize(x), expected[0]) and torch.equal(denormalize(x), expected[1])


def test_a_last_training_batch_of_one_is_dropped_and_no_other(colours):
    def sizes(batch_size):
        train = load(colours, batch_size=batch_size).train
        found = [len(y) for _, y in train]
        assert len(found) == len(train)
        return found

    assert sizes(4) == [4, 4, 4] and sizes(12) == [12]
    assert sizes(5) == [5, 5, 3] and sizes(13) == sizes(14) == [13] and sizes(1) == [1] * 13


def test_a_single_training_image_is_kept(tmp_path):
    assert len(load(pair(tmp_path)).train) == 1


# --- images of every kind -------------------------------------------------------------------------------

def test_every_kind_of_image_is_read_as_it_looks(tmp_path):
    pair(tmp_path)
    red = Image.new("RGB", (30, 30), (200, 0, 0))
    half = Image.new("RGBA", (30, 30), (0, 0, 0, 0))                    # black, but fully transparent
    palette = Image.new("P", (30, 30), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette_hole = palette.copy()
    deep = Image.fromarray(np.full((30, 30), 40_000, np.uint16))        # 16 bit: 40,000 of 65,535
    kinds = {
        "cmyk.jpg": (red.convert("CMYK"), {}, (200, 0, 0)),
        "grey.jpg": (Image.new("L", (30, 30), 77), {}, (77, 77, 77)),
        "rgba.png": (half, {}, (255, 255, 255)),
        "palette.png": (palette, {}, (200, 0, 0)),
        "palette_hole.png": (palette_hole, {"transparency": 1}, (255, 255, 255)),
        "palette_bytes.png": (palette, {"transparency": bytes([0, 255])}, (200, 0, 0)),
        "sixteen.png": (deep, {}, (156, 156, 156)),
        "sixteen.tif": (deep, {}, (156, 156, 156)),
        "one_bit.png": (Image.new("1", (30, 30), 1), {}, (255, 255, 255)),
        "UPPER.JPEG": (red, {}, (200, 0, 0)),
        "paper.webp": (red, {"lossless": True}, (200, 0, 0)),
    }
    for name, (image, options, _) in kinds.items():
        path = tmp_path / "val" / name.replace(".", "_") / name
        path.parent.mkdir(parents=True)
        image.save(path, **options)
        save(tmp_path / "train" / name.replace(".", "_") / "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load(tmp_path)
    seen = {data.classes[y]: x.float().mean((1, 2)) for x, y in zip(data.val.images, data.val.labels)}
    for name, (*_, colour) in kinds.items():
        assert (seen[name.replace(".", "_")] - torch.tensor(colour)).abs().max() <= 3, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_turned_back(tmp_path, orientation):
    pair(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    store = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]    # number of a Pillow Transpose
    image = photo_like(64, 64)
    image = image if store is None else image.transpose(Image.Transpose(store))
    image.save(tmp_path / "val/a/0.jpg", exif=exif, quality=95)
    (tmp_path / "val/a/0.png").unlink()
    red, green, _ = load(tmp_path).val.images[0].float()
    assert red[:, -1].mean() > red[:, 0].mean() + 100 and green[-1].mean() > green[0].mean() + 100


def test_other_files_and_hidden_ones_are_ignored(tmp_path):
    pair(tmp_path)
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    (tmp_path / "train/a/._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "train/stray.png").write_bytes(b"beside the classes")
    save(tmp_path / "train/.ipynb_checkpoints/0.png")
    data = load(tmp_path)
    assert data.classes == ["a"] and len(data.train.labels) == 1


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_a_few_broken_images_are_skipped_with_one_warning(tmp_path, way):
    for i in range(40):
        save(tmp_path / f"train/a/{i:02}.jpg", shape=(64, 64))
        save(tmp_path / f"val/a/{i:02}.jpg", shape=(64, 64))
    whole = (tmp_path / "val/a/07.jpg").read_bytes()
    (tmp_path / "val/a/07.jpg").write_bytes(whole[: len(whole) // 2])       # cut off
    (tmp_path / "val/a/11.jpg").write_bytes(b"no image at all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        val = load(tmp_path, **way).val
        seen = [sum(len(x) for x, _ in val) for epoch in range(2)]
    assert seen == [38, 38] and len(val.skipped) == 2
    (warning,) = caught
    assert re.search(r"2 of 40.*07\.jpg.*11\.jpg", str(warning.message))


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_many_broken_images_are_an_error(tmp_path, way):
    for i in range(8):
        save(tmp_path / f"train/a/{i}.jpg")
    (tmp_path / "train/a/3.jpg").write_bytes(b"no image at all")
    save(tmp_path / "val/a/0.jpg")
    with pytest.raises(DataError, match=r"1 of 8.*3\.jpg"):
        list(load(tmp_path, batch_size=8, **way).train)


# --- folders, names and what is wrong with them -----------------------------------------------------------

def test_validation_may_be_spelt_out(tmp_path):
    pair(tmp_path)
    (tmp_path / "val").rename(tmp_path / "validation")
    assert len(load(str(tmp_path)).val) == 1


def test_a_class_may_be_missing_in_validation_and_is_named(tmp_path):
    pair(tmp_path)
    save(tmp_path / "train/b/0.png")
    (tmp_path / "val/b").mkdir()
    data = load(tmp_path)
    assert data.classes == ["a", "b"] and data.missing_in_val == ["b"] and data.val.labels.tolist() == [0]


def test_validation_labels_are_those_of_training_where_a_class_is_missing(tmp_path):
    pair(tmp_path)
    save(tmp_path / "train/b/0.png")
    (tmp_path / "val/a").rename(tmp_path / "val/b")
    assert load(tmp_path).val.labels.tolist() == [1]


def test_a_validation_class_that_training_lacks_is_an_error(tmp_path):
    pair(tmp_path)
    save(tmp_path / "val/zebra/0.png")
    with pytest.raises(UserError, match="zebra"):
        load(tmp_path)


def test_an_empty_training_class_is_an_error(tmp_path):
    pair(tmp_path)
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_a_split_is_an_error_that_shows_what_is_there(tmp_path, split):
    pair(tmp_path)
    (tmp_path / split).rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=rf"{split}.*other"):
        load(tmp_path)


def test_a_split_without_images_is_an_error(tmp_path):
    pair(tmp_path)
    (tmp_path / "train/a/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.*\.png"):
        load(tmp_path)


def test_a_file_or_a_missing_folder_is_an_error(tmp_path):
    file = tmp_path / "pictures.zip"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="pictures.zip"):
        load(file)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_linked_folders_are_visited_once_and_fifos_never_opened(tmp_path):
    root = tmp_path / "loops"
    for split in ("train", "val"):
        for name in ("a", "b"):
            save(root / split / name / "more" / "0.png")
            (root / split / name / "up").symlink_to(root / split / name)
            (root / split / name / "again").symlink_to(root / split / name / "more")
            (root / split / name / "itself.png").symlink_to("itself.png")
            os.mkfifo(root / split / name / "fifo.png")
    data = load(root)
    assert len(data.train.labels) == len(data.val.labels) == 2


def test_a_misspelt_name_is_an_error_that_lists_the_names():
    with pytest.raises(UserError, match="'imagenete'.*toynette, imagenette, imagenette-160, imagenette-320"):
        load("imagenete")


@pytest.mark.parametrize("wrong", [{"size": 7}, {"batch_size": 0}, {"scale": (0, 1)}, {"scale": (0.5, 1.1)}])
def test_impossible_numbers_are_an_error(colours, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        load(colours, **wrong)


# --- Toynette and Imagenette ------------------------------------------------------------------------------

def write_tables(folder, names, splits):
    """A small parquet set in Toynette's shape; the image's red is 25 times its label."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    folder.mkdir(parents=True)
    for split, labels in splits.items():
        encoded = []
        for label in labels:
            buffer = io.BytesIO()
            Image.new("RGB", (20, 20), (25 * label, 0, 0)).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
        table = Dataset.from_dict({"image": encoded, "label": labels}, features)
        table.to_parquet(folder / f"{split}.parquet")


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_toynette_is_read_from_its_tables_under_root(tmp_path, way):
    write_tables(tmp_path / "toynette", list(CLASSES), {"train": [*range(10), 3, 3], "validation": [4, 0, 9]})
    data = load("toynette", root=tmp_path, **way)
    assert (data.name, data.classes, data.val.labels.tolist()) == ("toynette", list(CLASSES), [4, 0, 9])
    colours = [data.val.images[i].float().mean((1, 2)).tolist() for i in range(3)]
    assert colours == [[100, 0, 0], [0, 0, 0], [225, 0, 0]]
    assert data.missing_in_val == [CLASSES[i] for i in (1, 2, 3, 5, 6, 7, 8)]


def test_tables_without_class_names_are_an_error(tmp_path):
    from datasets import Dataset
    Dataset.from_dict({"photo": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="photo"):
        load(tmp_path)


@pytest.mark.parametrize("change, fact", [
    (lambda t: t.slice(0, 0), "no rows"), (lambda t: t.set_column(1, "label", [[0, -1]]), "row 1 .*-1"),
    (lambda t: t.set_column(1, "label", [[9, 1]]), "row 0 .* 9"), (lambda t: t.drop_columns(["image"]), "image"),
    (lambda t: t.set_column(1, "label", [[None, 1]]), "None"), (lambda t: t.set_column(0, "image", [[3, 4]]), "image"),
    (lambda t: t.set_column(0, "image", [t["image"].slice(0, 1).combine_chunks().take([None, 0])]), "row 0 .*image"),
    (lambda t: t.replace_schema_metadata({}), "label"), (lambda t: b"", "image"), (lambda t: b"PAR1 torn", "image"),
    (lambda t: t.replace_schema_metadata({"huggingface": '{"info": {"features": "x"}}'}), "label"),
    (lambda t: t.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {
        "image": {"_type": "Image"}, "label": {"names": [1.5, {}], "_type": "ClassLabel"}}}})}), "text"),
])
def test_a_table_that_would_fail_later_is_refused_when_it_is_read(tmp_path, change, fact):
    import pyarrow.parquet as pq

    write_tables(tmp_path / "t", ["zero", "one"], {"train": [0, 1], "validation": [0, 1]})
    path = tmp_path / "t" / "validation.parquet"
    changed = change(pq.read_table(path).slice(0, 2))
    if isinstance(changed, bytes):
        path.write_bytes(changed)
    else:
        pq.write_table(changed, path)
    with pytest.raises(UserError, match=f"{path.name}.*{fact}"):
        load(path.parent)


def test_the_embedded_toynette_is_found_without_being_told_where():
    if Path(download.__file__).resolve().parents[3] != Path(__file__).resolve().parents[1]:
        pytest.skip("the package under test is an installed one: the repository's data/ is not beside it")
    data = load("toynette", batch_size=64)
    assert data.classes == list(CLASSES) and data.missing_in_val == [] and data.train.skipped == []
    assert torch.bincount(data.train.labels).unique().numel() == 1      # as many of each class
    x, _ = next(iter(data.train))
    assert x.shape == (64, 3, SIZE, SIZE) and x.std() > 0.3


def imagenette(folder):
    for split in ("train", "val"):
        for i, wnid in enumerate(WNIDS):
            save(folder / split / wnid / f"{wnid}_{i}.JPEG", (25 * i, 0, 0))


def test_imagenettes_folders_get_their_names_in_the_order_of_their_ids(tmp_path):
    imagenette(tmp_path / "imagenette2-160")
    data = load("imagenette", root=tmp_path)
    assert data.classes[:2] == ["tench", "English springer"] and data.classes[9] == "parachute"
    assert data.val.labels.tolist() == list(range(10))
    assert (data.val.images[:, 0].float().mean((1, 2)) - 25 * torch.arange(10)).abs().max() < 3


def test_imagenette_takes_a_larger_copy_but_a_given_size_does_not(tmp_path):
    imagenette(tmp_path / "imagenette2-320")
    for name in ("imagenette", "imagenette-320"):
        assert len(load(name, root=tmp_path).classes) == 10
    with pytest.raises(FileNotFoundError):
        load("imagenette-160", root=tmp_path)


def test_the_data_folder_of_a_folder_above_is_found_when_the_package_lives_elsewhere(tmp_path, monkeypatch):
    imagenette(tmp_path / "data/imagenette2-160")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(download, "__file__", str(tmp_path / "venv/lib/scnet_minimal/lab/data/download.py"))
    assert len(load("imagenette").classes) == 10


def test_a_missing_imagenette_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("imagenette-320", root=tmp_path)
    for part in ("imagenette2-320", str(tmp_path), "download=True", "imagenette2-320.tgz"):
        assert part in str(error.value)


def test_a_missing_toynette_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"study toynette --out"):
        load("toynette", root=tmp_path)


# --- fetching Imagenette, from a server on this machine ---------------------------------------------------

ARCHIVE, TABLES = "/imagenette2-160.tgz", "/datasets/frgfm/imagenette/resolve/refs%2Fconvert%2Fparquet/160px/"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What the two hosts offer, in small: the archive, and the hub's list and tables."""
    folder = tmp_path_factory.mktemp("served")
    imagenette(folder / "imagenette2-160")
    with tarfile.open(folder / "archive.tgz", "w:gz") as archive:
        archive.add(folder / "imagenette2-160", "imagenette2-160")
    write_tables(folder / "160px", list(CLASSES), {"train": list(range(10)), "validation": [4, 0, 9]})
    return {ARCHIVE: (folder / "archive.tgz").read_bytes(),
            TABLES + "train/0000.parquet": (folder / "160px/train.parquet").read_bytes(),
            TABLES + "validation/0000.parquet": (folder / "160px/validation.parquet").read_bytes()}


@pytest.fixture
def host(served, monkeypatch):
    with Loopback(served) as server:
        digest = hashlib.md5(served[ARCHIVE]).hexdigest()
        monkeypatch.setattr(download.datasets.Imagenette, "_ARCHIVES", {"160px": (server.address + ARCHIVE, digest)})
        monkeypatch.setattr(download, "HUB", server.address)
        monkeypatch.setattr(download, "HOST_TIMEOUT", 2)
        yield server


def test_imagenette_is_fetched_once_and_only_when_wanted(host, tmp_path):
    with pytest.raises(FileNotFoundError):
        load("imagenette", root=tmp_path)
    assert load("imagenette", root=tmp_path, download=True).val.labels.tolist() == list(range(10))
    assert set(host.asked) == {ARCHIVE}
    host.asked.clear()
    assert load("imagenette", root=tmp_path, download=True).val.labels.tolist() == list(range(10))
    assert host.asked == [] and os.listdir(tmp_path) == ["imagenette2-160"]


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_a_spoilt_archive_never_passes_for_a_data_set_and_the_hub_helps_out(host, tmp_path, spoil):
    host.spoil[ARCHIVE] = spoil
    with pytest.raises(DataError) as error:
        load("imagenette", root=tmp_path, download=True)
    for part in ("archive:", "hub:", "imagenette2-160.tgz", str(tmp_path)):
        assert part in str(error.value)
    assert os.listdir(tmp_path) == []
    host.hub = True
    data = load("imagenette", root=tmp_path, download=True)
    assert (data.classes, data.val.labels.tolist()) == (list(CLASSES), [4, 0, 9])
    assert os.listdir(tmp_path) == ["imagenette2-160"]


def test_a_spoilt_table_of_the_hub_never_passes_for_a_data_set(host, tmp_path):
    host.hub = True
    host.spoil = {ARCHIVE: SPOILT["forbidden"], TABLES + "validation/0000.parquet": SPOILT["truncated"]}
    with pytest.raises(DataError, match="hub:"):
        load("imagenette", root=tmp_path, download=True)
    assert os.listdir(tmp_path) == []


def test_what_an_interrupted_fetch_left_behind_is_neither_taken_nor_in_the_way(host, tmp_path):
    save(tmp_path / ".imagenette2-160.part/imagenette2-160/train/n01440764/half.JPEG")      # killed while unpacking
    with pytest.raises(FileNotFoundError):
        load("imagenette", root=tmp_path)
    assert len(load("imagenette", root=tmp_path, download=True).classes) == 10
    assert os.listdir(tmp_path) == ["imagenette2-160"]


# --- the order of an epoch: classification's and detection's ----------------------------------------------

def test_an_epoch_is_a_function_of_seed_and_epoch_and_can_begin_anywhere():
    def order(seed, epoch, start=0):
        sampler = EpochSampler(20, 6, seed=seed)
        sampler.set_epoch(epoch, start)
        return list(sampler)

    assert order(0, 1) == order(0, 1) != order(1, 0) and order(0, 1) != order(0, 2)
    assert order(0, 1)[2:] == order(0, 1, start=2)
    assert sorted(sum(order(0, 1), [])) == list(range(20))


@pytest.mark.parametrize("n, world, sizes", [
    (20, 1, [6, 6, 6]), (20, 2, [3, 3, 3]), (5, 1, [5]), (5, 2, [2]), (1, 2, [])])
def test_detection_leaves_out_what_remains_of_the_last_batch(n, world, sizes):
    for rank in range(world):
        sampler = EpochSampler(n, 6, seed=0, shard=(rank, world), drop_last=True)
        assert [len(batch) for batch in sampler] == sizes and len(sampler) == len(sizes)


def test_half_of_the_images_are_mirrored_and_none_in_validation():
    sampler = EpochSampler(1000, 10, seed=0)
    flips = sampler.flips()
    assert 400 < flips.sum() < 600 and torch.equal(flips, sampler.flips())
    sampler.set_epoch(1)
    assert not torch.equal(flips, sampler.flips())
    assert not EpochSampler(1000, 10).flips().any()


# --- shares of several processes --------------------------------------------------------------------------

@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_shares_of_a_batch_make_up_the_batch(colours, way):
    whole = load(colours, **way).train
    shares = [load(colours, shard=(rank, 2), **way).train for rank in range(2)]
    assert len(whole) == len(shares[0]) == len(shares[1]) == 3
    for (x, _), *parts in zip(whole, *shares):
        assert [len(part_y) for _, part_y in parts] == [2, 2]
        both = torch.stack([part_x for part_x, _ in parts], 1).flatten(0, 1)        # dealt out like cards
        assert torch.allclose(both, x, atol=1e-6)


def test_shares_of_the_validation_images_leave_none_out_and_double_none(colours):
    whole = load(colours).val
    for world in (2, 3, 4, 8):
        shares = [load(colours, shard=(rank, world), batch_size=8 * world).val for rank in range(world)]
        found = torch.cat([x for share in shares for x, _ in share])
        expected = torch.cat([x for x, _ in whole])
        assert sorted(found.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(expected.sum((1, 2, 3)).tolist()))
        assert sorted(y for share in shares for _, ys in share for y in ys.tolist()) == sorted(whole.labels.tolist())


def test_all_processes_take_the_same_number_of_equal_steps(colours):
    for batch_size, sizes in {4: [2, 2, 2], 6: [3, 3], 12: [6], 10: [5], 2: [1] * 6, 26: [6]}.items():
        shares = [load(colours, shard=(rank, 2), batch_size=batch_size).train for rank in range(2)]
        assert all([len(y) for _, y in share] == sizes and len(share) == len(sizes) for share in shares)


def test_a_batch_that_cannot_be_shared_is_an_error(colours):
    with pytest.raises(UserError, match="5 .* 2 processes: take 4"):
        load(colours, batch_size=5, shard=(0, 2))


def test_a_process_whose_whole_share_is_unreadable_still_takes_its_step(tmp_path):
    for i in range(40):
        save(tmp_path / f"train/a/{i:02}.jpg")
    (tmp_path / "train/a/07.jpg").write_bytes(b"no image at all")
    save(tmp_path / "val/a/0.jpg")
    shares = [load(tmp_path, batch_size=2, shard=(rank, 2), memory_limit=0).train for rank in range(2)]
    with pytest.warns(UserWarning, match="1 of 40"):
        assert [[len(y) for _, y in share] for share in shares] == [[1] * 20] * 2


@ways
def test_an_epoch_can_begin_anywhere(photos, way):
    train = load(photos, batch_size=2, **way).train
    train.set_epoch(3)
    expected = list(train)
    train.set_epoch(3, start=2)
    for (x, y), (x2, y2) in zip(expected[2:], train, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert len(train) == len(expected)


def test_a_long_decoding_shows_its_progress_and_a_short_one_does_not(colours, monkeypatch, capsys):
    load(colours)
    assert "decode" not in "".join(capsys.readouterr())
    monkeypatch.setattr(images, "tqdm", partial(tqdm, mininterval=0, miniters=1))   # drawn after every image
    many = images.ImageList([b""] * 2001, lambda item, index: torch.zeros(3, 8, 8, dtype=torch.uint8))
    images.decode_all(many, 8, threads=2)
    shown = capsys.readouterr()
    assert "2001/2001" in shown.out and shown.err == ""


def test_who_only_evaluates_needs_no_training_images(photos, tmp_path):
    (tmp_path / "val").symlink_to(photos / "val", target_is_directory=True)
    with pytest.raises(FileNotFoundError, match="train"):
        load(tmp_path)
    alone, whole = load(tmp_path, only_val=True), load(photos, only_val=True)
    assert alone.classes == whole.classes and torch.equal(alone.val.labels, whole.val.labels)
    assert len(whole.train.labels) == len(load(photos).train.labels)        # with both, training stays training
