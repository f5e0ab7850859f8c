"""The notebooks in class: copies for students, grading by nbval, badges.

    python -m scnet_minimal.lab.coursework make OUT                             the students' copy: no answers
    python -m scnet_minimal.lab.coursework grade FOLDER --out grades.csv        hand-ins to a table of points
    python -m scnet_minimal.lab.coursework stamp https://github.com/OWNER/REPO  badges, and where Colab clones from

One source serves teacher and student. An exercise is three cells near the end of a notebook, under "## Exercises":

    text      "### Exercise 2 · title", a line "●●○ · 10 minutes", the task, and a hint in <details>
    answer    functions or methods whose bodies stand between "### BEGIN SOLUTION" and "### END SOLUTION"; folded
              (metadata jupyter.source_hidden), and marked for nbgrader as a solution with the grade_id answer-NN-2
    check     asserts whose messages name the likely mistake, and one printed line; grade_id check-NN-2, points

The answer is always the body of a function, so that an unsolved exercise fails in its check and nowhere else, and
an exercise stands on the notebook's imports alone, so that nobody waits for a training run to begin with it.
"""
import argparse
import copy
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import nbformat

from .walkthrough import NOTEBOOKS, choose

REPOSITORY = ""     # set by "stamp", which writes it into the badges and the notebooks' first cell as well
ROOT = NOTEBOOKS.parent
FOR_STUDENTS = ("scnet_minimal", "data/toynette", "data/trained", "pyproject.toml", "requirements.txt", "LICENSE",
                "notebooks/GLOSSARY.md")        # what a notebook needs to run; tests and teachers' pages stay here
GUIDE = """# SCNet: the notebooks, with exercises

    pip install -r requirements.txt         once: Python 3.10 or newer
    jupyter lab notebooks                   read, run, and solve what stands under "Exercises"
    pytest --nbval notebooks                runs all notebooks; each line that fails is an exercise still to be solved

Write your answer where `# YOUR ANSWER HERE` stands, in place of the line below it, run the cell and then the check
under it. An exercise needs the notebook's first two code cells (finding the package, imports) and nothing else of it.
Take out what you print while working: the check compares what is printed. Hand in the notebooks under their own
names.

"""


class Exercise(NamedTuple):
    """number as in "Exercise 2"; answer and check: its two code cells."""

    number: int
    points: float
    answer: nbformat.NotebookNode
    check: nbformat.NotebookNode


def grade_id(cell) -> str:
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def exercises(notebook) -> list[Exercise]:
    """The notebook's exercises in order."""
    cells = {grade_id(cell): cell for cell in notebook.cells}
    return [Exercise(int(name.rsplit("-", 1)[1]), cell.metadata.nbgrader.points,
                     cells[name.replace("check", "answer")], cell)
            for name, cell in cells.items() if name.startswith("check-")]


# ---- make ----

def without_answers(notebook):
    """A copy whose answers are stubs, unfolded; everything else, reference outputs too, is as it was."""
    notebook = copy.deepcopy(notebook)
    for exercise in exercises(notebook):
        stub = (r'\1# YOUR ANSWER HERE' "\n"
                rf'\1raise NotImplementedError("exercise {exercise.number} is still to be solved")')
        exercise.answer.source, found = re.subn(r"^( +)### BEGIN SOLUTION\n.*?^ *### END SOLUTION *$", stub,
                                                exercise.answer.source, flags=re.M | re.S)
        if not found or "SOLUTION" in exercise.answer.source:
            raise ValueError(f"{grade_id(exercise.answer)}: the answer must stand in a function's body, indented, "
                             "between ### BEGIN SOLUTION and ### END SOLUTION")
        exercise.answer.metadata.pop("jupyter", None)
        exercise.answer.metadata.setdefault("tags", []).append("nbval-ignore-output")   # printing is allowed there
        exercise.check.metadata.update(editable=False, deletable=False)
    return notebook


