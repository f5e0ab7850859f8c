"""The walkthrough runs notebooks as they are, writes pages, and says what was found and what went wrong."""
import base64
import contextlib
import io
import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from scnet_minimal.lab import walkthrough

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
SHOW = f"""from base64 import b64decode
from IPython.display import Image, display
display(Image(b64decode("{PIXEL}")), metadata={{"image/png": {{"alt": "one red pixel"}}}})"""


def write(path, title, *code, findings="print('the answer is', 6 * 7)"):
    cells = [new_markdown_cell(f"# {title}"), *map(new_code_cell, code)]
    cells.append(new_code_cell(findings, metadata={"tags": ["findings"]}))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", text="from an older run")]
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A walk through a good and a failing notebook, with another environment's python3 kernel lying in wait."""
    root = tmp_path_factory.mktemp("walk")
    notebooks, foreign = root / "notebooks", root / "jupyter" / "kernels" / "python3"
    notebooks.mkdir()
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["no-such-python"], "display_name": "elsewhere"}))
    write(notebooks / "01_good.ipynb", "Good & <short>", SHOW,
          "import pathlib, sys; print(sys.executable); print(pathlib.Path.cwd().name)")
    write(notebooks / "02_failing.ipynb", "Failing", "print('so far')", "raise ValueError('first line\\nno dots')")
    before = {path.name: path.read_bytes() for path in notebooks.iterdir()}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        code = walkthrough.main(["--notebooks", str(notebooks), "--out", str(root / "out")])
    pages = {path.name: path.read_text(encoding="utf-8") for path in (root / "out").iterdir()}
    after = {path.name: path.read_bytes() for path in notebooks.iterdir()}
    return {"code": code, "printed": printed.getvalue(), "pages": pages, "before": before, "after": after, "root": root}


def test_a_page_carries_its_picture_and_the_alt_text(walk):
    page = walk["pages"]["01_good.html"]
    assert base64.b64decode(PIXEL)[1:4] == b"PNG" and f"base64,{PIXEL}" in page.replace("\n", "")
    assert "one red pixel" in page


def test_the_kernel_is_this_python_in_the_notebooks_folder(walk):
    page = walk["pages"]["01_good.html"]
    assert sys.executable in page and "\nnotebooks\n" in page


def test_the_closing_table_holds_the_findings_and_the_place_of_the_pages(walk):
    table = walk["printed"].split("What was found")[1]
    assert "Good & <short>" in table and "    the answer is 42" in table
    assert table.rstrip().endswith(str(walk["root"] / "out" / "index.html"))


def test_the_index_links_every_page(walk):
    index = walk["pages"]["index.html"]
    assert "href='01_good.html'>Good &amp; &lt;short&gt;<" in index and "href='02_failing.html'" in index
    assert "the answer is 42" in index


def test_progress_shows_notebook_and_cell(walk):
    assert "01_good" in walk["printed"] and "cell 3/3, 00:" in walk["printed"]


def test_a_failing_notebook_is_named_with_cell_and_reason(walk):
    assert walk["code"] == 1
    assert "02_failing stopped at cell [2]: ValueError: no dots" in walk["printed"]
    assert "so far" in walk["pages"]["02_failing.html"] and "ValueError" in walk["pages"]["02_failing.html"]


def test_no_output_of_an_older_run_shows(walk):
    assert not any("older run" in page for page in walk["pages"].values())


def test_the_notebooks_stay_as_they_are(walk):
    assert walk["after"] == walk["before"]


def test_one_notebook_is_chosen_by_its_number(tmp_path, capsys):
    for name in ["01_a", "03_b"]:
        write(tmp_path / f"{name}.ipynb", name)
    assert walkthrough.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / "out"), "3"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["03_b.html", "index.html"]
    assert "the answer is 42" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["02", "x"])
def test_an_unknown_number_is_answered_with_those_there_are(tmp_path, asked):
    for name in ["01_a", "03_b"]:
        write(tmp_path / f"{name}.ipynb", name)
    with pytest.raises(SystemExit, match=f"^no notebook {asked}: there are 01, 03$"):
        walkthrough.main(["--notebooks", str(tmp_path), asked])


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no notebooks in .*clone"):
        walkthrough.main(["--notebooks", str(tmp_path)])


def test_the_six_packages_have_the_same_ranges_wherever_they_are_named():
    root = Path(__file__).parents[1]
    wanted = [line for line in (root / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert len(wanted) == 6
    assert [line for line in wanted if f'"{line}"' not in (root / "pyproject.toml").read_text()] == []
