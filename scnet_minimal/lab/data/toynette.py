"""Toynette: Imagenette's ten classes as drawings, with the boxes, masks and keypoints that photographs lack.

A rehearsal set: what runs on Imagenette runs here without a download; no accuracy on it is a result.

    load_dataset("data/toynette")                  # the committed set: columns image, label
    labels, seeds = plan("train")                  # row i is draw(labels[i], seeds[i]).image, before JPEG
    scene = draw([4, 9], seed=7, size=224)         # any number of further scenes

An image is a background, clutter, the object, clutter in front of it, and the light; all drawn four times too large
and averaged down, so that edges are smooth. The objects themselves are in glyphs.py.

    python -m scnet_minimal.lab.study toynette --out data/toynette         draws the committed set again
"""
import io
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from ..checks import make_folder
from ..errors import FileError
from .glyphs import GLYPHS, Pen, any_colour, arc, hsv, smooth, tone

CLASSES = ("tench", "English springer", "cassette player", "chain saw", "church",
           "French horn", "garbage truck", "gas pump", "golf ball", "parachute")
WNIDS = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
         "n03394916", "n03417042", "n03425413", "n03445777", "n03888257")
KEYPOINTS = ("top", "bottom", "front", "back", "centre")   # of the object: they turn and flip with it
SPLITS = {"train": (100, 0), "validation": (30, 1_000_000)}   # images per class, first seed
SUPERSAMPLE = 4


class Scene(NamedTuple):
    """One image and its N objects, in the order of the labels. Coordinates in pixels."""
    image: np.ndarray       # (H, W, 3) uint8
    labels: np.ndarray      # (N,) int64
    boxes: np.ndarray       # (N, 4) float32: x0, y0, x1, y1 around the visible mask; x1 and y1 are exclusive
    masks: np.ndarray       # (N, H, W) bool: visible pixels; what something later covers is taken out
    keypoints: np.ndarray   # (N, 5, 3) float32: x, y, COCO's v: 0 outside the image, 1 covered, 2 visible


def smooth_field(rng, cells, side, low=0.0, high=1.0):
    """A smooth random field: cells x cells numbers in low..high, enlarged to (side, side, 1)."""
    grid = Image.fromarray(rng.uniform(low, high, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))[..., None]


def background(rng, side):
    """(side, side, 3) float in about 0..255. Drawn before the object is, so it cannot tell the class."""
    u = rng.uniform
    a, b, c = (np.array(any_colour(rng, (0.05, 0.6), (0.35, 1))) for _ in range(3))
    if rng.random() < 0.5:                                        # sky over grass, sand, earth or tar
        a, b = (np.array(hsv(u(0.52, 0.64), u(0.05, 0.5), u(0.6, 1))) for _ in range(2))
        c = np.array(hsv(u(0.06, 0.4), u(0.05, 0.65), u(0.35, 0.85)))
    (y, x), kind = np.mgrid[:side, :side] / side, rng.integers(5)
    ground = a + (b - a) * smooth_field(rng, rng.choice([2, 3, 5]), side)   # two colours that flow into each other
    if kind in (1, 2):                                            # with a horizon, level or nearly
        below = (y > u(0.35, 0.8) + u(-0.1, 0.1) * (x - 0.5))[..., None]
        ground = np.where(below, c * smooth_field(rng, rng.integers(8, 50), side, 0.75, 1.15), ground)
    if kind == 3:                                                 # or boards, or tiles
        n, angle = rng.integers(3, 10), u(0, math.pi)
        across, along = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        odd = (np.floor(across * n) + rng.integers(2) * np.floor(along * n)) % 2 > 0
        ground = np.where(odd[..., None], ground, ground * u(0.6, 0.9) + c * 0.15)
    grain = smooth_field(rng, 21, side) + smooth_field(rng, 42, side) - 1
    return ground * (1 + u(0, 0.25) * grain)


def clutter(rng, side, low, high):
    """A Pen that has drawn a random blob, bar, ring, polygon, panel or scrap between low and high of the side.

    A scrap is a small cut-out of one of the ten drawings: thus a detail alone does not tell the class.
    """
    x, y = rng.uniform(0, side, 2)
    reach, kind, n = side * rng.uniform(low, high) / 2, rng.integers(7), rng.integers(3, 9)
    colour = any_colour(rng, (0, 0.95), (0.15, 1))
    ray = arc(0, 0, 100, 100, 0, 360 - 360 / n, n) * rng.uniform(0.45, 1, (n, 1))
    pen = Pen(rng, side, x, y, min(reach, 0.13 * side) if kind > 4 else reach)
    if kind == 0:
        pen.poly(ray, colour)
    elif kind == 1:
        pen.tube(smooth(rng.uniform(-100, 100, (3, 2)), False), rng.uniform(10, 30), colour)
    elif kind == 2:
        pen.tube(arc(0, 0, 85, 85), rng.uniform(12, 40), colour)
    elif kind == 3:
        pen.box(-100, -60, 100, 60, colour, 10)
        for t in np.linspace(-80, 80, n):
            pen.line([(t, -50), (t, 50)], 10, tone(colour, 0.6))
    else:
        pen.blob(ray, colour)
    if kind > 4:
        glyph, *freedom = GLYPHS[rng.integers(10)]
        scrap = Pen(rng, side, *rng.normal((x, y), 0.12 * side), side * rng.uniform(0.25, 0.4), *freedom)
        glyph(scrap, rng)
        pen.ink, pen.mask = scrap.ink, ImageChops.darker(scrap.mask, pen.mask)
    return pen


