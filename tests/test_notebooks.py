"""No notebook is vacuously green: what nbval compares is there, is enough, and holds on any machine.

nbval runs the notebooks and compares outputs; these tests, which run nothing, see to it that there is something to
compare. Each rule names the fault it finds; below, a sound notebook is spoilt in one way after another, and the rule
must notice.
"""
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
IGNORE = "nbval-ignore-output"
# How else nbval can be told to look away, as a tag or as a comment.
LOOK_AWAY = {"nbval-skip", "nbval-raises-exception", "raises-exception", "pytest-validate-ignore-output"}
COMMENT = re.compile(r"^\s*#+\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)
HEADING = re.compile(r"^#{1,6} ", re.M)
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<)\]}$*-])/[A-Za-z][\w.-]*/[\w.-]|\bfile:/|\b[A-Z]:\\\\?\w")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def checked(cell):
    """nbval compares this cell, and there is something to compare."""
    return cell.cell_type == "code" and IGNORE not in tags(cell) and bool(cell.outputs)


def texts(cell):
    """All that a cell's outputs say, pictures aside."""
    for out in cell.outputs:
        yield from out.get("traceback", [])
        yield out.get("text", "")
        yield from (str(data) for kind, data in out.get("data", {}).items() if not kind.startswith("image/"))


# ---- the rules: each yields what is wrong ----

def is_a_valid_notebook_for_python3(notebook):
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield str(error).splitlines()[0]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"


def opens_with_a_title(notebook):
    if notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        yield "the first cell is no '# ' title"


def was_run_once_from_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"


def has_outputs_to_compare(notebook):
    """Half the code cells have an output (imports and definitions have none), and half of those are compared."""
    cells = len(code(notebook))
    shown = sum(bool(cell.outputs) for cell in code(notebook))
    compared = sum(map(checked, code(notebook)))
    if 2 * shown < cells:
        yield f"only {shown} of {cells} code cells have an output"
    if 2 * compared < shown:
        yield f"nbval compares only {compared} of {shown} outputs"
    for cell in code(notebook):
        if IGNORE in tags(cell) and not cell.outputs:
            yield f"[{cell.execution_count}] is tagged {IGNORE} and has no output"


def hides_no_cell(notebook):
    for cell in code(notebook):
        for found in [*LOOK_AWAY.intersection(tags(cell)), *COMMENT.findall(cell.source)]:
            yield f"[{cell.execution_count}] has {found}"


def concludes_what_it_does_not_compare(notebook):
    for i, cell in enumerate(notebook.cells):
        if IGNORE in tags(cell):
            for later in notebook.cells[i + 1:]:
                if checked(later):
                    break
                if later.cell_type == "markdown" and HEADING.search(later.source):
                    yield f"[{cell.execution_count}] is not compared, and the next heading comes before a conclusion"
                    break
            else:
                yield f"[{cell.execution_count}] is not compared, and no conclusion follows"


def has_one_cell_of_findings(notebook):
    cells = [cell for cell in code(notebook) if "findings" in tags(cell)]
    if len(cells) != 1:
        yield f"{len(cells)} cells tagged findings"
    elif not any(text.strip() for text in texts(cells[0])):
        yield "the findings say nothing"


def holds_on_any_machine(notebook):
    for cell in code(notebook):
        for text in [cell.source, *texts(cell)]:
            for found in [*ABSOLUTE_PATH.findall(text), *ADDRESS.findall(text)]:
                yield f"[{cell.execution_count}] has the path or address {found!r}"
        for out in cell.outputs:
            if out.output_type == "error":
                yield f"[{cell.execution_count}] ends in an error"
            if out.get("name") == "stderr" and IGNORE not in tags(cell):
                yield f"[{cell.execution_count}] is compared and holds stderr"
            if any("widget" in kind for kind in out.get("data", {})):
                yield f"[{cell.execution_count}] holds a widget"
    if "widgets" in notebook.metadata:
        yield "widget state in the metadata"


def describes_its_pictures(notebook):
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            for kind in out.get("data", {}):
                if kind.startswith("image/") and not out.metadata.get(kind, {}).get("alt", "").strip():
                    yield f"[{cell.execution_count}] shows a picture without alt text"
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"])", cell.source):
            yield f"a picture in the text has no alt text: {cell.source[:40]!r}"


RULES = [is_a_valid_notebook_for_python3, opens_with_a_title, was_run_once_from_top_to_bottom, has_outputs_to_compare,
         hides_no_cell, concludes_what_it_does_not_compare, has_one_cell_of_findings, holds_on_any_machine,
         describes_its_pictures]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, rule):
    assert list(rule(read(path))) == []