def make(out: Path, notebooks: Path = NOTEBOOKS) -> int:
    """Writes the students' copy, a folder that runs by itself; returns its number of exercises."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SystemExit(f"{out} is already there: give a new folder, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    paths, count, titles = choose(notebooks, []), 0, []
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    partial.chmod(0o755)
    try:
        for name in FOR_STUDENTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, partial / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).is_file():
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, partial / name)
        (partial / "notebooks").mkdir(exist_ok=True)
        for path in paths:
            notebook = nbformat.read(path, as_version=4)
            nbformat.write(without_answers(notebook), partial / "notebooks" / path.name)
            count += len(exercises(notebook))
            titles.append(f"- [{path.stem[:2]}](notebooks/{path.name}): {len(exercises(notebook))} exercises\n")
        (partial / "README.md").write_text(GUIDE + "".join(titles), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


# ---- stamp ----

FETCH = '''\
        checkout = [pathlib.Path.home() / ".cache" / "scnet-minimal"]     # Colab, Gradient: fetch it
        if not (checkout[0] / "scnet_minimal" / "scnet.py").is_file():
            import subprocess
            subprocess.run(["git", "clone", "--quiet", "--depth=1",
                            "{address}", str(checkout[0])], check=True)
'''


def badges(address: str, name: str) -> str:
    """Markdown of the badges of one notebook; both services open notebooks from GitHub alone."""
    if not (place := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)):
        return ""
    path = f"github/{place[1]}/blob/main/notebooks/{name}"
    return (f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/{path}) "
            f"[![Run on Gradient](https://assets.paperspace.io/img/gradient-badge.svg)]"
            f"(https://console.paperspace.com/{path}?machine=Free-GPU)")


def stamp(address: str, root: Path = ROOT) -> None:
    """Writes the address into the constant above, the first cell of every notebook, and the badges."""
    if not re.fullmatch(r"(https|file)://[\w.:/@~-]+", address):
        raise SystemExit(f"{address!r} is no address of a repository, such as https://github.com/OWNER/REPO")
    badge = r"\[!\[(?:Open in Colab|Run on Gradient)\]\(\S+\)\]\(\S+\)"
    for path in choose(root / "notebooks", []):
        notebook, found = nbformat.read(path, as_version=4), badges(address, path.name)
        text, code = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
        text.source = re.sub(rf"\n\n{badge} {badge}", "", text.source)
        title, _, rest = text.source.partition("\n")
        text.source = "\n".join([title, *(["", found] if found else []), rest])
        code.source = re.sub(r"(?<=    if not checkout:\n).*?(?=    sys\.path\.insert)", FETCH.format(address=address),
                             code.source, count=1, flags=re.S)
        nbformat.write(notebook, path)
    readme, this = root / "README.md", root / "scnet_minimal" / "lab" / "coursework.py"
    text = re.sub(rf"(\]\(notebooks/(\d\d_\w+\.ipynb)\))(?: {badge})*",
                  lambda link: f"{link[1]} {badges(address, link[2])}".rstrip(), readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    text = re.sub(r'^REPOSITORY = ""|^REPOSITORY = "\S*"', f'REPOSITORY = "{address}"',
                  this.read_text(encoding="utf-8"), flags=re.M)
    this.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scnet_minimal.lab.coursework", description=__doc__,
                                     formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("make", formatter_class=raw, help="the students' copy", description=(
        "Writes a folder to hand out: the notebooks without answers, and all that they need to run.\n\n"
        "    %(prog)s build/course        then zip it, or push it to a repository of its own\n\n"
        'There "pytest --nbval notebooks" fails at the unsolved exercises and nowhere else.'))
    one.add_argument("out", type=Path, metavar="OUT", help="a new folder")

    one = commands.add_parser("grade", formatter_class=raw, help="points for what was handed in", description=(
        "Runs every student's notebooks under nbval, with your checks over theirs, and writes a table.\n\n"
        "    handed-in/ada/03_self_calibrated_convolution.ipynb\n"
        "    handed-in/bob/notebooks/03_self_calibrated_convolution.ipynb\n\n"
        "    %(prog)s handed-in --only 03 --out grades.csv --jobs 4\n\n"
        "Each notebook runs in a copy and a process of its own, which guards against accidents, not against malice:\n"
        "students' programs run with your rights. Grade in a container or an account made for it."))
    one.add_argument("folder", type=Path, metavar="FOLDER", help="holds one folder per student, named after them")
    one.add_argument("--out", type=Path, default=Path("grades.csv"), help="the table (grades.csv)")
    one.add_argument("--only", nargs="+", default=[], metavar="NUMBER", help="notebooks to grade, as in 01 03 (all)")
    one.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="at once (%(default)s)")
    one.add_argument("--cell-seconds", type=float, default=300, help="time limit of a cell (%(default)s)")
    one.add_argument("--seconds", type=float, default=1800, help="time limit of a notebook (%(default)s)")
    one.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="yours, with the answers (the repository's)")

    one = commands.add_parser("stamp", formatter_class=raw, help="badges, and where the first cell clones from",
                              description=(
        "Writes the address of your repository into the first cell of every notebook, which then clones it where the\n"
        "package is missing (Colab, Gradient), and, if it is on GitHub, badges to branch main beside the titles.\n\n"
        "    %(prog)s https://github.com/OWNER/REPO"))
    one.add_argument("address", nargs="?", default=REPOSITORY, metavar="https://…",
                     help="without it: the address stamped before, for new notebooks")

    options = parser.parse_args(arguments)
    if options.command == "make":
        print(f"{make(options.out)} exercises to solve in {options.out}")
    elif options.command == "stamp":
        stamp(options.address)
        print(f"stamped with {options.address}; look at the changes, then commit them")
    else:
        from .grading import grade

        rows = grade(options.folder, options.out, choose(options.notebooks, options.only), jobs=max(1, options.jobs),
                     threads=max(1, (os.cpu_count() or 1) // max(1, options.jobs)),
                     cell_seconds=options.cell_seconds, seconds=options.seconds)
        for student in dict.fromkeys(row["student"] for row in rows):
            own = [row for row in rows if row["student"] == student]
            print(f"{student:24} {sum(row['points'] for row in own):g} of {sum(row['max_points'] for row in own):g}")
        print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
