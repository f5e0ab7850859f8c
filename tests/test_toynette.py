"""Toynette: what is committed is what the code draws; boxes, masks and keypoints belong to the image."""
import socket
from pathlib import Path

import numpy as np
import pytest

from scnet_minimal.lab.data import toynette
from scnet_minimal.lab.data.toynette import CLASSES, KEYPOINTS, WNIDS, draw, plan, write_toynette
from scnet_minimal.lab.errors import FileError

FOLDER = Path(__file__).parents[1] / "data" / "toynette"


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    datasets = pytest.importorskip("datasets")

    def refuse(*_):
        raise OSError("this test has no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return datasets.load_dataset(str(FOLDER), cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_the_folder_loads_without_a_network_and_is_balanced(committed):
    assert {name: len(split) for name, split in committed.items()} == {"train": 1000, "validation": 300}
    for split in committed.values():
        assert split.column_names == ["image", "label"]
        assert split.features["label"].names == list(CLASSES)
        assert len(set(np.bincount(split["label"], minlength=10))) == 1
        assert split[0]["image"].size == (128, 128) and split[0]["image"].format == "JPEG"


def test_the_parquet_file_alone_carries_its_features(tmp_path):
    datasets = pytest.importorskip("datasets")
    split = datasets.load_dataset("parquet", data_files=str(FOLDER / "validation.parquet"), split="train",
                                  cache_dir=str(tmp_path))
    assert isinstance(split.features["image"], datasets.Image)
    assert split.features["label"].names == list(CLASSES)


@pytest.mark.parametrize("name", ["train", "validation"])
def test_drawing_a_committed_row_again_gives_its_image(committed, name):
    labels, seeds = plan(name)
    assert committed[name]["label"] == labels.tolist()

    def difference(i, seed):                                     # means of 4 x 4 pixels: JPEG blurs the noise
        drawn, stored = draw(labels[i], seed).image, np.asarray(committed[name][i]["image"], float)
        return np.abs((stored - drawn).reshape(32, 4, 32, 4, 3).mean((1, 3))).mean()

    for i in range(0, len(labels), 39):
        assert difference(i, seeds[i]) < 2, f"{name} row {i}"
    for i in (0, 39, 78):
        assert difference(i, seeds[i] + 1) > 6, f"{name} row {i}"


def test_the_folder_stays_small():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) < 12e6


def test_the_data_card_names_every_class_and_its_synset():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for i, (name, wnid) in enumerate(zip(CLASSES, WNIDS)):
        assert f"| {i} | {name} | {wnid} |" in card and f"'{i}': {name}" in card


def test_train_and_validation_share_no_seed():
    assert not set(plan("train")[1]) & set(plan("validation")[1])


def test_a_scene_is_determined_by_its_arguments():
    for a, b in zip(draw([3, 5], 11), draw([3, 5], 11)):
        assert np.array_equal(a, b)
    assert not np.array_equal(draw(3, 11).image, draw(3, 12).image)
    assert not np.array_equal(draw(3, 11).masks, draw(3, 12).masks)


@pytest.mark.slow
def test_the_corners_of_an_image_do_not_tell_its_class(committed):
    def corners(split):                                          # their mean colours: (n, 4 * 3)
        x = np.stack([np.asarray(image) for image in split["image"]]).astype(float)
        x = np.concatenate([x[:, :12], x[:, -12:]], 1)
        x = np.concatenate([x[:, :, :12], x[:, :, -12:]], 2)
        return x.reshape(-1, 2, 12, 2, 12, 3).mean((2, 4)).reshape(-1, 12), np.array(split["label"])

    (x, y), (probe, answer) = corners(committed["train"].select(range(500))), corners(committed["validation"])
    mean = np.stack([x[y == label].mean(0) for label in range(10)])
    guess = np.linalg.norm(probe[:, None] - mean, axis=2).argmin(1)
    assert (guess == answer).mean() < 0.2                        # chance is 0.1


@pytest.mark.slow
@pytest.mark.parametrize("label", range(10))
def test_boxes_are_tight_and_keypoints_agree_with_masks(label):
    visible = 0
    for seed in range(6):
        scene = draw(label, 500 + seed, 96)
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        (x0, y0, x1, y1), mask = scene.boxes[0].astype(int), scene.masks[0]
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
        assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
        assert max(x1 - x0, y1 - y0) > 0.25 * 96
        assert scene.keypoints.shape == (1, len(KEYPOINTS), 3)
        for x, y, v in scene.keypoints[0]:
            if v == 0:
                assert (x, y) == (0, 0)
            else:
                assert 0 <= x < 96 and 0 <= y < 96
                assert mask[int(y), int(x)] == (v == 2)
        visible += (scene.keypoints[0, :, 2] == 2).sum()
    assert visible >= 0.7 * 6 * len(KEYPOINTS)                   # the points lie on the object, not beside it


@pytest.mark.slow
def test_keypoints_turn_with_the_object():
    for label in (0, 3, 6):                                      # fish, saw, truck
        ahead = [np.diff(draw(label, seed, 64).keypoints[0, [2, 3], 0])[0] for seed in range(700, 712)]
        assert min(ahead) < 0 < max(ahead)                       # some face left, some face right


def test_objects_of_one_scene_do_not_share_pixels_and_all_show():
    for labels in ([4, 9], [0, 1, 2], [5, 6, 7, 8], [3] * 7):
        scene = draw(labels, sum(labels), 192)
        assert scene.labels.tolist() == labels
        assert scene.masks.sum(0).max() == 1
        for mask, points in zip(scene.masks, scene.keypoints):
            assert mask.sum() > 0.03 * 192 ** 2 / len(labels)
            assert (points[:, 2] == 2).any()


def test_a_scene_at_twice_the_size_is_the_same_scene():
    small, large = draw([2, 8], 5, 96), draw([2, 8], 5, 192)
    assert np.allclose(small.boxes * 2, large.boxes, atol=3)
    assert np.allclose(small.keypoints[..., :2] * 2, large.keypoints[..., :2], atol=3)


@pytest.mark.parametrize(("arguments", "word"), [
    ((10, 0), "labels"), ((-1, 0), "labels"), (([], 0), "labels"), ((0.5, 0), "labels"),
    (([[1]], 0), "labels"), ((0, 0, 0), "size"), ((0, 0, 64.5), "size"), (([0] * 9, 0, 64), "size"),
    ((0, -1), "seed")])
def test_a_bad_argument_is_named_in_one_sentence(arguments, word):
    with pytest.raises(ValueError, match=f"^{word} must .*found") as error:
        draw(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 150


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="train, validation; found 'test'"):
        plan("test")


def test_what_is_written_is_what_load_dataset_reads(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(toynette, "SPLITS", {"train": (1, 0), "validation": (1, 50)})
    write_toynette(tmp_path / "new")
    assert sorted(f.name for f in (tmp_path / "new").iterdir()) == ["train.parquet", "validation.parquet"]
    new = datasets.load_dataset(str(tmp_path / "new"), cache_dir=str(tmp_path / "cache"))
    assert sorted(new["train"]["label"]) == sorted(new["validation"]["label"]) == list(range(10))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="file/x.*Not a directory"):
        write_toynette(tmp_path / "file/x")