def test_the_notebooks_are_numbered_from_one_without_a_gap():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, len(NOTEBOOKS) + 1)] != []


def test_the_cell_that_finds_the_package_is_the_same_everywhere():
    assert len({code(read(path))[0].source for path in NOTEBOOKS}) == 1


# ---- the rules find what they are for ----

def sound():
    """The smallest notebook that keeps every rule."""
    def said(text):
        return [new_output("stream", text=text)]

    picture = new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"},
                         metadata={"image/png": {"alt": "a dot"}})
    cells = [new_markdown_cell("# 01 · A title"),
             new_code_cell("import sys", execution_count=1),
             new_code_cell("train()", execution_count=2, metadata={"tags": [IGNORE]}, outputs=said("loss 0.1234")),
             new_markdown_cell("It fell:\n![a curve](curve.svg)"),
             new_code_cell("print(loss < 1)", execution_count=3, outputs=said("True")),
             new_markdown_cell("## Next"),
             new_code_cell("plot()", execution_count=4, outputs=[picture]),
             new_code_cell("print('n/a, 3/4, a/b/c, (H/4)/(W/4), </td></tr>, https://a.org/b/c')",
                           execution_count=5, metadata={"tags": ["findings"]}, outputs=said("and/or/neither 1/2/3"))]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def retag(i, *new):
    return lambda nb: nb.cells[i].metadata.update(tags=list(new))


def change(i, key, value):
    return lambda nb: nb.cells[i].update({key: value})


def say(i, text, name="stdout"):
    return change(i, "outputs", [new_output("stream", text=text, name=name)])


SPOILT = [
    (is_a_valid_notebook_for_python3, lambda nb: nb.metadata.kernelspec.update(name="conda-env")),
    (is_a_valid_notebook_for_python3, lambda nb: nb.cells[1].pop("source")),
    (opens_with_a_title, change(0, "source", "## 01 · A title")),
    (opens_with_a_title, lambda nb: nb.cells.pop(0)),
    (was_run_once_from_top_to_bottom, change(4, "execution_count", 9)),
    (was_run_once_from_top_to_bottom, change(4, "execution_count", None)),
    (has_outputs_to_compare, lambda nb: [cell.update(outputs=[]) for cell in code(nb)]),
    (has_outputs_to_compare, lambda nb: [retag(i, IGNORE)(nb) for i in (4, 6, 7)]),
    (has_outputs_to_compare, change(2, "outputs", [])),
    (hides_no_cell, retag(4, "nbval-skip")),
    (hides_no_cell, retag(4, "raises-exception")),
    (hides_no_cell, change(4, "source", "# NBVAL_IGNORE_OUTPUT\nprint(loss < 1)")),
    (concludes_what_it_does_not_compare, change(4, "outputs", [])),
    (concludes_what_it_does_not_compare, retag(4, IGNORE)),
    (concludes_what_it_does_not_compare, change(3, "source", "It fell.\n\n### Later")),
    (concludes_what_it_does_not_compare, retag(7, IGNORE)),
    (has_one_cell_of_findings, retag(7)),
    (has_one_cell_of_findings, retag(4, "findings")),
    (has_one_cell_of_findings, say(7, "\n")),
    (holds_on_any_machine, say(4, "saved to /home/ada/run.pt")),
    (holds_on_any_machine, say(4, "C:\\Users\\ada")),
    (holds_on_any_machine, say(4, "<object at 0x7f3a12c4d0>")),
    (holds_on_any_machine, change(4, "source", "open('/tmp/run.pt')")),
    (holds_on_any_machine, say(4, "UserWarning: slow", name="stderr")),
    (holds_on_any_machine, change(4, "outputs", [new_output("error", ename="E", evalue="", traceback=[])])),
    (holds_on_any_machine, lambda nb: nb.metadata.update(widgets={})),
    (describes_its_pictures, lambda nb: nb.cells[6].outputs[0].metadata.clear()),
    (describes_its_pictures, change(3, "source", "![](curve.svg)")),
    (describes_its_pictures, change(3, "source", '<img src="curve.svg">')),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_notebook_passes(rule):
    assert list(rule(sound())) == []


@pytest.mark.parametrize("rule, spoil", SPOILT, ids=[f"{rule.__name__}-{i}" for i, (rule, _) in enumerate(SPOILT)])
def test_a_spoilt_notebook_is_noticed(rule, spoil):
    notebook = sound()
    spoil(notebook)
    assert list(rule(notebook))
