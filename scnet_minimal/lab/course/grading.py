"""A table of points for what was handed in: a thin loop over nbval.

Each student's notebook runs under pytest --nbval in a copy of the course and in a process of its own, with a time
limit, and with the teacher's checks in place of the student's. What a student wrote never runs in this process;
whatever is wrong with it becomes a message in that student's rows.
"""
import copy
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import psutil
from tqdm import tqdm

from ..checks import make_folder
from ..errors import FileError, UserError
from .exercises import exercises, grade_id
from .handout import make_handout
from .notebooks import code_cells, read_notebook


def find_hand_in(student: Path, teacher: Path, reference):
    """What the student handed in for one of the teacher's notebooks: the notebook, or why there is none.

    Looked for by its name, then by what it holds: downloads come back as "01_why_context (1).ipynb".
    """
    paths = [p for p in student.rglob("*.ipynb") if "/." not in p.relative_to(student.parent).as_posix()]
    paths.sort(key=lambda p: (p.name != teacher.name, len(p.parts), p.name))
    wanted = {grade_id(cell) for e in exercises(reference) for cell in (e.answer, e.check)}
    why = "not handed in"
    for path in paths:
        try:
            notebook = nbformat.read(path, as_version=4)
            if path.name == teacher.name or wanted & {grade_id(cell) for cell in notebook.cells}:
                return with_checks(notebook, reference), ""
        except Exception as error:                      # broken JSON, no notebook at all, cells without a source
            if path.name == teacher.name:
                why = f"{path.name} is not a readable notebook: {type(error).__name__}"
    return None, why


def with_checks(notebook, reference):
    """The student's notebook with the teacher's checks in place of the student's.

    Each follows the last of the student's copies of its answer and itself; where neither is left, it goes to the end.
    """
    cells = notebook.cells
    for exercise in exercises(reference):
        own, check = grade_id(exercise.answer), grade_id(exercise.check)
        last = max((i for i, cell in enumerate(cells) if grade_id(cell) in (own, check)), default=len(cells) - 1)
        before = [cell for cell in cells[:last + 1] if grade_id(cell) != check]
        cells[:last + 1] = [*before, copy.deepcopy(exercise.check)]
    return notebook


def without_long_cells(notebook, reference):
    """A copy in which nbval skips training runs and the like, where the student left them as they were.

    An exercise does not need them, and they take nearly all of the time.
    """
    long = {cell.source for cell in reference.cells if "nbval-ignore-output" in cell.metadata.get("tags", [])}
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.source in long:
            cell.metadata["tags"] = ["nbval-skip"]
    return notebook


def run_nbval(notebook, name: str, course: Path, *, cell_seconds: float, seconds: float,
              threads: int) -> dict[int, str] | str:
    """Run a notebook in a copy of the course: {code cell: why it failed, "" if not}, or why nothing could be run."""
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as scratch:
        room, report = Path(scratch, "course"), Path(scratch, "report.xml")
        shutil.copytree(course, room)
        nbformat.write(notebook, room / "notebooks" / name)
        command = [sys.executable, "-m", "pytest", "--nbval", "-q", "--color=no", "-p", "no:cacheprovider",
                   f"--nbval-cell-timeout={cell_seconds:g}", f"--junitxml={report}", f"notebooks/{name}"]
        process = subprocess.Popen(command, cwd=room, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:g} seconds"
        finally:
            end_process_tree(process.pid)
            process.wait()
        if not report.is_file():
            return "pytest could not run this notebook"
        return {int(case.get("name").removeprefix("Cell ")): failure(case)
                for case in ElementTree.parse(report).iter("testcase") if case.get("name", "").startswith("Cell ")}


