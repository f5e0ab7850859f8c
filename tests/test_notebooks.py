"""No notebook is vacuously green: what nbval compares is there, is enough, and holds on any machine.

nbval runs the notebooks and compares outputs; these tests, which run nothing, see to it that there is something to
compare. Each rule names the fault it finds; below, a sound notebook is spoilt in one way after another, and the rule
must notice.
"""
import itertools
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scnet_minimal.lab.study import figures

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
IGNORE = "nbval-ignore-output"
# How else nbval can be told to look away, as a tag or as a comment.
LOOK_AWAY = {"nbval-skip", "nbval-raises-exception", "raises-exception", "pytest-validate-ignore-output"}
COMMENT = re.compile(r"^\s*#+\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", re.M)
HEADING = re.compile(r"^#{1,6} ", re.M)
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<)\]}$*-])/[A-Za-z][\w.-]*/[\w.-]|\bfile:/|\b[A-Z]:\\\\?\w")
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}")
COLOUR = re.compile(r"""\b(?:c|color|cmap|mfc|mec|fc|ec|facecolor|edgecolor)=["']([^"']+)""")
SAFE_COLOURS = {"white", "black", "none", "gray", "Blues", "viridis", "cividis", "inferno", "magma", "plasma"}
EXERCISE = re.compile(r"### Exercise (\d+) · \S.*\n\n(?:●○○|●●○|●●●) · \d+ minutes · (\d+) points?\n\n"
                      r".+\n\n<details><summary>Hint</summary>\n\n.+\n\n</details>", re.S)


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
    """What hangs on machine or luck is not compared: the cell asserts what the text needs, or a later one does."""
    for i, cell in enumerate(notebook.cells):
        if IGNORE in tags(cell) and not re.search(r"^ *assert\b", cell.source, re.M):
            for later in notebook.cells[i + 1:]:
                if checked(later):
                    break
                if later.cell_type == "markdown" and HEADING.search(later.source):
                    yield f"[{cell.execution_count}] is not compared, and the next heading comes before a conclusion"
                    break
            else:
                yield f"[{cell.execution_count}] is not compared, and no conclusion follows"


def prints_findings_and_not_verdicts(notebook):
    """A reader wants the number; a test that prints True is an assert. At most one line in ten ends in a verdict."""
    lines = [line for cell in code(notebook) for out in cell.outputs for line in out.get("text", "").splitlines()
             if line.strip()]
    verdicts = [line for line in lines if line.rstrip().endswith(("True", "False"))]
    if 10 * len(verdicts) > len(lines):
        yield f"{len(verdicts)} of {len(lines)} printed lines end in True or False: {verdicts[0]!r}"


def has_lines_of_code_that_fit_the_page(notebook):
    """116 characters: JupyterLab in a window 1,100 px wide."""
    for cell in code(notebook):
        for line in cell.source.splitlines():
            if len(line) > 116:
                yield f"[{cell.execution_count}] has a line of {len(line)} characters: {line.strip()[:60]}"


def folds_the_cell_that_finds_the_package(notebook):
    if not code(notebook) or not code(notebook)[0].metadata.get("jupyter", {}).get("source_hidden"):
        yield "the first code cell is not folded"


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


def has_headings_in_order(notebook):
    """One title, and no level left out below it: readers who hear the page walk along its headings."""
    above = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in re.sub(r"```.*?```", "", cell.source, flags=re.S).splitlines():
                if level := len(re.match(r"(#*)", line)[1]) * line.lstrip("#").startswith(" "):
                    if level > above + 1 or (level == 1) != (above == 0):
                        yield f"level {level} after level {above}: {line}"
                    above = level


