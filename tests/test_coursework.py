"""Students' copies lack the answers and nothing else; grading is fair and survives what is handed in; stamps fit."""
import copy
import csv
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scnet_minimal.lab import coursework, grading
from scnet_minimal.lab.walkthrough import NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
NAME = "01_small.ipynb"


def exercise(number, title, answer, check, said):
    """The three cells of an exercise of notebook 01."""
    def about(**kind):
        return {"nbgrader": {"grade": False, "locked": False, "solution": False, "task": False, "schema_version": 3,
                             **kind}}

    return [new_markdown_cell(f"### Exercise {number} · {title}\n●○○ · 5 minutes\n\nDo it."),
            new_code_cell(answer, metadata={**about(solution=True, grade_id=f"answer-01-{number}"),
                                            "tags": ["exercise"], "jupyter": {"source_hidden": True}}),
            new_code_cell(check, outputs=[new_output("stream", text=said)],
                          metadata=about(grade=True, locked=True, points=number, grade_id=f"check-01-{number}"))]


def teachers_notebook():
    cells = [new_markdown_cell("# 01 · Small"), new_code_cell("start = 40"),
             new_code_cell("rest = 2\nprint('the rest of the notebook')", metadata={"tags": ["nbval-ignore-output"]},
                           outputs=[new_output("stream", text="the rest of the notebook\n")]),
             new_markdown_cell("## Exercises"),
             *exercise(1, "Add", "def add(a, b):\n    ### BEGIN SOLUTION\n    return a + b\n    ### END SOLUTION",
                       "assert add(start, 2) == 42, 'is b subtracted?'\nprint('added')", "added\n"),
             *exercise(2, "Halve", "class Half:\n    def of(self, x):\n        ### BEGIN SOLUTION\n        y = x / 2\n"
                       "        return y\n        ### END SOLUTION",
                       "assert Half().of(3) == 1.5, 'is the rest thrown away?'\nprint('halved')", "halved\n"),
             new_markdown_cell("## What comes next")]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    for i, cell in enumerate([cell for cell in cells if cell.cell_type == "code"]):
        cell.execution_count = i + 1
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


