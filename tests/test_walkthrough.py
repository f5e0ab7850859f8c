"""The walkthrough runs notebooks as they are; its pages work offline; what goes wrong is reported in a line."""
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scnet_minimal.lab import walkthrough
from scnet_minimal.lab.course import pages
from scnet_minimal.lab.course.notebooks import NOTEBOOKS, choose_notebooks, cover, findings, question, read_notebook

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
SHOW = f"""from base64 import b64decode
from IPython.display import Image, display
display(Image(b64decode("{PIXEL}")), metadata={{"image/png": {{"alt": "one red pixel"}}}})"""
needs_latex2mathml = pytest.mark.skipif(not pages.OFFLINE_MATH, reason="latex2mathml is not installed")


def picture(alt):
    return new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure size 640x480>"},
                      metadata={"image/png": {"alt": alt}})


def printed(text):
    return new_output("stream", text=text)


def notebook(heading, *cells, said="the answer is 42\n"):
    """A title, the cells, and a cell of findings that printed `said`."""
    last = new_code_cell("print('the answer is', 6 * 7)", metadata={"tags": ["findings"]}, outputs=[printed(said)])
    cells = [new_markdown_cell(f"# {heading}"), *cells, last]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells)


def write(path, heading, *code):
    nbformat.write(notebook(heading, *map(new_code_cell, code), said="from an older run\n"), path)


# ---- pages of stored notebooks ----

@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three pages and the front page: {name: text}."""
    out = tmp_path_factory.mktemp("pages")
    folded = {"jupyter": {"source_hidden": True}}
    cells = [new_markdown_cell("A gate $g_i$, for `$HOME`:\n\n$$y = g \\cdot x < 1$$"),
             new_code_cell("secret = 1", metadata={**folded, "tags": ["exercise"]}),
             new_code_cell("setup = 2", metadata={"tags": ["hide-input"]}),
             new_code_cell("shown = 3", outputs=[picture("one red pixel")])]
    walks = [pages.Walk(NOTEBOOKS / "01_a.ipynb", notebook("A & <b>\n\n*Who looks far?*", *cells), 1.26),
             pages.Walk(NOTEBOOKS / "02_b.ipynb", notebook("B"), None),
             pages.Walk(NOTEBOOKS / "03_c.ipynb", notebook("C", new_markdown_cell("[a](01_a.ipynb)")), 0.1, "stopped")]
    for walk in walks:
        pages.write_notebook_page(walk, out, walks)
    pages.write_front_page(walks, out)
    return {path.stem: path.read_text(encoding="utf-8") for path in out.iterdir()}


def test_a_page_embeds_its_pictures_with_their_alt_text(three):
    page = three["01_a"].replace("\n", "")
    assert f'src="data:image/png;base64,{PIXEL}"' in page and 'alt="one red pixel"' in page


def test_a_page_fits_a_phone_and_its_title_is_the_notebooks(three):
    for name, page in three.items():
        assert page.count("<html") == 1 and 'name="viewport"' in page and "<title>" in page, name
    assert "<title>A &amp; &lt;b&gt;</title>" in three["01_a"]


def test_folded_cells_are_folded_in_the_page(three):
    folded = "".join(re.findall(r"<details>.*?</details>", three["01_a"], re.S))
    assert "secret" in folded and "setup" in folded and "shown" not in folded and "shown" in three["01_a"]


def test_pages_lead_to_the_one_before_and_the_one_after(three):
    links = {name: set(re.findall(r"""<a href=['"](\w+)\.html""", page)) for name, page in three.items()}
    assert links == {"01_a": {"index", "02_b"}, "02_b": {"index", "01_a", "03_c"}, "03_c": {"index", "02_b", "01_a"},
                     "index": {"01_a", "02_b", "03_c"}}


def test_the_front_page_has_picture_title_question_and_minutes_of_each_notebook(three):
    cards = re.findall(r"<article.*?</article>", three["index"], re.S)
    assert len(cards) == 3
    for part in (PIXEL, "one red pixel", "A &amp; &lt;b&gt;", "Who looks far?", "1.3 minutes", "the answer is 42"):
        assert part in cards[0]
    assert "<img" not in cards[1] and "minutes" not in cards[1] and "stopped" in cards[2]


@needs_latex2mathml
def test_formulas_are_mathml_and_nothing_comes_from_the_network(three):
    page = three["01_a"]
    assert page.count("<math") == 2 and "<code>$HOME</code>" in page and "script" not in page
    assert all("http" not in re.sub(r'xmlns="[^"]*"', "", page) for page in three.values())


def test_a_file_that_a_page_links_to_goes_with_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "play.html").write_text("a game")
    cell = new_markdown_cell("[play](play.html), [elsewhere](https://x.org/play.html), [gone](gone.html)")
    pages.write_notebook_page(pages.Walk(tmp_path / "01_a.ipynb", notebook("A", cell)), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"01_a.html", "play.html"}


