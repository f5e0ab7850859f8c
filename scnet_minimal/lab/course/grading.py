"""A table of points for what was handed in.

Of a student's notebook the answers alone are taken, with what they call (answers.py), and the teacher's checks are run
on them, each in a process and a room of its own (examine.py, room.py): nothing that a student wrote runs in this
process.  Whatever is wrong with a hand-in becomes a message in that student's rows.
"""
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import psutil
from tqdm import tqdm

from ..checks import check_writable
from ..errors import FileError, UserError
from ..train.checkpoint import write_file
from .answers import answer_names
from .exercises import exercises, grade_id
from .handout import make_handout
from .notebooks import code_cells, read_notebook

LARGEST = 20 * 2**20            # bytes of a hand-in
START_SECONDS = 600             # for an examiner's imports, on a busy machine


def find_hand_in(student: Path, teacher: Path, reference):
    """What the student handed in for one of the teacher's notebooks: the notebook, or why there is none.

    Looked for by its name, then by what it holds: downloads come back as "01_why_context (1).ipynb".  Links are not
    followed, for they may lead to another student's.
    """
    paths = [Path(where, name) for where, folders, names in os.walk(student) for name in names
             if name.endswith(".ipynb") and "/." not in Path(where, name).relative_to(student.parent).as_posix()]
    paths.sort(key=lambda p: (p.name != teacher.name, len(p.parts), p.name))
    wanted = {grade_id(cell) for e in exercises(reference) for cell in (e.answer, e.check)}
    why = "not handed in"
    for path in paths:
        try:
            if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
                raise UserError(f"a link, no file, or more than {LARGEST // 2**20} MB")
            notebook = nbformat.read(path, as_version=4)
            found = {grade_id(cell) for cell in notebook.cells}
            sources = [str(cell.source) for cell in code_cells(notebook)]
            if path.name == teacher.name or wanted & found:
                return sources, ""
        except Exception as error:                      # broken JSON, no notebook at all, cells without a source
            if path.name == teacher.name:
                why = f"{path.name} is not a readable notebook: " \
                      f"{error if isinstance(error, UserError) else type(error).__name__}"
    return None, why


# --- the examiner -----------------------------------------------------------------------------------------------------

class Examiner:
    """A process that has run a notebook's imports: ask() it about one exercise after another."""

    def __init__(self, course: Path, scratch: Path, imports: list[str], threads: int) -> None:
        self.scratch = scratch
        scratch.mkdir(parents=True)
        folders = {name: str(scratch) for name in ("HOME", "TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scnet_minimal.lab.course.examine"], cwd=course / "notebooks",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            env={**os.environ, **folders, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE",
                 "MPLBACKEND": "Agg", "PYTHONPATH": str(course), "PYTHONDONTWRITEBYTECODE": "1"})
        self.isolated = bool(self._exchange({"imports": imports}, START_SECONDS).get("isolated"))

    def ask(self, request: dict, seconds: float, hidden: list[Path]) -> str:
        """Why the answers fail the check, "" if they do not."""
        request = request | {"seconds": seconds, "hidden": list(map(str, hidden)), "scratch": str(self.scratch)}
        return str(self._exchange(request, seconds + 60).get("message", "the examiner ended: look at it yourself"))

    def _exchange(self, request: dict, seconds: float) -> dict:
        """The answer; {} if there was none in time, and then the process is gone."""
        alarm = threading.Timer(seconds, self.end)
        alarm.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.end()
            return {}
        finally:
            alarm.cancel()

    def end(self) -> None:
        end_process_tree(self.process.pid)
        self.process.wait()


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


# --- the table --------------------------------------------------------------------------------------------------------

def grade_one(student: str, teacher: Path, sources: list[str] | None, why: str, ask) -> list[dict]:
    """The rows of one student for one notebook; ask(request) -> message."""
    rows = []
    for exercise in exercises(read_notebook(teacher)):
        printed = "".join(out.get("text", "") for out in exercise.check.outputs if out.get("name") == "stdout")
        message = why if sources is None else ask({
            "cells": sources, "wanted": sorted(answer_names(exercise.answer.source)), "check": exercise.check.source,
            "printed": printed})
        rows.append({"student": student, "notebook": teacher.stem, "exercise": exercise.number,
                     "points": 0 if message else exercise.points, "max_points": exercise.points, "message": message})
    return rows


