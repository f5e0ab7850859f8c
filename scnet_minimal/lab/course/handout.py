"""The students' copy: the notebooks without answers, and what they need to run."""
import copy
import os
import re
import shutil
import tempfile
from pathlib import Path

import nbformat

from ..checks import make_folder
from ..errors import FileError, UserError
from .exercises import exercises, grade_id
from .notebooks import NOTEBOOKS, ROOT, choose_notebooks, read_notebook

# What a notebook needs to run; tests and the teacher's pages stay here.
FOR_STUDENTS = ("scnet_minimal", "data/toynette", "data/trained", "data/studies", "pyproject.toml", "requirements.txt",
                "LICENSE", "notebooks/GLOSSARY.md", "notebooks/explore.html", "notebooks/images")
GUIDE = """# SCNet: the notebooks, with exercises

    pip install -r requirements.txt         once: Python 3.10 or newer
    jupyter lab notebooks                   read, run, and solve what stands under "Exercises"
    pytest --nbval notebooks                runs all notebooks; each failure is an exercise still to be solved

Write your answer where `# YOUR ANSWER HERE` stands, in place of the line below it. Run that cell, then the check under
it. An exercise needs the notebook's first two code cells (finding the package, imports) and nothing else. Remove your
own print lines when you are done: the check compares what is printed. Hand in the notebooks under their own names.

"""


def without_answers(notebook):
    """A copy whose answers are stubs, unfolded; everything else, reference outputs included, stays."""
    notebook = copy.deepcopy(notebook)
    for exercise in exercises(notebook):
        stub = (r'\1# YOUR ANSWER HERE' "\n"
                rf'\1raise NotImplementedError("exercise {exercise.number} is still to be solved")')
        exercise.answer.source, found = re.subn(r"^( +)### BEGIN SOLUTION\n.*?^ *### END SOLUTION *$", stub,
                                                exercise.answer.source, flags=re.M | re.S)
        if not found or "SOLUTION" in exercise.answer.source:
            raise UserError(f"{grade_id(exercise.answer)}: the answer must be the body of a function, indented, "
                            "between ### BEGIN SOLUTION and ### END SOLUTION.")
        exercise.answer.metadata.pop("jupyter", None)
        exercise.answer.metadata.setdefault("tags", []).append("nbval-ignore-output")   # printing is allowed there
        exercise.check.metadata.update(editable=False, deletable=False)
    return notebook


def make_handout(out: Path, notebooks: Path = NOTEBOOKS) -> int:
    """Write the students' copy, a folder that runs by itself; returns its number of exercises."""
    if os.path.exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise FileError(f"{out} is already there: give a new folder, or remove it first.")
    sources = {path: read_notebook(path) for path in choose_notebooks(notebooks, [])}
    make_folder(out.parent)
    try:
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise FileError(f"{out} cannot be written: {error.strerror}.") from error
    partial.chmod(0o755)
    try:
        for name in FOR_STUDENTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, partial / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).is_file():
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, partial / name)
        (partial / "notebooks").mkdir(exist_ok=True)
        index = []
        for path, notebook in sources.items():
            nbformat.write(without_answers(notebook), partial / "notebooks" / path.name)
            index.append(f"- [{path.stem[:2]}](notebooks/{path.name}): {len(exercises(notebook))} exercises\n")
        (partial / "README.md").write_text(GUIDE + "".join(index), encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(len(exercises(notebook)) for notebook in sources.values())