ADD, CHECK_ADD, HALVE, CHECK_HALVE = 5, 6, 8, 9         # the exercises' cells in teachers_notebook()
RIGHT = {ADD: "def add(a, b):\n    return b + a", HALVE: "class Half:\n    def of(self, x):\n        return 0.5 * x"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    nbformat.write(teachers_notebook(), folder / NAME)
    return folder


@pytest.fixture(scope="module")
def course(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("students") / "course"
    assert coursework.make(out, teacher) == 2
    return out


def solved(notebook, *cells):
    notebook = copy.deepcopy(notebook)
    for i in cells:
        notebook.cells[i].source = RIGHT[i]
    return notebook


def failing(course):
    """pytest --nbval notebooks, as a student runs it: {notebook: [whether each code cell failed]}."""
    subprocess.run([sys.executable, "-m", "pytest", "--nbval", "notebooks", "-q", "--junitxml=report.xml"],
                   cwd=course, capture_output=True)
    found = {}
    for case in ElementTree.parse(course / "report.xml").iter("testcase"):
        found.setdefault(case.get("classname").split(".")[1], []).append(len(case) > 0)
    return found


# ---- make ----

def test_a_students_copy_lacks_the_answers_and_nothing_else(course):
    theirs = nbformat.read(course / "notebooks" / NAME, as_version=4).cells
    for i, (cell, own) in enumerate(zip(theirs, teachers_notebook().cells, strict=True)):
        if i in (ADD, HALVE):
            assert "SOLUTION" not in cell.source and "return" not in cell.source and "jupyter" not in cell.metadata
            assert cell.source.splitlines()[0] == own.source.splitlines()[0]
            assert "    # YOUR ANSWER HERE\n" in cell.source
        else:
            assert cell.source == own.source and cell.get("outputs") == own.get("outputs")


def test_a_students_copy_runs_by_itself(course):
    assert {path.name for path in course.iterdir()} >= {"notebooks", "scnet_minimal", "data", "requirements.txt",
                                                        "pyproject.toml", "README.md"}
    assert (course / "data" / "toynette" / "train.parquet").is_file() and not list(course.rglob("__pycache__"))
    assert f"](notebooks/{NAME}): 2 exercises" in (course / "README.md").read_text(encoding="utf-8")


def test_nbval_fails_exactly_at_the_unsolved_exercises(course, tmp_path):
    """In the students' copy, with none of two exercises solved, one, the other, and both."""
    room = tmp_path / "course"
    shutil.copytree(course, room)
    start = nbformat.read(room / "notebooks" / NAME, as_version=4)
    for name, answers in {"02_first": [ADD], "03_second": [HALVE], "04_both": [ADD, HALVE]}.items():
        nbformat.write(solved(start, *answers), room / "notebooks" / f"{name}.ipynb")
    f, passed = True, False
    assert failing(room) == {
        "01_small": [passed, passed, passed, f, passed, f], "02_first": [passed, passed, passed, passed, passed, f],
        "03_second": [passed, passed, passed, f, passed, passed], "04_both": [passed] * 6}


def test_work_that_is_already_there_is_not_overwritten(course, teacher):
    with pytest.raises(SystemExit, match="already there"):
        coursework.make(course, teacher)


def test_an_answer_outside_of_a_function_is_refused():
    notebook = teachers_notebook()
    notebook.cells[ADD].source = "### BEGIN SOLUTION\nadd = sum\n### END SOLUTION"
    with pytest.raises(ValueError, match="answer-01-1.*function's body"):
        coursework.without_answers(notebook)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """Each notebook's first two code cells, then: no exercise solved, then one more, from the last on."""
    root = tmp_path_factory.mktemp("both-ways")
    (root / "notebooks").mkdir()
    shutil.copy(coursework.ROOT / "pyproject.toml", root)
    (root / "scnet_minimal").symlink_to(coursework.ROOT / "scnet_minimal")
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        full, stubs = coursework.exercises(notebook), coursework.exercises(coursework.without_answers(notebook))
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
        cells += [cell for e in [*stubs, *reversed(full)] for cell in (e.answer, e.check)]
        cells = [new_code_cell(cell.source, outputs=cell.outputs, execution_count=1) for cell in cells]
        if full:
            nbformat.write(new_notebook(cells=cells), root / "notebooks" / path.name)
    return failing(root)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_an_exercise_fails_in_its_check_alone_without_its_answer_and_passes_with_it(path, both_ways):
    """It takes the notebook's imports, and no other exercise's answer."""
    n = len(coursework.exercises(nbformat.read(path, as_version=4)))
    if not n:
        pytest.skip("no exercises yet")
    assert both_ways[path.stem] == [False, False] + [False, True] * n + [False, False] * n


# ---- grade ----

def hand_ins(reference):
    """{student: {path: what is handed in}} of all sorts. reference: the students' copy of the notebook."""
    def changed(*cells, **sources):
        notebook = solved(reference, *cells)
        for i, source in sources.items():
            notebook.cells[int(i[1:])].source = source
        return notebook

    def cells(keep, *solve):
        notebook = solved(reference, *solve)
        notebook.cells = [copy.deepcopy(notebook.cells[i]) for i in keep]
        return notebook

    def old(notebook):
        """As another editor may write it: no ids, no nbgrader metadata."""
        for cell in notebook.cells:
            cell.pop("id", None)
            cell.metadata.clear()
        notebook.nbformat_minor = 4
        return notebook

    return {
        "ada": {f"notebooks/{NAME}": solved(reference, ADD, HALVE)},
        "bob": {NAME: cells([0, 1, CHECK_ADD, HALVE, CHECK_HALVE])},
        "cas": {NAME: changed(c5="def add(a, b):\n    return a - b", c6="print('added')",
                              c8="class Half:\n    def of(self, x) return x / 2")},
        "dot": {NAME: changed(c5="def add(a, b):\n    print(a)\n    return a + b",
                              c8="class Half:\n    def of(self, x):\n        while True: pass")},
        "eve": {NAME: changed(ADD, c8="class Half:\n    def of(self, x):\n        import os; os._exit(3)")},
        "fay": {NAME: '{"cells": [', "other.ipynb": "[]"},
        "gil": {NAME: "[]"},
        "hal": {"notes.txt": "sorry"},
        "jon": {"small (1).ipynb": cells([0, 1, ADD, HALVE], ADD),
                ".ipynb_checkpoints/x.ipynb": solved(reference, ADD, HALVE)},
        "kai": {NAME: changed(HALVE, c5="def add(a, b):\n    return a + b + rest - 2")},
        "kim": {NAME: cells([0, 1, ADD, CHECK_ADD, ADD, CHECK_ADD, CHECK_HALVE, HALVE], ADD, HALVE)},
        "lou": {NAME: old(solved(reference, ADD, HALVE))},
    }


@pytest.fixture(scope="module")
def graded(teacher, course, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("handed-in"), tmp_path_factory.mktemp("grades") / "grades.csv"
    for student, files in hand_ins(nbformat.read(course / "notebooks" / NAME, as_version=4)).items():
        for name, content in files.items():
            path = folder / student / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else nbformat.writes(content), encoding="utf-8")
    code = coursework.main(["grade", str(folder), "--out", str(out), "--notebooks", str(teacher),
                            "--jobs", "3", "--cell-seconds", "8"])
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"code": code, "rows": rows, "files": list(out.parent.iterdir())}


@pytest.mark.parametrize("student, points, messages", [
    ("ada", (1, 2), ("", "")),
    ("bob", (0, 0), ("NameError: name 'add' is not defined (answer: the cell is gone)",
                     "exercise 2 is still to be solved")),
    ("cas", (0, 0), ("is b subtracted?", "NameError: name 'Half' is not defined (answer: SyntaxError: ")),
    ("dot", (0, 0), ("the check prints something else than expected: does the answer print?",
                     "Timeout of 8 seconds exceeded: does it loop for ever?")),
    ("eve", (1, 0), ("", "the kernel died")),
    ("fay", (0, 0), (f"{NAME} is not a readable notebook: NotJSONError",) * 2),
    ("gil", (0, 0), (f"{NAME} is not a readable notebook: ",) * 2),
    ("hal", (0, 0), ("not handed in",) * 2),
    ("jon", (1, 0), ("", "exercise 2 is still to be solved")),  # renamed, checks deleted; an editor's backup beside it
    ("kai", (1, 2), ("", "")),                                  # makes use of a long cell
    ("kim", (1, 2), ("", "")),                                  # cells doubled, and a check before its answer
    ("lou", (1, 2), ("", "")),                                  # all metadata lost
])
def test_a_hand_in_costs_its_own_row_and_says_why(graded, student, points, messages):
    rows = [row for row in graded["rows"] if row["student"] == student]
    assert [(row["notebook"], row["exercise"], row["max_points"]) for row in rows] \
        == [("01_small", "1", "1"), ("01_small", "2", "2")]
    assert [int(row["points"]) for row in rows] == list(points)
    for row, message in zip(rows, messages):
        assert row["message"].startswith(message) and bool(row["message"]) == bool(message)


def test_one_row_per_student_and_exercise_and_no_unfinished_file_is_left(graded):
    assert graded["code"] == 0 and len(graded["rows"]) == 2 * 12
    assert [path.name for path in graded["files"]] == ["grades.csv"]


def test_long_cells_are_skipped_where_the_student_left_them_as_they_were():
    notebook = teachers_notebook()
    short = grading.without_long_cells(notebook, notebook)
    assert [i for i, cell in enumerate(short.cells) if "nbval-skip" in cell.metadata.get("tags", [])] == [2]
    notebook.cells[2].source += "\nmore = 3"
    short = grading.without_long_cells(notebook, teachers_notebook())
    assert not any("nbval-skip" in cell.metadata.get("tags", []) for cell in short.cells)


def test_what_cannot_be_interrupted_is_stopped_with_all_that_it_started(course):
    notebook = nbformat.read(course / "notebooks" / NAME, as_version=4)
    notebook.cells[1].source = ("import time\nwhile True:\n    try:\n        time.sleep(1)\n"
                                "    except KeyboardInterrupt:\n        pass")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    found = grading.run(notebook, NAME, course, cell_seconds=1000, seconds=7, threads=1)
    assert found == "stopped after 7 seconds"
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def test_a_folder_without_students_is_named(teacher, tmp_path):
    with pytest.raises(SystemExit, match="holds no folder per student"):
        coursework.main(["grade", str(tmp_path), "--notebooks", str(teacher)])


# ---- stamp ----

@pytest.fixture
def checkout(tmp_path):
    """A copy of what stamp changes."""
    root = tmp_path / "checkout"
    shutil.copytree(coursework.ROOT / "scnet_minimal", root / "scnet_minimal",
                    ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    for path in PATHS[:2]:
        shutil.copy(path, root / "notebooks")
    shutil.copy(coursework.ROOT / "README.md", root)
    return root


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_badges_and_the_first_cell_say_the_same_address_and_lead_to_files(checkout):
    coursework.stamp("https://github.com/ada/scnet-course", checkout)
    assert 'REPOSITORY = "https://github.com/ada/scnet-course"' in \
        (checkout / "scnet_minimal" / "lab" / "coursework.py").read_text(encoding="utf-8")
    for path in (checkout / "notebooks").iterdir():
        notebook = nbformat.read(path, as_version=4)
        title, badges = notebook.cells[0].source.splitlines()[:3:2]
        assert title.startswith("# 0")
        assert badges.count(f"/github/ada/scnet-course/blob/main/notebooks/{path.name}") == 2
        assert '"https://github.com/ada/scnet-course"' in notebook.cells[1].source
        assert f"](notebooks/{path.name}) [![Open in Colab]" in (checkout / "README.md").read_text(encoding="utf-8")


def test_the_last_stamp_alone_is_seen_and_stamping_again_changes_nothing(checkout):
    before = contents(checkout)
    coursework.stamp("https://github.com/ada/scnet-course", checkout)
    once = contents(checkout)
    coursework.stamp("https://github.com/bob/other.git", checkout)
    coursework.stamp("https://github.com/ada/scnet-course", checkout)
    assert contents(checkout) == once != before


def test_another_host_gets_an_address_and_no_badges(checkout):
    coursework.stamp("https://github.com/ada/scnet-course", checkout)
    coursework.stamp("https://git.example.org/ada/course.git", checkout)
    text = b"".join(contents(checkout / "notebooks").values()) + (checkout / "README.md").read_bytes()
    assert b"Open in Colab" not in text and b"ada/scnet-course" not in text
    assert text.count(b"https://git.example.org/ada/course.git") == 2


def test_what_is_no_address_is_refused(checkout):
    with pytest.raises(SystemExit, match="no address of a repository"):
        coursework.stamp('https://x.org/"); print("', checkout)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_stamped_notebook_opened_elsewhere_fetches_the_package(checkout, tmp_path):
    """From a bare repository, beside a notebook in a folder that is not written to, without any installed package."""
    bare, home, elsewhere = tmp_path / "course.git", tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    coursework.stamp(f"file://{bare}", checkout)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a"],
                    ["clone", "-q", "--bare", ".", str(bare)]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    first = nbformat.read(checkout / "notebooks" / PATHS[0].name, as_version=4).cells[1].source
    show = "\nprint(importlib.util.find_spec('scnet_minimal').origin, *(m for m in sys.modules if m == 'torch'))"
    elsewhere.chmod(0o555)
    for _ in ("a fresh machine", "a restarted kernel"):
        said = subprocess.run([sys.executable, "-I", "-S", "-c", first + show], cwd=elsewhere, check=True, text=True,
                              capture_output=True, env={**os.environ, "HOME": str(home)})
        assert said.stdout == f"{home / '.cache' / 'scnet-minimal' / 'scnet_minimal' / '__init__.py'}\n"
        assert said.stderr == "" and not list(elsewhere.iterdir())


def test_badges_are_the_constants_and_without_one_there_are_none():
    texts = {path.name: path.read_text(encoding="utf-8") for path in [*PATHS, coursework.ROOT / "README.md"]}
    for name, text in texts.items():
        if not coursework.REPOSITORY:
            assert "colab.research.google.com/github" not in text and "console.paperspace.com/github" not in text
        elif name != "README.md":
            assert coursework.badges(coursework.REPOSITORY, name) in text


# ---- nbgrader ----

@pytest.mark.skipif(shutil.which("nbgrader") is None, reason="nbgrader is not installed")
def test_nbgrader_makes_an_assignment_of_the_notebooks(tmp_path):
    source = tmp_path / "source" / "scnet"
    source.mkdir(parents=True)
    for path in PATHS:
        shutil.copy(path, source)
    done = subprocess.run(["nbgrader", "generate_assignment", "scnet", f"--CourseDirectory.root={tmp_path}"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in PATHS:
        released = nbformat.read(tmp_path / "release" / "scnet" / path.name, as_version=4)
        for e in coursework.exercises(released):
            assert "SOLUTION" not in e.answer.source and "NotImplementedError" in e.answer.source
            assert e.check.metadata.nbgrader.get("checksum")
