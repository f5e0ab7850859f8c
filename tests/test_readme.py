"""The README keeps what it promises: its code runs, its links lead somewhere, its pictures are the notebooks' own."""
import base64
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, names)
    assert names["y"].shape == (1, 64, 56, 56) and names["logits"].shape == (1, 10)
    assert names["maps"].shape == (1, 2048, 7, 7)
    assert any(isinstance(module, names["SCConv"]) for module in names["model"].modules())      # the ResNeXt


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_local_links_and_pictures_exist(target):
    assert (ROOT / target).is_file()


def test_every_notebook_is_in_the_table():
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"](notebooks/{notebook.name})" in README


@pytest.mark.parametrize("picture, notebook", [
    ("block.png", "03_self_calibrated_convolution"), ("two_dots.png", "01_why_context")])
def test_pictures_are_stored_outputs_of_the_notebooks(picture, notebook):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    stored = [out["data"]["image/png"] for cell in cells for out in cell.get("outputs", [])
              if "image/png" in out.get("data", {})]
    assert (ROOT / "notebooks" / "images" / picture).read_bytes() in [base64.b64decode(png) for png in stored]


def test_the_numbers_beside_the_two_dots_are_the_notebooks():
    cells = json.loads((ROOT / "notebooks" / "01_why_context.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    means = {name.strip(): sum(map(float, re.findall(r"([\d.]+) %", row))) / 3
             for name, row in re.findall(r"^(\S.{14}) +((?:[\d.]+ %\s*){3})$", text, re.M)}
    dilated, sc = (int(n) for n in re.search(r"dilated ones reach (\d+) %, SCConv (\d+) %", README).groups())
    assert round(max(mean for name, mean in means.items() if "dilated" in name)) == dilated
    assert round(means["SCConv"]) == sc
