"""Notebook 06 goes another way where one asks for official weights. None are here: random ones take their place."""
from pathlib import Path

import nbformat
import pytest
import torch

from scnet_minimal import scnet50_v1d
from scnet_minimal.lab.walkthrough import run_notebook
from scnet_minimal.weights import SOURCES

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "06_official_weights.ipynb"
OWN_CLASSES = "## 5"        # from here on the notebook uses the small network, whatever weights are there


def compared(cells):
    """What nbval compares: the text of each code cell that it is not told to ignore."""
    return [("".join(out.get("text", "") for out in cell.outputs), cell.source) for cell in cells
            if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", [])]


@pytest.mark.slow
def test_with_weights_in_the_official_format_notebook_06_has_the_same_outputs(tmp_path, monkeypatch):
    """The legacy file that the SCNet authors offer, in torch.hub's cache.  Its numbers are random and mean nothing."""
    torch.manual_seed(0)
    model = scnet50_v1d().train()
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))                    # norms that fit: logits stay small
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(model.state_dict(), cache / Path(SOURCES["scnet50_v1d"]["official"]).name,
               _use_new_zipfile_serialization=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    end = next(i for i, cell in enumerate(notebook.cells) if OWN_CLASSES in cell.source)
    assert not any("official" in cell.source for cell in notebook.cells[end:] if cell.cell_type == "code")
    notebook.cells = notebook.cells[:end]
    switch = [cell for cell in notebook.cells if "\nofficial = False " in cell.source]
    assert len(switch) == 1
    switch[0].source = switch[0].source.replace("official = False ", "official = True ")
    nbformat.write(notebook, tmp_path / NOTEBOOK.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    walk = run_notebook(tmp_path / NOTEBOOK.name)
    assert walk.stopped == ""
    said = "".join(out.get("text", "") for cell in walk.notebook.cells for out in cell.get("outputs", []))
    assert "The official weights of scnet50_v1d, 1000 classes." in said and "academic gown 3" not in said
    assert compared(walk.notebook.cells) == compared(notebook.cells)