def draw(labels, seed, size=128):
    """One scene, wholly determined by its arguments.

    labels: a class index in 0..9, or several: then each object has a cell of a grid to itself, and later ones lie in
    front of earlier ones. seed: integer from 0 up. size: height and width in pixels; another size gives the same
    scene, but for rounding and noise. Clutter leaves at least 70 % of every object; the image's border may cut a
    little more off. Raises ValueError for labels that do not exist or do not fit, and for a bad size or seed.
    """
    labels, given = np.atleast_1d(labels), labels
    if labels.size == 0 or labels.ndim > 1 or labels.dtype.kind not in "iu" or set(labels) - set(range(10)):
        raise ValueError(f"labels must be a class index from 0 to 9, or a sequence of them; found {given!r}")
    n, columns = len(labels), math.ceil(math.sqrt(len(labels)))
    rows = math.ceil(n / columns)
    if size != int(size) or size < 24 * columns:
        raise ValueError(f"size must be whole and at least {24 * columns} px for {n} object(s); found {size!r}")
    if seed != int(seed) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0 up; found {seed!r}")

    rng, side = np.random.default_rng(int(seed)), int(size) * SUPERSAMPLE
    ground = Image.fromarray(background(rng, int(size)).clip(0, 255).astype(np.uint8))
    canvas, masks, points, whole = ground.resize((side, side), Image.Resampling.BILINEAR), [], [], []

    def put(pen):
        light = Image.fromarray(rng.integers(160, 256, (2, 2), dtype=np.uint8)).convert("RGB")
        if box := pen.mask.getbbox():                             # else it lies outside the image
            mask = pen.mask.crop(box)
            canvas.paste(ImageChops.multiply(pen.ink.crop(box), light.resize(mask.size)), box, mask)
            masks[:] = [ImageChops.subtract(m, pen.mask) for m in masks]

    for _ in range(rng.integers(2, 6)):
        put(clutter(rng, side, 0.08, 0.3))
    w, h = side / columns, side / rows
    for label, cell in zip(labels, rng.permutation(rows * columns)):
        glyph, *freedom = GLYPHS[label]
        reach = min(w, h) / 2 * (rng.uniform(0.55, 0.9) if len(labels) == 1 else rng.uniform(0.65, 0.98))
        x, y = (rng.uniform(min(0.85 * reach, s / 2), max(s - 0.85 * reach, s / 2)) for s in (w, h))
        pen = Pen(rng, side, cell % columns * w + x, cell // columns * h + y, reach, *freedom)
        points.append(np.array(pen.at(glyph(pen, rng))) / SUPERSAMPLE)
        put(pen)
        masks.append(pen.mask)
        whole.append(np.count_nonzero(pen.mask))
    for _ in range(rng.integers(0, 3)):
        pen = clutter(rng, side, 0.08, 0.3)
        if all(np.count_nonzero(ImageChops.subtract(m, pen.mask)) >= 0.7 * n for m, n in zip(masks, whole)):
            put(pen)

    image = np.asarray(canvas.reduce(SUPERSAMPLE), float)
    grey = image.mean(2, keepdims=True)                           # colour, white balance, contrast, noise
    image = (grey + (image - grey) * min(1, rng.uniform(0, 4))) * rng.uniform(0.85, 1.1, 3)
    image = 128 + (image - 128) * rng.uniform(0.6, 1.2) + rng.uniform(-20, 30)
    image += rng.normal(0, rng.uniform(1, 5), image.shape)
    masks = np.stack([np.asarray(m.reduce(SUPERSAMPLE)) >= 128 for m in masks])
    boxes = np.stack([tight_box(m) for m in masks])
    keypoints = np.stack([visible_keypoints(p, m) for p, m in zip(points, masks)])
    return Scene(image.clip(0, 255).astype(np.uint8), labels.astype(np.int64), boxes, masks, keypoints)


def tight_box(mask):
    """The box around a mask: (H, W) bool -> (4,) x0, y0, x1, y1."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)


def visible_keypoints(points, mask):
    """(K, 2) points and the visible mask -> (K, 3) x, y, v; a point outside the image is 0, 0, 0."""
    x, y = np.floor(points).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    v = inside * (1 + mask[y * inside, x * inside])
    return np.c_[points * inside[:, None], v].astype(np.float32)


def plan(split):
    """Labels (n,) and seeds (n,) of "train" or "validation": draw(labels[i], seeds[i]) is row i, with box and mask."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; found {split!r}")
    per_class, first = SPLITS[split]
    labels = np.random.default_rng(first).permutation(np.repeat(np.arange(10), per_class))
    return labels, first + np.arange(len(labels))


def write_toynette(out):
    """Draw both splits into the folder `out` as parquet, in about a minute; a file gets its name when it is complete.

    FileError if the folder cannot be made or written.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature
    from tqdm import tqdm

    out = Path(out)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(CLASSES))})
    make_folder(out)
    try:
        for split in SPLITS:
            labels, seeds = plan(split)
            rows = {"image": [], "label": labels}
            for label, seed in zip(tqdm(labels, desc=split, unit=" images"), seeds):
                jpeg = io.BytesIO()
                Image.fromarray(draw(label, seed).image).save(jpeg, "JPEG", quality=92)
                rows["image"].append({"bytes": jpeg.getvalue(), "path": None})
            part = out / f".{split}.part"
            Dataset.from_dict(rows, features=features).to_parquet(part)
            os.replace(part, out / f"{split}.parquet")
    except OSError as error:
        raise FileError(f"Toynette cannot be written to {out}: {error.strerror or error}.") from error