def begins_no_list_in_midsentence(notebook):
    """A line that happens to start with "1. " or "- " becomes a list, although the paragraph goes on."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```", "", cell.source, flags=re.S)
            for line in re.findall(r"^(?![ \d>#|*+-])\S.*[^\s:]\n((?:1[.)]|[-+*]) .*)", text, re.M):
                yield f"becomes a list: {line[:60]}"


def uses_colours_that_all_eyes_tell_apart(notebook):
    for cell in code(notebook):
        for colour in COLOUR.findall(cell.source):
            if colour not in SAFE_COLOURS:
                yield f"[{cell.execution_count}] names the colour {colour}: take it from scnet_minimal.lab.figures"


def has_exercises_as_described(notebook):
    """As scnet_minimal/lab/course/exercises.py describes them, two to four, before the closing cell. Between these two
    an appendix may stand."""
    cells = notebook.cells
    start = next((i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises\n")), None)
    marked = [cell for cell in cells if "nbgrader" in cell.metadata]
    if start is None:
        if marked:
            yield "cells for nbgrader, and no ## Exercises"
        return
    end = next((i for i in range(start + 1, len(cells)) if cells[i].source.startswith("## ")), len(cells) - 1)
    parts = [cells[i:i + 3] for i in range(start + 1, end, 3)]
    if not 2 <= len(parts) <= 4 or [c for part in parts for c in part[1:]] != marked:
        yield "no two to four exercises of three cells each, text, answer and check"
        return
    if cells[-1].cell_type != "markdown" or not cells[-1].source.startswith("## "):
        yield "no closing cell after the exercises"
    for n, (text, answer, check) in enumerate(parts, start=1):
        found, name = EXERCISE.fullmatch(text.source), f"{cells[0].source[2:4]}-{n}"
        usual = {"grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3}
        points = int(found[2]) if found else None
        if not found or int(found[1]) != n:
            yield f"exercise {n}: title, difficulty, minutes, points, task, folded hint: one is missing"
        if answer.metadata != {"jupyter": {"source_hidden": True}, "tags": ["exercise"],
                               "nbgrader": {**usual, "grade_id": f"answer-{name}", "solution": True}}:
            yield f"exercise {n}: the answer's metadata"
        if not re.search(r"^( +)### BEGIN SOLUTION\n(?:.*\n)+?\1### END SOLUTION$", answer.source, re.M):
            yield f"exercise {n}: the answer does not stand between its markers in a function's body"
        graded = {"nbgrader": {**usual, "grade_id": f"check-{name}", "grade": True, "locked": True, "points": points}}
        if check.metadata not in (graded, {"jupyter": {"source_hidden": True}, **graded}):   # a long one folds
            yield f"exercise {n}: the check's metadata"
        if "assert " not in check.source or [out.get("name") for out in check.outputs] != ["stdout"] or answer.outputs:
            yield f"exercise {n}: a check asserts, and prints one thing; an answer prints nothing"


RULES = [is_a_valid_notebook_for_python3, opens_with_a_title, was_run_once_from_top_to_bottom, has_outputs_to_compare,
         hides_no_cell, concludes_what_it_does_not_compare, prints_findings_and_not_verdicts,
         has_lines_of_code_that_fit_the_page, folds_the_cell_that_finds_the_package, has_one_cell_of_findings,
         holds_on_any_machine, describes_its_pictures, has_headings_in_order, begins_no_list_in_midsentence,
         uses_colours_that_all_eyes_tell_apart, has_exercises_as_described]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, rule):
    assert list(rule(read(path))) == []


def test_the_notebooks_are_numbered_from_one_without_a_gap():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, len(NOTEBOOKS) + 1)] != []


def test_the_cell_that_finds_the_package_is_the_same_everywhere():
    assert len({code(read(path))[0].source for path in NOTEBOOKS}) == 1


def test_every_notebook_has_exercises():
    def headings(path):
        return [cell.source.splitlines()[0] for cell in read(path).cells if cell.cell_type == "markdown"]

    assert [path.stem for path in NOTEBOOKS if "## Exercises" not in headings(path)] == []


# What other eyes make of linear RGB: usual, protanopia, deuteranopia, tritanopia (Machado et al. 2009, severity 1).
EYES = [np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]]


def apart(colours):
    """The least distance (CIELAB, ΔE 1976) between any two colours (#RRGGBB), in any of the four kinds of eyes."""
    srgb = np.array([[int(c[i:i + 2], 16) for i in (1, 3, 5)] for c in colours]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4339, 0.3762, 0.1899], [0.2127, 0.7152, 0.0721], [0.0178, 0.1095, 0.8728]])   # white: 1, 1, 1
    least = np.inf
    for eye in EYES:
        xyz = np.clip(linear @ np.array(eye).T, 0, 1) @ to_xyz.T
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        least = min([least, *(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))])
    return least


def test_the_colours_of_the_course_are_told_apart_by_all_eyes():
    assert apart([figures.SC, figures.PLAIN, figures.DILATED, figures.GHOST]) > 15
    assert apart(["#D62728", "#2CA02C"]) < 15           # as matplotlib's red and green are not


# ---- the rules find what they are for ----