def end_process_tree(pid: int) -> None:
    """Kill a process and everything that it started (a kernel has a process group of its own)."""
    try:
        family = psutil.Process(pid).children(recursive=True) + [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def failure(case: ElementTree.Element) -> str:
    """Why nbval failed a cell, in one line; "" if it did not."""
    part = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
    if part is None:
        return ""
    if part.tag == "skipped":                           # nbval: "Previous cell timed out, expected cell to fail"
        return "an earlier cell did not finish"
    text = re.sub(r"#x1B\[[\d;]*m", "", part.text or "")
    if "Failed to interrupt" in text or "Kernel dead" in text:
        return "the kernel died, or could not be interrupted"
    if timeout := re.search(r"Timeout of \S+ seconds exceeded", text):
        return f"{timeout[0]}: is it an endless loop?"
    if "Cell outputs differ" in text:
        return "the check printed something unexpected: does the answer print?"
    errors = re.findall(r"^\w*(?:Error|Exception|Interrupt|Exit)(?:: .*|:? *$)", text, re.M) or ["failed"]
    return re.sub(r"^(AssertionError|NotImplementedError): *(?=\S)", "", errors[-1]).strip()


def grade_one(student: Path, teacher: Path, course: Path, **limits) -> list[dict]:
    """The rows of one student for one notebook. Whatever is wrong with the hand-in goes into their messages."""
    reference = read_notebook(teacher)
    notebook, found = find_hand_in(student, teacher, reference)
    if notebook is not None:
        try:
            found = run_nbval(without_long_cells(notebook, reference), teacher.name, course, **limits)
            if "NameError" in str(by_grade_id(notebook, found)):    # an answer uses what a long cell made, after all
                found = run_nbval(notebook, teacher.name, course, **limits)
        except Exception as error:                      # a notebook that cannot be written, a report cut off
            found = f"could not be run: {error!r}"
    messages, rows = by_grade_id(notebook, found), []
    for exercise in exercises(reference):
        message = messages.get(grade_id(exercise.check), found)
        answer = messages.get(grade_id(exercise.answer), "the cell is gone")
        if message and messages and answer:
            message += f" (answer: {answer})"
        rows.append({"student": student.name, "notebook": teacher.stem, "exercise": exercise.number,
                     "points": 0 if message else exercise.points, "max_points": exercise.points, "message": message})
    return rows


def by_grade_id(notebook, found: dict[int, str] | str) -> dict[str, str]:
    """{grade_id: why that cell failed, "" if it did not}; {} if nothing was run."""
    if isinstance(found, str):
        return {}
    return {grade_id(cell): found.get(i, "was not run") for i, cell in enumerate(code_cells(notebook))
            if grade_id(cell)}


def grade(folder: Path, out: Path, chosen: list[Path], *, jobs: int, **limits) -> list[dict]:
    """Grade every student's folder, several notebooks at once; the table is written to `out` when all are done."""
    students = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) \
        if folder.is_dir() else []
    chosen = [path for path in chosen if exercises(read_notebook(path))]
    if not students or not chosen:
        raise UserError(f"{folder} holds no folder per student." if chosen else "These notebooks have no exercises.")
    make_folder(out.parent)
    partial = out.with_name(f".{out.name}.partial")
    try:                                                # hours of grading must not end at the file that it goes to
        partial.touch()
        if out.is_dir():
            raise IsADirectoryError(0, "it is a folder")
    except OSError as error:
        raise FileError(f"{out} cannot be written: {error.strerror}.") from error
    try:
        with tempfile.TemporaryDirectory(prefix="course-") as scratch:
            course = Path(scratch, "course")
            make_handout(course, chosen[0].parent)      # what students run in holds no answers
            rows = _grade_all(students, chosen, course, jobs, limits)
        with partial.open("w", newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _grade_all(students: list[Path], chosen: list[Path], course: Path, jobs: int, limits: dict) -> list[dict]:
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [pool.submit(grade_one, student, path, course, **limits) for student in students for path in chosen]
        try:
            for task in tqdm(as_completed(tasks), total=len(tasks), unit="notebook", desc="grading"):
                task.result()
        except BaseException:                           # Ctrl-C: nothing keeps running in the background
            pool.shutdown(wait=False, cancel_futures=True)
            for child in psutil.Process().children():
                end_process_tree(child.pid)
            raise
    return [row for task in tasks for row in task.result()]
