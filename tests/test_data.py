"""Pictures become batches: complete, upright, repeatable, and with a clear word where something is wrong."""
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scnet_minimal.lab import data as room
from scnet_minimal.lab import pictures as files
from scnet_minimal.lab.data import best_device, denormalize, load_data, normalize
from scnet_minimal.lab.toynette import CLASSES, WNIDS

COLOURS = {"blue": (20, 40, 230), "green": (30, 200, 40), "red": (220, 30, 20)}     # class -> its colour
SIZE = 16


def save(path, colour=(90, 90, 90), shape=(24, 20), **options):
    """A plain picture of shape (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape, colour).save(path, **options)


def photo_like(width, height):
    """Red grows to the right, green downwards, blue sits in a corner: no flip or turn looks the same."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 * ((x < 64) & (y < 64))], 2).astype(np.uint8))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """13 + 7 pictures of three classes, each of its class's colour, of several shapes and formats."""
    root = tmp_path_factory.mktemp("colours")
    for split, count in {"train": 13, "val": 7}.items():
        for i in range(count):
            name = list(COLOURS)[i % 3]
            file = f"{i:02}.{['jpg', 'png', 'JPEG'][i % 3]}"
            save(root / split / name / file, COLOURS[name], (20 + 7 * i, 40 - i))
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """9 + 5 different pictures of two classes, wide, tall, small and large."""
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
    """root with one sound picture in train/a and val/a."""
    save(root / "train/a/0.png")
    save(root / "val/a/0.png")
    return root


ways = pytest.mark.parametrize("way", [{}, {"memory_limit": 0}, {"memory_limit": 0, "workers": 2}],
                               ids=["in memory", "streamed", "streamed by workers"])


def test_the_parameters_do_choose_between_memory_and_streaming(colours):
    assert isinstance(load(colours).train, room.InMemory)
    assert isinstance(load(colours, memory_limit=0).train, room.Streamed)


@ways
def test_batches_have_the_promised_shapes_types_and_device(colours, way):
    data = load(colours, **way)
    for split in (data.train, data.val):
        for x, y in split:
            assert x.shape == (len(y), 3, SIZE, SIZE) and len(y) <= 4
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            assert x.device.type == y.device.type == "cpu"


@ways
def test_labels_stay_with_their_pictures(colours, way):
    data = load(colours, **way)
    assert data.classes == list(COLOURS)
    colour = torch.tensor([COLOURS[name] for name in data.classes]) / 255
    for split in (data.train, data.val):
        for x, y in split:
            seen = denormalize(x).mean((2, 3))
            assert torch.equal(torch.cdist(seen, colour).argmin(1), y)
            assert (seen - colour[y]).abs().max() < 0.02        # and no border darkens a crop