def test_without_latex2mathml_a_page_asks_for_mathjax(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "OFFLINE_MATH", False)
    walk = pages.Walk(NOTEBOOKS / "01_a.ipynb", notebook("A", new_markdown_cell("$x_1$")))
    text = pages.write_notebook_page(walk, tmp_path).read_text(encoding="utf-8")
    assert "$x_1$" in text and "MathJax" in text and "<math" not in text


@needs_latex2mathml
@pytest.mark.parametrize("path", [*choose_notebooks(NOTEBOOKS, []), NOTEBOOKS / "GLOSSARY.md"], ids=lambda p: p.stem)
def test_every_formula_of_the_course_can_be_typeset(path):
    texts = [path.read_text(encoding="utf-8")] if path.suffix == ".md" else \
        [cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown"]
    for text in texts:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", prose, re.S):
            formula = pages.typeset(f"${block or inline}$".replace("&", "&amp;").replace("<", "&lt;"))
            assert formula.startswith("<math") and "\\" not in formula, block or inline


def test_a_notebooks_question_is_its_line_in_italics_or_its_first_sentence():
    def first(text):
        return new_notebook(cells=[new_markdown_cell(text)])

    badge = "[![Open in Colab](https://x.org/a.svg)](https://x.org/b)"
    assert question(first(f"# T\n\n{badge}\n\n*Who looks\nfar?*\n\nText.")) == "Who looks far?"
    assert question(first("# T\n\nA [*block*](https://x.org/a.b), **3.5** px, `so`. Two.")) == "A block, 3.5 px, so."
    assert question(first("# T")) == ""


def test_a_cover_is_the_tagged_picture_or_the_findings_or_the_first():
    cells = [new_code_cell("a", outputs=[picture("first")]),
             new_code_cell("b", outputs=[picture("chosen")], metadata={"tags": ["cover"]})]
    assert cover(notebook("T", *cells))[1] == "chosen" and cover(notebook("T", cells[0]))[1] == "first"
    assert cover(notebook("T")) is None


def test_findings_are_what_was_printed_and_no_name_of_a_picture():
    cell = new_code_cell("f", outputs=[picture("p"), printed("a\n"), new_output("execute_result", {"text/plain": "b"})],
                         metadata={"tags": ["findings"]})
    assert findings(new_notebook(cells=[cell])) == "a\nb"


# ---- what a person may ask for, and get an answer in a line ----

@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"cells": [], "nbformat": 4, "metadata": {}}',
                                     '{"cells": [{}], "nbformat": 4, "metadata": {}}', "\0\xff"])