def sound():
    """The smallest notebook that keeps every rule."""
    def said(text):
        return [new_output("stream", text=text)]

    picture = new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"},
                         metadata={"image/png": {"alt": "a dot"}})
    cells = [new_markdown_cell("# 01 · A title"),
             new_code_cell("import sys", execution_count=1, metadata={"jupyter": {"source_hidden": True}}),
             new_code_cell("train()", execution_count=2, metadata={"tags": [IGNORE]}, outputs=said("loss 0.1234")),
             new_markdown_cell("It fell:\n![a curve](curve.svg)"),
             new_code_cell("print(round(loss))", execution_count=3, outputs=said("0")),
             new_markdown_cell("## Next"),
             new_code_cell("plot()", execution_count=4, outputs=[picture]),
             new_code_cell("print('n/a, 3/4, a/b/c, (H/4)/(W/4), </td></tr>, https://a.org/b/c')",
                           execution_count=5, metadata={"tags": ["findings"]}, outputs=said("and/or/neither 1/2/3")),
             new_markdown_cell("## Exercises\n\nTry.")]
    for n in (1, 2):
        about = dict(grade=False, locked=False, solution=False, task=False, schema_version=3)
        cells += [new_markdown_cell(f"### Exercise {n} · Add\n\n●○○ · 5 minutes · 1 point\n\nAdd one.\n\n"
                                    "<details><summary>Hint</summary>\n\nUse +.\n\n</details>"),
                  new_code_cell("def add(x):\n    ### BEGIN SOLUTION\n    return x + 1\n    ### END SOLUTION",
                                execution_count=4 + 2 * n, metadata={
                                    "jupyter": {"source_hidden": True}, "tags": ["exercise"],
                                    "nbgrader": {**about, "grade_id": f"answer-01-{n}", "solution": True}}),
                  new_code_cell("assert add(1) == 2, 'is it one?'\nprint('added')", execution_count=5 + 2 * n,
                                outputs=said("added"), metadata={"nbgrader": {
                                    **about, "grade_id": f"check-01-{n}", "grade": True, "locked": True, "points": 1}})]
    cells.append(new_markdown_cell("## What comes next"))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def test_an_appendix_may_stand_between_the_exercises_and_the_closing_cell():
    notebook = sound()
    notebook.cells[-1:-1] = [new_markdown_cell("## Appendix · Names"), new_markdown_cell("Many.")]
    assert list(has_exercises_as_described(notebook)) == []


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
    (hides_no_cell, change(4, "source", "# NBVAL_IGNORE_OUTPUT\nprint(round(loss))")),
    (concludes_what_it_does_not_compare, change(4, "outputs", [])),
    (concludes_what_it_does_not_compare, retag(4, IGNORE)),
    (concludes_what_it_does_not_compare, change(3, "source", "It fell.\n\n### Later")),
    (concludes_what_it_does_not_compare, retag(7, IGNORE)),
    (prints_findings_and_not_verdicts, say(4, "the loss fell: True")),
    (has_lines_of_code_that_fit_the_page, change(4, "source", "print(round(loss))" + 100 * " " + "# loss")),
    (folds_the_cell_that_finds_the_package, lambda nb: nb.cells[1].metadata.clear()),
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
    (has_headings_in_order, change(5, "source", "### Next")),
    (has_headings_in_order, change(5, "source", "# Next")),
    (begins_no_list_in_midsentence, change(5, "source", "## Next\n\nThe gate lies between 0 and\n1. That is all.")),
    (uses_colours_that_all_eyes_tell_apart, change(6, "source", "plot(color='red')")),
    (uses_colours_that_all_eyes_tell_apart, change(6, "source", 'ax.imshow(x, cmap="jet")')),
    (has_exercises_as_described, lambda nb: [nb.cells.pop(9) for _ in range(3)]),           # one exercise is too few
    (has_exercises_as_described, lambda nb: nb.cells.insert(9, new_markdown_cell("By the way."))),
    (has_exercises_as_described, lambda nb: nb.cells.pop()),
    (has_exercises_as_described, change(8, "source", "## More")),
    (has_exercises_as_described, change(9, "source", "### Exercise 1 · Add\n\nAdd one.")),
    (has_exercises_as_described, change(10, "source", "def add(x):\n    return x + 1")),
    (has_exercises_as_described, change(10, "source", "### BEGIN SOLUTION\nadd = 1\n### END SOLUTION")),
    (has_exercises_as_described, lambda nb: nb.cells[10].metadata.pop("jupyter")),
    (has_exercises_as_described, lambda nb: nb.cells[11].metadata.nbgrader.update(points=2)),
    (has_exercises_as_described, lambda nb: nb.cells[11].metadata.nbgrader.update(grade_id="check-02-1")),
    (has_exercises_as_described, change(11, "source", "print('added')")),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_notebook_passes(rule):
    assert list(rule(sound())) == []


@pytest.mark.parametrize("rule, spoil", SPOILT, ids=[f"{rule.__name__}-{i}" for i, (rule, _) in enumerate(SPOILT)])
def test_a_spoilt_notebook_is_noticed(rule, spoil):
    notebook = sound()
    spoil(notebook)
    assert list(rule(notebook))