@ways
def test_validation_shows_every_picture_once_and_in_order(photos, way):
    for batch_size in [3] if way.get("workers") else [1, 3, 5, 7, 64]:
        val = load(photos, batch_size=batch_size, **way).val
        batches = list(val)
        assert len(batches) == len(val) == -(-5 // batch_size)
        expected = normalize(torch.stack([val.images[i] for i in range(5)]))
        assert torch.equal(torch.cat([x for x, _ in batches]), expected)
        assert torch.cat([y for _, y in batches]).tolist() == val.labels.tolist() == [0, 0, 0, 1, 1]
        assert len({x.sum().item() for x in expected}) == 5


@ways
def test_a_training_epoch_shows_every_picture_once_in_another_order(colours, way):
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
def test_the_augmentation_of_a_picture_does_not_depend_on_the_batch_size(photos, way):
    small, large = (torch.cat([x for x, _ in load(photos, batch_size=b, **way).train]) for b in (3, 9))
    assert torch.allclose(small, large, atol=1e-6)


def test_memory_and_streaming_agree_on_validation_pictures(photos):
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
def test_a_validation_picture_stays_upright(tmp_path, way, shape):
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


def test_a_crop_of_everything_is_the_stored_picture(photos):
    """Where the view is the whole picture and nothing is enlarged, sampling changes nothing."""
    x = load(photos).train.images[:3].float()
    same, flipped = torch.tensor([[1, 1, 0, 0]] * 3), torch.tensor([[-1, 1, 0, 0]] * 3)
    assert torch.allclose(room._look(x, same.float(), x.shape[-1]), x, atol=2e-3)
    assert torch.allclose(room._look(x, flipped.float(), x.shape[-1]), x.flip(3), atol=2e-3)


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


def test_a_last_training_batch_of_one_is_dropped_and_no_other(colours):
    def sizes(batch_size):
        train = load(colours, batch_size=batch_size).train
        found = [len(y) for _, y in train]
        assert len(found) == len(train)
        return found

    assert sizes(4) == [4, 4, 4] and sizes(12) == [12]
    assert sizes(5) == [5, 5, 3] and sizes(13) == sizes(14) == [13] and sizes(1) == [1] * 13


def test_a_single_training_picture_is_kept(tmp_path):
    assert len(load(pair(tmp_path)).train) == 1


def test_the_default_device_is_the_best_there_is(colours):
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert best_device().type == expected == load(colours, device=None).val.labels.device.type


# --- pictures of every kind -------------------------------------------------------------------------------

def test_every_kind_of_picture_is_read_as_it_looks(tmp_path):
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
    (tmp_path / "train/a/notes.txt").write_text("not a picture")
    (tmp_path / "train/a/._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "train/stray.png").write_bytes(b"beside the classes")
    save(tmp_path / "train/.ipynb_checkpoints/0.png")
    data = load(tmp_path)
    assert data.classes == ["a"] and len(data.train.labels) == 1


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_a_few_broken_pictures_are_skipped_with_one_warning(tmp_path, way):
    for i in range(40):
        save(tmp_path / f"train/a/{i:02}.jpg", shape=(64, 64))
        save(tmp_path / f"val/a/{i:02}.jpg", shape=(64, 64))
    whole = (tmp_path / "val/a/07.jpg").read_bytes()
    (tmp_path / "val/a/07.jpg").write_bytes(whole[: len(whole) // 2])       # cut off
    (tmp_path / "val/a/11.jpg").write_bytes(b"no picture at all")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        val = load(tmp_path, **way).val
        seen = [sum(len(x) for x, _ in val) for epoch in range(2)]
    assert seen == [38, 38] and len(val.skipped) == 2
    (warning,) = caught
    assert re.search(r"2 of 40 pictures.*07\.jpg.*11\.jpg.*skipped", str(warning.message))


@pytest.mark.parametrize("way", [{}, {"memory_limit": 0}], ids=["in memory", "streamed"])
def test_many_broken_pictures_are_an_error(tmp_path, way):
    for i in range(8):
        save(tmp_path / f"train/a/{i}.jpg")
    (tmp_path / "train/a/3.jpg").write_bytes(b"no picture at all")
    save(tmp_path / "val/a/0.jpg")
    with pytest.raises(RuntimeError, match=r"1 of 8 pictures.*3\.jpg"):
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
    with pytest.raises(ValueError, match="zebra"):
        load(tmp_path)


def test_an_empty_training_class_is_an_error(tmp_path):
    pair(tmp_path)
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(ValueError, match="No training pictures of empty"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_a_split_is_an_error_that_shows_what_is_there(tmp_path, split):
    pair(tmp_path)
    (tmp_path / split).rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=rf"No {split}.*other"):
        load(tmp_path)


def test_a_split_without_pictures_is_an_error(tmp_path):
    pair(tmp_path)
    (tmp_path / "train/a/0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"No pictures in .*train.*\.png"):
        load(tmp_path)


def test_a_file_or_a_missing_folder_is_an_error(tmp_path):
    file = tmp_path / "pictures.zip"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_a_misspelt_name_is_an_error_that_lists_the_names():
    with pytest.raises(ValueError, match="'imagenete'.*toynette, imagenette, imagenette-160, imagenette-320"):
        load("imagenete")


@pytest.mark.parametrize("wrong", [{"size": 7}, {"batch_size": 0}, {"scale": (0, 1)}, {"scale": (0.5, 1.1)}])
def test_impossible_numbers_are_an_error(colours, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load(colours, **wrong)


# --- Toynette and Imagenette ------------------------------------------------------------------------------

def write_tables(folder, names, splits):
    """A small parquet set in Toynette's shape; the picture's red is 25 times its label."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture
    folder.mkdir(parents=True)
    for split, labels in splits.items():
        encoded = []
        for label in labels:
            buffer = io.BytesIO()
            Image.new("RGB", (20, 20), (25 * label, 0, 0)).save(buffer, "PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        features = Features({"image": Picture(), "label": ClassLabel(names=names)})
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
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"image and label.*picture"):
        load(tmp_path)


def test_the_embedded_toynette_is_found_without_being_told_where():
    if Path(room.__file__).resolve().parents[2] != Path(__file__).resolve().parents[1]:
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
    monkeypatch.setattr(files, "__file__", str(tmp_path / "venv/lib/scnet_minimal/lab/pictures.py"))
    assert len(load("imagenette").classes) == 10


def test_a_missing_imagenette_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("imagenette-320", root=tmp_path)
    for part in ("imagenette2-320", str(tmp_path), "download=True", 'size="320px"', "imagenette2-320.tgz"):
        assert part in str(error.value)


def test_a_missing_toynette_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)toynette in .*comes with.*lab\.toynette --out"):
        load("toynette", root=tmp_path)


def test_download_asks_torchvision_for_the_right_size_and_only_when_needed(tmp_path, monkeypatch):
    asked = []

    def fetch(root, size, download):
        asked.append((Path(root), size, download))
        imagenette(Path(root) / "imagenette2-160")

    monkeypatch.setattr(files.datasets, "Imagenette", fetch)
    for _ in range(2):
        assert len(load("imagenette", root=tmp_path, download=True).classes) == 10
    assert asked == [(tmp_path, "160px", True)]


def test_a_long_decoding_shows_its_progress_and_a_short_one_does_not(colours, monkeypatch, capsys):
    load(colours)
    assert "decode" not in capsys.readouterr().err
    pictures = files.Pictures([b""] * 2001, lambda item, index: torch.zeros(3, 8, 8, dtype=torch.uint8))
    files.decode(pictures, 8, threads=2)
    assert "2001/2001" in capsys.readouterr().err
