"""Runs before torch is imported; the little data set that several files train on; and a browser."""
import functools
import os
import shutil
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")    # idle CPU threads sleep: tests of two suites can share a machine
# These tests compare with the CPU's numbers, to the bit: whatever GPU there is, they and what they start do not see it.
if not any("test_gpu" in word for word in sys.argv):   # python -m pytest tests/test_gpu.py is the command that does
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def squares():
    """A function that fills a folder with two classes, blue and red: 24 pictures each to train on, and `val` others."""
    def draw(root, side, val=8):
        for split, n in (("train", 24), ("val", val)):
            for name, channel in (("blue", 2), ("red", 0)):
                (root / split / name).mkdir(parents=True)
                for i in range(n):
                    colour = [40 + i, 60 + i, 50 + i]
                    colour[channel] = 200 + i
                    Image.new("RGB", (side, side), tuple(colour)).save(root / split / name / f"{i:02}.png")
        return root
    return draw


@pytest.fixture(scope="session", autouse=True)
def no_mps():
    """Nor do tests see Apple's GPU."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: False))
        yield


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, under playwright; without one of them, a skip."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        try:
            chromium = p.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()
