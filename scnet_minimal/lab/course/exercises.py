"""Exercises as they stand in a notebook.

An exercise is three cells near the end of a notebook, under "## Exercises":

    text      "### Exercise 2 · title", a line "●●○ · 10 minutes · 2 points", the task, and a hint in <details>
    answer    functions or methods whose bodies stand between "### BEGIN SOLUTION" and "### END SOLUTION"; folded
              (metadata jupyter.source_hidden), and for nbgrader a solution with the grade_id answer-NN-2
    check     asserts whose messages name the likely mistake, and one printed line; grade_id check-NN-2, points;
              a long one may be folded, too

The answer is always the body of a function, so that an unsolved exercise fails in its check and nowhere else. An
exercise needs the notebook's imports alone, so that nobody waits for a training run before starting on it.
"""
from typing import NamedTuple

from nbformat import NotebookNode


class Exercise(NamedTuple):
    """number as in "Exercise 2"; answer and check: its two code cells."""
    number: int
    points: float
    answer: NotebookNode
    check: NotebookNode


def grade_id(cell) -> str:
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def exercises(notebook) -> list[Exercise]:
    """The notebook's exercises in order."""
    cells = {grade_id(cell): cell for cell in notebook.cells}
    return [Exercise(int(name.rsplit("-", 1)[1]), cell.metadata.nbgrader.points,
                     cells[name.replace("check", "answer")], cell)
            for name, cell in cells.items() if name.startswith("check-")]