def test_a_notebook_that_cannot_be_read_is_named_before_anything_runs(tmp_path, capsys, content):
    write(tmp_path / "01_good.ipynb", "Good")
    (tmp_path / "02_bad.ipynb").write_text(content)
    assert walkthrough.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert "02_bad.ipynb" in error and error.count("\n") == 1 and "01_good" not in out


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "/proc/nowhere"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys, place):
    write(tmp_path / "01_a.ipynb", "A")
    (tmp_path / "file").touch()
    assert walkthrough.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / place)]) == 2
    assert place in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("asked", ["02", "x"])
def test_an_unknown_number_is_answered_with_those_there_are(tmp_path, capsys, asked):
    for name in ("01_a", "03_b"):
        write(tmp_path / f"{name}.ipynb", name)
    assert walkthrough.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / "out"), asked]) == 2
    error = capsys.readouterr().err
    assert asked in error and "01, 03" in error


def test_a_folder_without_notebooks_is_named(tmp_path, capsys):
    assert walkthrough.main(["--notebooks", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


# ---- real runs ----

@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A walk through a good and a failing notebook, while another environment's python3 kernel could step in."""
    root = tmp_path_factory.mktemp("walk")
    notebooks, foreign = root / "notebooks", root / "jupyter" / "kernels" / "python3"
    notebooks.mkdir()
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(json.dumps({"argv": ["no-such-python"], "display_name": "elsewhere"}))
    write(notebooks / "01_good.ipynb", "Good & <short>", SHOW,
          "import pathlib, sys; print(sys.executable); print(pathlib.Path.cwd().name)")
    write(notebooks / "02_failing.ipynb", "Failing", "print('so far')", "raise ValueError('first line\\nno dots')")
    before = {path.name: path.read_bytes() for path in notebooks.iterdir()}
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        code = walkthrough.main(["--notebooks", str(notebooks), "--out", str(root / "out")])
    out = {path.name: path.read_text(encoding="utf-8") for path in (root / "out").iterdir()}
    after = {path.name: path.read_bytes() for path in notebooks.iterdir()}
    return {"code": code, "screen": screen.getvalue(), "pages": out, "before": before, "after": after, "root": root}


@pytest.mark.slow
def test_the_kernel_is_this_python_in_the_notebooks_folder(walk):
    page = walk["pages"]["01_good.html"]
    assert sys.executable in page and "\nnotebooks\n" in page and "one red pixel" in page


@pytest.mark.slow
def test_a_walk_ends_with_what_was_found_and_where_the_pages_are(walk):
    table = walk["screen"].rpartition("Good & <short>")[2]
    assert "    the answer is 42" in table and table.rstrip().endswith(str(walk["root"] / "out" / "index.html"))
    assert "01_good" in walk["screen"] and "cell 3/3, 00:" in walk["screen"]


@pytest.mark.slow
def test_a_failing_notebook_is_named_with_cell_and_reason(walk):
    assert walk["code"] == 1
    assert "02_failing stopped at cell [2]: ValueError: no dots" in walk["screen"]
    assert "so far" in walk["pages"]["02_failing.html"] and "ValueError" in walk["pages"]["02_failing.html"]


@pytest.mark.slow
def test_the_notebooks_are_not_changed_and_no_older_output_shows(walk):
    assert walk["after"] == walk["before"]
    assert not any("older run" in page for page in walk["pages"].values())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_the_walk_and_its_kernel_at_once(tmp_path):
    write(tmp_path / "01_slow.ipynb", "Slow", f"import os\nprint('x', file=open({str(tmp_path / 'started')!r}, 'w'))\n"
          f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nimport time; time.sleep(300)")
    write(tmp_path / "02_next.ipynb", "Next", "print('no')")
    process = subprocess.Popen(
        [sys.executable, "-m", "scnet_minimal.lab.walkthrough", "--notebooks", tmp_path, "--out", tmp_path / "out"],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "pid").is_file():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in out + error and "02_next" not in out
    kernel = int((tmp_path / "pid").read_text())
    for _ in range(50):                                         # killed, and gone as soon as the system comes to it
        if not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the kernel is still there five seconds later")
