"""Students' copies lack the answers and nothing else; grading survives what is handed in; stamps agree."""
import copy
import csv
import ctypes
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from scnet_minimal.lab import coursework
from scnet_minimal.lab.course import grading, room
from scnet_minimal.lab.course.answers import linked, top_level_names
from scnet_minimal.lab.course.exercises import exercises
from scnet_minimal.lab.course.handout import make_handout, without_answers
from scnet_minimal.lab.course.notebooks import NOTEBOOKS, ROOT
from scnet_minimal.lab.course.stamp import badges, stamp, stamped_address
from scnet_minimal.lab.errors import UserError

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
    assert make_handout(out, teacher) == 2
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


def test_a_students_copy_holds_the_pictures_of_the_texts(course):
    texts = [cell.source for path in PATHS for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    pictures = {name for text in texts for name in re.findall(r"\]\((images/[^)]+)\)", text)}
    assert len(pictures) >= 3 and [name for name in pictures if not (course / "notebooks" / name).is_file()] == []


def test_a_students_copy_holds_neither_the_exam_nor_the_teachers_page(course):
    names = {path.name for path in course.rglob("*")}
    assert "GLOSSARY.md" in names and not names & {"EXAM.md", "TEACHING.md"}
    _, _, answers = (NOTEBOOKS / "EXAM.md").read_text(encoding="utf-8").partition("\n# Answers\n")
    lines = [line.strip() for line in answers.splitlines() if len(line) > 60]
    texts = [path.read_text(encoding="utf-8") for path in course.rglob("*") if path.suffix in (".md", ".py", ".ipynb")]
    assert len(lines) > 90 and not [line for line in lines if any(line in text for text in texts)]


def test_the_teachers_table_has_the_minutes_and_points_of_the_exercises():
    page = (NOTEBOOKS / "TEACHING.md").read_text(encoding="utf-8")
    told = [[int(n) for n in row] for row in re.findall(r"^\| \d\d · .*\| (\d+) min, (\d+) points \|$", page, re.M)]
    heads = [re.findall(r"^[●○]{3} · (\d+) minutes · (\d+) points?$",
                        "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells), re.M)
             for path in PATHS]
    assert told == [[sum(map(int, column)) for column in zip(*head)] for head in heads]


def test_the_exam_has_ten_questions_and_ten_answers_for_each_notebook():
    titles = [nbformat.read(path, as_version=4).cells[0].source.splitlines()[0][2:] for path in PATHS]
    halves = (NOTEBOOKS / "EXAM.md").read_text(encoding="utf-8").split("\n# Answers\n")
    for half in halves:
        parts = re.split(r"^## ", half, flags=re.M)[1:]
        assert [part[:5] for part in parts] == [title[:5] for title in titles]
        assert all(re.findall(r"^(\d+)\. ", part, re.M) == [str(n) for n in range(1, 11)] for part in parts)


def test_a_students_copy_runs_by_itself(course):
    assert {path.name for path in course.iterdir()} >= {"notebooks", "scnet_minimal", "data", "requirements.txt",
                                                        "pyproject.toml", "README.md"}
    assert (course / "data" / "toynette" / "train.parquet").is_file() and not list(course.rglob("__pycache__"))
    assert f"](notebooks/{NAME}): 2 exercises" in (course / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
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
    with pytest.raises(UserError, match=course.name):
        make_handout(course, teacher)


@pytest.mark.parametrize("command, place", [
    ("make", "file"), ("make", "file/below"), ("make", "x" * 300), ("make", "/proc/nowhere"),
    ("grade", "handed-in"), ("grade", "file/below.csv"), ("grade", "x" * 300), ("grade", "/proc/grades.csv")])
def test_a_place_that_cannot_be_written_is_named(teacher, tmp_path, capsys, monkeypatch, command, place):
    (tmp_path / "file").touch()
    (tmp_path / "handed-in" / "ada").mkdir(parents=True)
    monkeypatch.setattr(grading, "grade_all", lambda *_: pytest.fail("graded before it was known where to write"))
    out, hand_ins = str(tmp_path / place), str(tmp_path / "handed-in")
    line = [out] if command == "make" else [hand_ins, "--out", out, "--notebooks", str(teacher)]
    assert coursework.main([command, *line]) == 2
    error = capsys.readouterr().err
    assert ("/proc" if place.startswith("/") else place.split("/")[0]) in error
    assert error.count("\n") == 1


def test_an_answer_outside_of_a_function_is_refused():
    notebook = teachers_notebook()
    notebook.cells[ADD].source = "### BEGIN SOLUTION\nadd = sum\n### END SOLUTION"
    with pytest.raises(UserError, match="answer-01-1"):
        without_answers(notebook)


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory):
    """Each notebook's first two code cells, then: no exercise solved, then one more, from the last on."""
    root = tmp_path_factory.mktemp("both-ways")
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "scnet_minimal").symlink_to(ROOT / "scnet_minimal")
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        full, stubs = exercises(notebook), exercises(without_answers(notebook))
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
        cells += [cell for e in [*stubs, *reversed(full)] for cell in (e.answer, e.check)]
        cells = [new_code_cell(cell.source, outputs=cell.outputs, execution_count=1) for cell in cells]
        if full:
            nbformat.write(new_notebook(cells=cells), root / "notebooks" / path.name)
    return failing(root)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_an_exercise_fails_in_its_check_alone_without_its_answer_and_passes_with_it(path, both_ways):
    """It takes the notebook's imports, and no other exercise's answer."""
    n = len(exercises(nbformat.read(path, as_version=4)))
    if not n:
        pytest.skip("no exercises yet")
    assert both_ways[path.stem] == [False, False] + [False, True] * n + [False, False] * n


# ---- grade ----

ANSWER = "def add(a, b):\n    return a + b"
CHECK = ("assert torch.equal(add(torch.ones(2), 1), torch.full((2,), 2.0)), 'is b subtracted?'\n"
         "assert count.half(3) == 1.5")
REQUEST = {"cells": [ANSWER], "wanted": ["add"], "check": CHECK + "\nprint('added')", "printed": "added\n"}


def test_answers_are_linked_with_what_they_use_and_with_nothing_else():
    cells = ["import os\nos.abort()", "%matplotlib inline\nlimit = 3", "def helper(x):\n    return old(x)", "def f(:",
             "def add(a): return 0", "def helper(x):\n    return min(x, limit)", "raise SystemExit",
             "a = old = total",
             "def add(a, b):\n    total = helper(a) + b\n    return total", "print(add(1, 2))",
             "def helper(x): return 9"]
    tree = linked(cells, {"add"})
    assert [top_level_names(node) for node in tree.body] == [["limit"], ["helper"], ["add"]]
    exec(compile(tree, "x", "exec"), space := {})
    assert space["add"](5, 1) == 4
    for missing, fact in (("f", "'f'.*SyntaxError"), ("g", "'g' is not defined$")):
        with pytest.raises(UserError, match=fact):
            linked(cells, {missing})


PATCH = "def add(a, b):\n    {}\n    return a - b"
CHEATS = {                                              # refused, whatever the check says
    "assert": PATCH.format("import builtins; builtins.AssertionError = None"),
    "a packaged function": PATCH.format("torch.equal = lambda *_: True"),
    "a packaged function under another name": PATCH.format("t = torch; t.equal = lambda *_: True"),
    "by setattr": PATCH.format("setattr(torch, 'equal', lambda *_: True)"),
    "when it is defined": "import torch\ndef cheat(f):\n    setattr(torch, 'equal', lambda *_: True)\n    return f\n"
                          "@cheat\ndef add(a, b):\n    return 0",
    "a method of tensors": PATCH.format("torch.Tensor.eq = torch.Tensor.ne"),
    "its code": PATCH.format("count.half.__code__ = (lambda x: 1.5).__code__"),
    "its module": PATCH.format("m = count; m.half = lambda x: 1.5"),
    "an object equal to all": "class Yes(float):\n    def __eq__(self, other): return True\n"
                              "def add(a, b): return Yes(1)",
    "a class made on the way": PATCH.format("return type('Y', (float,), {'__eq__': lambda *_: True})(1)"),
    "the caller's variables": PATCH.format("(x for x in ()).gi_frame.f_back.f_globals['torch'] = None"),
    "the check's cell": "def add(a, b): return 0\n"
                        "get_ipython().input_transformers_cleanup.append(lambda l: ['pass'])\nprint('added')",
    "the printed line": PATCH.format("print('added')"),
    "an early end": PATCH.format("raise SystemExit(0)"),
    "a shell": PATCH.format("torch.os.system('true')"),
    "a file": PATCH.format("open('/tmp/x', 'w')"),
    "names put together": PATCH.format("eval('__imp' + 'ort__')('os')"),
}


@pytest.fixture(scope="module")
def examiner(course, tmp_path_factory):
    imports = ["import types, torch", "from scnet_minimal.lab.study import count\ncount.half = lambda x: x / 2"]
    examiner = grading.Examiner(course, tmp_path_factory.mktemp("room") / "scratch", imports, 1)
    yield lambda request: examiner.ask(REQUEST | request, 5, [])
    examiner.end()


@pytest.mark.slow
def test_right_answers_pass_and_wrong_ones_say_why(examiner):
    for answer, message in {
            ANSWER: "^$", "def add(a, b):\n    print(a)\n    return b + a": "^$",
            "def add(a, b):\n    return a - b": "^is b subtracted.$", "": "'add' is not defined",
            "def add(a, b):\n    return c": "^NameError: .*'c'",
            "def add(a, b):\n    raise NotImplementedError('to be solved')": "^to be solved$",
            "def add(a, b):\n    while True: pass": "5 seconds", "add = add": "NameError",
            "def add(a, b):\n    return add(a, b)": "Recursion", "def add(a, b) return a": "SyntaxError"}.items():
        assert re.search(message, found := examiner({"cells": [answer]})), (answer, found)
    assert "'subtracted'" in examiner({"printed": "subtracted\n"})


@pytest.mark.slow
@pytest.mark.parametrize("cheat", CHEATS)
def test_no_points_for_replacing(cheat, examiner):
    assert examiner({"cells": [CHEATS[cheat]]})
    assert examiner({}) == ""                           # and the next one is none the worse


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces")
def test_a_room_shows_nothing_lets_nothing_out_and_keeps_nothing(tmp_path):
    """A program without any scruple: what it could see, write, reach and leave behind."""
    if not room.can_isolate():
        pytest.skip("this system lets nobody make namespaces")
    other, scratch = tmp_path / "bob", tmp_path / "scratch"
    other.mkdir(), scratch.mkdir()
    (other / "01.ipynb").write_text("bob's answers")
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()

    def attempt(what):
        try:
            return what()
        except OSError as error:
            return errno.errorcode.get(error.errno, "?")

    def fill():
        with (scratch / "big").open("wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()

    def unscrupulous():
        if os.fork() == 0:                              # an orphan with a session of its own
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(987.125)"])
            os._exit(0)
        libc = ctypes.CDLL(None, use_errno=True)
        return json.dumps({
            "sees": os.listdir(other), "writes": attempt(lambda: (tmp_path / "x").write_text("x")),
            "home": attempt(lambda: (Path.home() / ".x").write_text("x")), "own": (scratch / "x").write_text("x"),
            "fills": attempt(fill), "uncovers": libc.umount2(os.fsencode(other), 2),
            "makes writable": libc.mount(b"none", b"/", None, 32 | 4096, None), "processes": len(psutil.pids()) < 9,
            "reaches": attempt(lambda: socket.create_connection(address, 1) and "all"),
            "kills": attempt(lambda: os.kill(parent, 0)), "ends": (scratch / "big").stat().st_size}).encode()

    parent = os.getpid()
    answer, why = room.run_apart(unscrupulous, 30, isolated=True, hidden=[other], scratch=scratch)
    found = json.loads(answer)
    assert found.pop("ends") <= room.DISK and not why
    assert found == {"sees": [], "writes": "EROFS", "home": "EROFS", "own": 1, "fills": found["fills"], "uncovers": -1,
                     "makes writable": -1, "processes": True, "reaches": found["reaches"], "kills": "ESRCH"}
    assert found["fills"] in ("ENOSPC", "EFBIG") and found["reaches"] in ("ENETUNREACH", "ECONNREFUSED")
    assert (other / "01.ipynb").read_text() == "bob's answers" and os.listdir(scratch) == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if "987.125" in str(p.info["cmdline"])]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("isolated", [True, False])
def test_what_does_not_end_is_ended_with_all_that_it_started(tmp_path, isolated):
    def endless():
        os.fork()
        os.setsid()
        while True:
            pass

    if isolated and not room.can_isolate():
        pytest.skip("this system lets nobody make namespaces")
    room.adopt_orphans()
    before = set(psutil.pids())
    assert room.run_apart(endless, 1, isolated=isolated, hidden=[], scratch=tmp_path) == (b"", "timeout")
    assert room.run_apart(lambda: os._exit(3), 5, isolated=isolated, hidden=[], scratch=tmp_path)[1].count("code")
    assert not [p for p in psutil.Process().children(recursive=True) if p.pid not in before]


def test_a_hand_in_is_found_by_its_name_or_by_its_exercises(tmp_path):
    reference, teacher = teachers_notebook(), tmp_path / NAME
    for student, files in {"ada": [f"deep/er/{NAME}"], "jon": ["small (1).ipynb"], "gil": [NAME], "hal": ["notes.txt"],
                           "ivo": [f".ipynb_checkpoints/{NAME}"]}.items():
        for name in files:
            (path := tmp_path / student / name).parent.mkdir(parents=True)
            path.write_text("[]" if student == "gil" else nbformat.writes(reference), encoding="utf-8")
    for thief in ("kim", "lea"):
        (tmp_path / thief).mkdir()
    (tmp_path / "kim" / NAME).symlink_to(tmp_path / "jon" / "small (1).ipynb")
    os.mkfifo(tmp_path / "lea" / NAME)
    found = {student: grading.find_hand_in(tmp_path / student, teacher, reference)
             for student in ("ada", "jon", "gil", "hal", "ivo", "kim", "lea")}
    assert [student for student, (sources, _) in found.items() if sources] == ["ada", "jon"]
    assert all(NAME in found[student][1] for student in ("gil", "kim", "lea"))
    assert found["hal"][1] == found["ivo"][1] != ""


def hand_ins(reference):
    """{student: the notebook handed in}. reference: the students' copy."""
    def changed(*cells, **sources):
        notebook = solved(reference, *cells)
        for i, source in sources.items():
            notebook.cells[int(i[1:])].source = source
        return notebook

    def old(notebook):
        """As another editor may write it: no ids, no nbgrader metadata."""
        for cell in notebook.cells:
            cell.pop("id", None)
            cell.metadata.clear()
        notebook.nbformat_minor = 4
        return notebook

    return {
        "cas": changed(c5="def add(a, b):\n    return a - b", c6="print('added')",
                       c8="class Half:\n    def of(self, x) return x / 2"),
        "dot": changed(c5="def add(a, b):\n    print(a)\n    return a + b",
                       c8="class Half:\n    def of(self, x):\n        while True: pass"),
        "lou": old(solved(reference, ADD, HALVE)),
    }


@pytest.fixture(scope="module")
def graded(teacher, course, tmp_path_factory):
    """Graded once, interrupted after the first hand-in, and then to the end."""
    folder, out = tmp_path_factory.mktemp("handed-in"), tmp_path_factory.mktemp("grades") / "grades.csv"
    (folder / "hal").mkdir()
    for student, notebook in hand_ins(nbformat.read(course / "notebooks" / NAME, as_version=4)).items():
        (folder / student).mkdir()
        nbformat.write(notebook, folder / student / NAME)
    argv = ["grade", str(folder), "--out", str(out), "--notebooks", str(teacher), "--jobs", "1", "--cell-seconds", "8"]
    one, asked = grading.grade_one, []

    def interrupted_at_the_third(student, *rest):
        asked.append(student)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return one(student, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "grade_one", interrupted_at_the_third)
        codes = [coursework.main(argv), coursework.main(argv)]
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {"codes": codes, "rows": rows, "files": list(out.parent.iterdir()), "asked": asked}


@pytest.mark.slow
@pytest.mark.parametrize("student, points, facts", [
    ("cas", (0, 0), ("is b subtracted?", "'Half'.*SyntaxError")),
    ("dot", (1, 0), ("^$", "8 seconds")),
    ("hal", (0, 0), (".", ".")),
    ("lou", (1, 2), ("^$", "^$")),
])
def test_a_hand_in_costs_its_own_row_and_the_row_says_why(graded, student, points, facts):
    rows = [row for row in graded["rows"] if row["student"] == student]
    assert [(row["notebook"], row["exercise"], row["max_points"]) for row in rows] \
        == [("01_small", "1", "1"), ("01_small", "2", "2")]
    assert [int(row["points"]) for row in rows] == list(points)
    for row, fact in zip(rows, facts):
        assert re.search(fact, row["message"]), row["message"]


@pytest.mark.slow
def test_an_interrupted_grading_resumes_and_leaves_one_file(graded):
    assert graded["codes"] == [130, 0] and graded["asked"].count("cas") == graded["asked"].count("dot") == 1
    assert graded["asked"][-2:] == ["hal", "lou"]
    assert len(graded["rows"]) == 2 * 4 and [path.name for path in graded["files"]] == ["grades.csv"]


def test_a_folder_without_students_is_named(teacher, tmp_path, capsys):
    assert coursework.main(["grade", str(tmp_path), "--notebooks", str(teacher)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--jobs", "0"], ["--seconds", "0"], ["--cell-seconds", "nan"], ["--jobs", "x"]])
def test_numbers_that_make_no_sense_are_refused(flags, capsys):
    assert coursework.main(["grade", "handed-in", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


# ---- stamp ----

@pytest.fixture
def checkout(tmp_path):
    """A copy of what stamp changes."""
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    (root / "scnet_minimal").mkdir()
    for name in ("__init__.py", "scnet.py"):
        shutil.copy(ROOT / "scnet_minimal" / name, root / "scnet_minimal")
    for path in PATHS[:2]:
        shutil.copy(path, root / "notebooks")
    shutil.copy(ROOT / "README.md", root)
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_badges_first_cell_and_pyproject_have_the_same_address(checkout):
    stamp("https://github.com/ada/scnet-course", checkout)
    assert stamped_address(checkout) == "https://github.com/ada/scnet-course"
    for path in (checkout / "notebooks").iterdir():
        notebook = nbformat.read(path, as_version=4)
        title, badges = notebook.cells[0].source.splitlines()[:3:2]
        assert title.startswith("# 0")
        assert badges.count(f"/github/ada/scnet-course/blob/main/notebooks/{path.name}") == 2
        assert '"https://github.com/ada/scnet-course"' in notebook.cells[1].source
        assert f"](notebooks/{path.name}) [![Open in Colab]" in (checkout / "README.md").read_text(encoding="utf-8")


def test_the_last_stamp_alone_is_seen_and_stamping_again_changes_nothing(checkout):
    before = contents(checkout)
    stamp("https://github.com/ada/scnet-course", checkout)
    once = contents(checkout)
    stamp("https://github.com/bob/other.git", checkout)
    stamp("https://github.com/ada/scnet-course", checkout)
    assert contents(checkout) == once != before


def test_another_host_gets_an_address_and_no_badges(checkout):
    stamp("https://github.com/ada/scnet-course", checkout)
    stamp("https://git.example.org/ada/course.git", checkout)
    text = b"".join(contents(checkout / "notebooks").values()) + (checkout / "README.md").read_bytes()
    assert b"Open in Colab" not in text and b"ada/scnet-course" not in text
    assert text.count(b"https://git.example.org/ada/course.git") == 2


def test_what_is_no_address_is_refused(checkout):
    before = contents(checkout)
    with pytest.raises(UserError):
        stamp('https://x.org/"); print("', checkout)
    assert contents(checkout) == before


def test_stamping_leaves_the_source_and_the_rest_of_pyproject_alone(checkout):
    before, text = contents(checkout / "scnet_minimal"), (checkout / "pyproject.toml").read_text(encoding="utf-8")
    stamp("https://github.com/ada/scnet-course", checkout)
    assert contents(checkout / "scnet_minimal") == before
    stamped = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    urls = '[project.urls]\nRepository = "https://github.com/ada/scnet-course"\n'
    assert urls in stamped and stamped.replace(urls, "").split() == text.split()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_stamped_notebook_opened_elsewhere_fetches_the_package(checkout, tmp_path):
    """From a bare repository, beside a notebook in a folder that is not written to, without any installed package."""
    bare, home, elsewhere = tmp_path / "course.git", tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    stamp(f"file://{bare}", checkout)
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


def test_the_repositorys_badges_are_those_of_its_address():
    address = stamped_address()
    for path in [*PATHS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        if not badges(address, path.name):
            assert "colab.research.google.com/github" not in text and "console.paperspace.com/github" not in text
        elif path.suffix == ".ipynb":
            assert badges(address, path.name) in text
