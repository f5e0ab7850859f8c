"""The course's notebooks: finding and reading them; their title, question, cover and findings."""
import os
import re
from pathlib import Path

import nbformat

from ..errors import FileError, MissingFileError, UserError

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOKS = ROOT / "notebooks"


def choose_notebooks(folder: Path, numbers: list[str]) -> list[Path]:
    """The folder's notebooks in order, or those with the given numbers ("3" and "03" are the same)."""
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise MissingFileError(f"There are no notebooks in {folder}: run this inside a clone of the repository.")
    unknown = [n for n in numbers if not n.isdecimal() or int(n) not in found]
    if unknown:
        raise UserError(f"There is no notebook {', '.join(unknown)}: choose from "
                        f"{', '.join(f'{n:02}' for n in found)}.")
    return [path for n, path in found.items() if not numbers or n in map(int, numbers)]


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook with at least one cell.  UserError for anything else."""
    if os.path.lexists(path) and not path.is_file():        # a FIFO would make us wait
        raise FileError(f"{path} cannot be read: it is no file.")
    try:
        notebook = nbformat.read(path, as_version=4)
        cells = [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception as error:          # broken JSON, a list, cells without a source: nbformat raises many types
        reason = (str(error).strip().splitlines() or [""])[0][:100]
        raise UserError(f"{path} is not a readable notebook ({type(error).__name__}: {reason}).") from error
    if not cells:
        raise UserError(f"{path} has no cells.")
    return notebook


def code_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def title(notebook) -> str:
    return re.search(r"^# *(.*)|\Z", notebook.cells[0].source, re.M)[1] or "untitled"


def question(notebook) -> str:
    """One sentence on what the notebook is about: the line in italics below the title, or else the first sentence."""
    text = re.sub(r"\[!\[.*?\]\(\S+\)\]\(\S+\)", "", notebook.cells[0].source)          # badges
    paragraphs = [part for part in re.split(r"\n\s*\n", text.partition("\n")[2].strip()) if part.strip()]
    for part in paragraphs:
        if italic := re.fullmatch(r"\*([^*]+)\*", part.strip()):
            return " ".join(italic[1].split())
    first = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraphs[0] if paragraphs else "")     # links
    return re.match(r".*?[.?!](?=\s|$)|.*", " ".join(re.sub("[*`]", "", first).split()))[0]


def tagged_outputs(notebook, tag: str | None) -> list[nbformat.NotebookNode]:
    """The outputs of the code cells with this tag; None: of all code cells."""
    return [out for cell in code_cells(notebook) if tag is None or tag in cell.metadata.get("tags", [])
            for out in cell.outputs]


def cover(notebook) -> tuple[str, str] | None:
    """A picture that stands for the notebook (PNG in base64, its alt text): of the cell tagged "cover", or of the one
    tagged "findings", or the first there is.
    """
    for tag in ("cover", "findings", None):
        for out in tagged_outputs(notebook, tag):
            if png := out.get("data", {}).get("image/png"):
                return "".join(png.split()), out.metadata.get("image/png", {}).get("alt", "")
    return None


def findings(notebook) -> str:
    """What the cell tagged "findings" printed, pictures left out."""
    texts = [out.get("text", "") if "data" not in out else
             "" if any(kind.startswith("image/") for kind in out.data) else out.data.get("text/plain", "") + "\n"
             for out in tagged_outputs(notebook, "findings") if out.get("name") != "stderr"]
    return "".join(texts).strip("\n")
