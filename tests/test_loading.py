"""Workers that stay, copies that run ahead, crops that are known before the image is decoded."""
import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from scnet_minimal.lab.data import images, load_data, loading
from scnet_minimal.lab.data.loading import Reader, ahead


class Worker(Dataset):
    """An item is the process that made it."""

    def __getitem__(self, item):
        return os.getpid()


def test_workers_stay_for_the_next_epoch_and_an_epoch_left_half_way_takes_its_own_along():
    reader = Reader(Worker(), [[0], [1], [2], [3]], tuple, 2, False)
    first, second = list(reader), list(reader)
    assert set(first) == set(second) and len(set(first)) == 2 and os.getpid() not in first[0]
    pid = next(iter(reader))
    assert pid in first and not set(first) & set(reader)
    outer = iter(reader)
    next(outer)
    assert len(list(reader)) == 4 == 1 + len(list(outer))           # one epoch within another


@pytest.mark.slow
def test_workers_that_are_spawned_read_what_this_process_reads(squares, tmp_path, monkeypatch):
    """As on macOS and Windows, where all that a worker needs is pickled."""
    folder = squares(tmp_path, 20)
    monkeypatch.setattr(loading, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    alone, helped = (load_data(folder, size=16, batch_size=24, device="cpu", memory_limit=0, workers=n).train
                     for n in (0, 1))
    monkeypatch.setattr(loading, "DataLoader", DataLoader)
    expected = list(alone)
    monkeypatch.setattr(loading, "DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    for (x, y), (their_x, their_y) in zip(expected, helped, strict=True):
        assert torch.equal(x, their_x) and torch.equal(y, their_y)


def test_on_cuda_the_next_batch_is_copied_before_this_one_is_used(monkeypatch):
    done = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            done.append("aside")

        def __exit__(self, *_):
            done.append("back")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: done.append(f"kept for {stream.name}"))

    def move(i):
        done.append(f"copy {i}")
        return [torch.zeros(1)], [{"x": torch.zeros(1), "id": 3}]

    for i, _ in enumerate(ahead(range(2), move, torch.device("cuda", 0))):
        done.append(f"use {i}")
    wait = ["main waits for side", "kept for main", "kept for main"]
    assert done == ["side waits for main", "aside", "copy 0", "back", *wait, "aside", "copy 1", "back", "use 0", *wait,
                    "use 1"]
    assert list(ahead([], move, torch.device("cuda", 0))) == []


def test_little_shared_memory_is_named_before_a_worker_dies_of_it(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64 << 20, 0, 64 << 20))
    with pytest.warns(UserWarning, match="64 MB.*shm-size"):
        loading.warn_of_little_shared_memory(8, 20 << 20)
    loading.warn_of_little_shared_memory(0, 20 << 20)               # no worker needs any
    loading.warn_of_little_shared_memory(1, 20 << 20)


# --- decoding -----------------------------------------------------------------------------------------------------

def drawn(n, width, height, scale=(0.08, 1.0)):
    return np.array([images.random_crop(width, height, scale, np.random.default_rng(i)) for i in range(n)])


def test_random_crops_are_torchvisions():
    ours = drawn(1500, 500, 375)
    torch.manual_seed(0)
    meta = torch.empty(3, 375, 500, device="meta")
    theirs = np.array([transforms.RandomResizedCrop.get_params(meta, (0.08, 1.0), images.RATIO) for _ in range(1500)])
    left, top, w, h = ours.T
    assert (left >= 0).all() and (left + w <= 500).all() and (top >= 0).all() and (top + h <= 375).all()
    for mine, other in zip((top, left, h, w), theirs.T):            # standard errors of 1 to 3 %
        assert mine.mean() == pytest.approx(other.mean(), rel=0.09)
        assert mine.std() == pytest.approx(other.std(), rel=0.09)
    for width, height in ((1000, 10), (10, 1000)):                  # no crop of an allowed shape has the area
        top, left, h, w = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1), images.RATIO)
        assert drawn(1, width, height, (0.9, 1)).tolist() == [[left, top, w, h]]


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_no_larger_than_its_crop_needs_and_looks_the_same(tmp_path, monkeypatch, orientation):
    y, x = np.mgrid[:600, :800]
    photo = Image.fromarray(np.stack([x * 255 / 799, y * 255 / 599, (x // 40 + y // 40) % 2 * 90], 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo if orientation == 1 else photo.transpose(Image.Transpose.ROTATE_90)      # 6: turn it back, clockwise
    stored.save(tmp_path / "x.jpg", quality=95, exif=exif)
    photo.save(tmp_path / "x.png")
    decode, sizes = images._decode, []

    def watched(image, least):
        decoded = decode(image, least)
        sizes.append(decoded.size)
        return decoded

    monkeypatch.setattr(images, "_decode", watched)
    for i in range(12):
        small, whole = (images.augmented_view(str(tmp_path / name), (0, 0, 1, i), size=64, scale=(0.2, 1.0))
                        for name in ("x.jpg", "x.png"))
        left, top, w, h = images.random_crop(800, 600, (0.2, 1.0), np.random.default_rng((0, 0, 1, i)))
        width, height = sizes[-2]
        assert width < 800 and w * width / 800 >= 63 and h * height / 600 >= 63
        assert small.shape == (3, 64, 64) and (small.float() - whole.float()).abs().mean() < 6
    assert len({size for size in sizes[::2]}) > 1                   # a quarter or an eighth, as the crop allows