def grade(folder: Path, out: Path, chosen: list[Path], *, jobs: int, threads: int, cell_seconds: float,
          seconds: float) -> list[dict]:
    """Grade every student's folder, several at once.  The table is written to `out` at the end; until then all that
    is graded stands in a file beside it, from which an interrupted grading resumes."""
    if not hasattr(os, "fork"):
        raise UserError("Grading needs Linux or macOS; on Windows, run it in WSL.")
    students = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()
                      and not p.name.startswith(".")) if folder.is_dir() else []
    chosen = [path for path in chosen if exercises(read_notebook(path))]
    if not students or not chosen:
        raise UserError(f"{folder} holds no folder per student." if chosen else "These notebooks have no exercises.")
    check_writable(out)
    if out.is_file() and not out.stat().st_size:
        out.unlink()
    done_file = out.with_name(f".{out.name}.part")
    done = read_done(done_file)
    todo, rows = [], {}
    for teacher in chosen:                              # notebook by notebook: an examiner serves one
        reference = read_notebook(teacher)
        for student in students:
            sources, why = find_hand_in(student, teacher, reference)
            key = hashlib.sha256(json.dumps([student.name, teacher.read_text(encoding="utf-8"), sources, why]).encode()
                                 ).hexdigest()
            rows[key] = done.get(key)
            if not rows[key]:
                todo.append((key, student.name, teacher, sources, why))
    hidden, lock, started = [folder, chosen[0].parent], threading.Lock(), time.monotonic()
    limits = dict(hidden=hidden, cell_seconds=cell_seconds, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as scratch:
        pool = Examiners(Path(scratch), chosen[0].parent, threads)
        for key, found in grade_all(todo, pool, jobs, limits):
            with lock:
                rows[key] = found
                write_file(done_file, json.dumps({k: r for k, r in rows.items() if r}).encode())
    table = [row for found in rows.values() for row in found]
    table.sort(key=lambda row: (row["student"], row["notebook"], row["exercise"]))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, table[0])
    writer.writeheader()
    writer.writerows(table)
    write_file(out, text.getvalue().encode("utf-8", "replace"))
    done_file.unlink(missing_ok=True)
    if todo:
        print(f"{len(todo)} notebooks, {(time.monotonic() - started) / len(todo):.1f} s each"
              + ("" if pool.isolated else "; not isolated on this machine, see notebooks/TEACHING.md"))
    return table


def read_done(path: Path) -> dict[str, list[dict]]:
    """What an interrupted grading has written: {what was graded, as a hash: its rows}."""
    try:
        done = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise FileError(f"{path}, where an interrupted grading left its results, cannot be read: delete it.") from error
    return done if isinstance(done, dict) else {}


class Examiners:
    """Examiners for the threads of a pool, each with a students' copy of the course (which holds no answers).

    Where rooms cannot be isolated, each hand-in gets a copy and an examiner of its own.
    """

    def __init__(self, scratch: Path, notebooks: Path, threads: int) -> None:
        self.scratch, self.notebooks, self.threads, self.isolated = scratch, notebooks, threads, True
        self.local, self.lock, self.count = threading.local(), threading.Lock(), 0
        self.all, self.closed = [], False
        make_handout(scratch / "0", notebooks)

    def get(self, teacher: Path) -> Examiner:
        """This thread's examiner for a notebook, a new one if need be."""
        last = getattr(self.local, "examiner", None)
        if last and self.isolated and self.local.teacher == teacher and last.process.poll() is None:
            return last
        if last:
            last.end()
        with self.lock:
            if self.closed:
                raise UserError("interrupted")
            self.count += 1
            course, room = self.scratch / "0", self.scratch / f"room-{self.count}"
            if not self.isolated:
                course = self.scratch / str(self.count)
                make_handout(course, self.notebooks)
        imports = [cell.source for cell in code_cells(read_notebook(teacher))[:2]]
        self.local.teacher, self.local.examiner = teacher, Examiner(course, room, imports, self.threads)
        self.isolated &= self.local.examiner.isolated
        self.all.append(self.local.examiner)
        return self.local.examiner

    def close(self) -> None:
        """End all, in peace from further Ctrl-C."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
        with self.lock:
            self.closed = True
        for examiner in self.all:
            examiner.end()
        if main:
            signal.signal(signal.SIGINT, before)


def grade_all(todo: list, pool: Examiners, jobs: int, limits: dict) -> Iterator[tuple[str, list[dict]]]:
    """(key, rows) of each hand-in as it is graded; if this ends early, nothing keeps running."""
    def work(key: str, student: str, teacher: Path, sources: list[str] | None, why: str) -> tuple[str, list[dict]]:
        end = time.monotonic() + limits["seconds"]

        def ask(request: dict) -> str:
            left = min(limits["cell_seconds"], end - time.monotonic())
            if left <= 0:
                return f"stopped after {limits['seconds']:g} seconds in all"
            return pool.get(teacher).ask(request, left, limits["hidden"])

        return key, grade_one(student, teacher, sources, why, ask)

    with ThreadPoolExecutor(jobs) as threads:
        tasks = [threads.submit(work, *one) for one in todo]
        try:
            for task in tqdm(as_completed(tasks), total=len(tasks), unit="notebook", desc="grading"):
                yield task.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            pool.close()
