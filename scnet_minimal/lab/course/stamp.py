"""The repository's address, written where readers need it: badges, the notebooks' first cell, pyproject.toml."""
import re
from pathlib import Path

import nbformat

from ..errors import UserError
from .notebooks import ROOT, choose_notebooks, code_cells, read_notebook

FETCH = '''\
        checkout = [pathlib.Path.home() / ".cache" / "scnet-minimal"]     # Colab, Gradient: fetch it
        if not (checkout[0] / "scnet_minimal" / "scnet.py").is_file():
            import subprocess
            subprocess.run(["git", "clone", "--quiet", "--depth=1",
                            "{address}", str(checkout[0])], check=True)
'''
_BADGE = r"\[!\[(?:Open in Colab|Run on Gradient)\]\([^\s()]+\)\]\([^\s()]+\)"
_URLS = re.compile(r'^\[project\.urls\]\nRepository = "(.*)"\n', re.M)


def stamped_address(root: Path = ROOT) -> str:
    """The address in pyproject.toml's [project.urls]; "" before the first stamp."""
    found = _URLS.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    return found[1] if found else ""


def badges(address: str, name: str) -> str:
    """Markdown of one notebook's badges; Colab and Gradient open notebooks from GitHub alone, so elsewhere ""."""
    if not (place := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)):
        return ""
    path = f"github/{place[1]}/blob/main/notebooks/{name}"
    return (f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/{path}) "
            f"[![Run on Gradient](https://assets.paperspace.io/img/gradient-badge.svg)]"
            f"(https://console.paperspace.com/{path}?machine=Free-GPU)")


def stamp(address: str, root: Path = ROOT) -> None:
    """Write the address into pyproject.toml, the first code cell of every notebook, and the badges."""
    if not re.fullmatch(r"(https|file)://[\w.:/@~-]+", address):
        raise UserError(f"{address!r} is not the address of a repository, such as https://github.com/OWNER/REPO.")
    written = {}
    for path in choose_notebooks(root / "notebooks", []):
        notebook, found = read_notebook(path), badges(address, path.name)
        text, code = notebook.cells[0], code_cells(notebook)[0]
        text.source = re.sub(rf"\n\n{_BADGE} {_BADGE}", "", text.source)
        heading, _, rest = text.source.partition("\n")
        text.source = "\n".join([heading, *(["", found] if found else []), rest])
        code.source, n = re.subn(r"(?<=    if not checkout:\n).*?(?=    sys\.path\.insert)",
                                 FETCH.format(address=address), code.source, count=1, flags=re.S)
        if not n:
            raise UserError(f"{path}: its first code cell is not the one that finds the package.")
        written[path] = nbformat.writes(notebook) + "\n"
    readme, project = root / "README.md", root / "pyproject.toml"
    row = rf"^(\| \[[^\]]+\]\(notebooks/(\d\d_\w+\.ipynb)\))(?: {_BADGE})*"         # of the table of notebooks
    written[readme] = re.sub(row, lambda link: f"{link[1]} {badges(address, link[2])}".rstrip(),
                             readme.read_text(encoding="utf-8"), flags=re.M)
    text, urls = project.read_text(encoding="utf-8"), f'[project.urls]\nRepository = "{address}"\n'
    written[project] = _URLS.sub(urls, text) if _URLS.search(text) else \
        text.replace("\n[tool.", f"\n{urls}\n[tool.", 1)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
