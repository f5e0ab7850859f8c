"""Runs the notebooks in order, writes each as a page with its pictures, and ends with what was found.

    python -m scnet_minimal.lab.walkthrough             every notebook
    python -m scnet_minimal.lab.walkthrough 03 05       these two

The notebooks themselves stay as they are. The text that a notebook is remembered for is what its cell tagged
"findings" prints.
"""
import argparse
import html
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from tqdm import tqdm

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
STYLE = "body{max-width:52em;margin:2em auto;padding:0 1em;font-family:sans-serif}pre{background:#f4f4f4;padding:1em;" \
        "overflow-x:auto}"


def choose(folder: Path, numbers: list[str]) -> list[Path]:
    """The notebooks of the folder in order, or those with the given numbers ("3" and "03" are the same)."""
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise SystemExit(f"no notebooks in {folder}: run this inside a clone of the repository")
    unknown = [n for n in numbers if not n.isdecimal() or int(n) not in found]
    if unknown:
        raise SystemExit(f"no notebook {', '.join(unknown)}: there are {', '.join(f'{n:02}' for n in found)}")
    return [path for n, path in found.items() if not numbers or n in map(int, numbers)]


def run(path: Path) -> SimpleNamespace:
    """Executes one notebook in its own folder: its new state, its minutes, and why it stopped early ("" if not)."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:                   # where a run stops early, no older run's output must show
        cell.outputs, cell.execution_count = [], None
    started, done, stopped = time.monotonic(), [], ""
    with tqdm(total=len(code), desc=path.stem, unit="cell", bar_format="{desc} {bar:30} cell {n}/{total}, {elapsed}",
              mininterval=0, file=sys.stdout) as bar:
        client = NotebookClient(notebook, kernel_name=NATIVE_KERNEL_NAME, timeout=None, coalesce_streams=True,
                                resources={"metadata": {"path": str(path.parent)}},
                                on_cell_execute=lambda cell, **_: (done.append(cell), bar.update()))
        # Without kernel folders, only this very Python is left: no kernel of another environment can step in.
        client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        try:
            client.execute(stderr=subprocess.DEVNULL)       # the kernel's own log; what cells print comes another way
        except Exception as error:                          # a cell's error, a dead kernel: the others still run
            if hasattr(client, "_async_cleanup_kernel_future"):         # how nbclient ends after Ctrl-C
                raise KeyboardInterrupt from None
            kind, why = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
            stopped = f"stopped at cell [{len(done)}]: {kind}: {(why.strip().splitlines() or ['no message'])[-1]}"
    return SimpleNamespace(path=path, notebook=notebook, minutes=(time.monotonic() - started) / 60, stopped=stopped)


def title(notebook) -> str:
    return re.search(r"^# *(.*)|$", notebook.cells[0].source, re.M)[1] or "untitled"


def findings(notebook) -> str:
    """What the cell tagged "findings" printed."""
    outputs = [out for cell in notebook.cells if "findings" in cell.metadata.get("tags", []) for out in cell.outputs]
    return "".join(out.get("data", {}).get("text/plain", "") if "data" in out else out.get("text", "")
                   for out in outputs if out.get("name") != "stderr").strip("\n")


def write_page(walk, out: Path) -> None:
    """One self-contained page. Only MathJax comes from the network: offline, equations show as TeX."""
    exporter = HTMLExporter(template_name="lab", embed_images=True, require_js_url="")
    page, _ = exporter.from_notebook_node(walk.notebook, {"metadata": {"name": title(walk.notebook),
                                                                       "path": str(walk.path.parent)}})
    page = re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)      # from page to page
    (out / f"{walk.path.stem}.html").write_text(page, encoding="utf-8")


def write_index(walks, out: Path, folder: Path) -> Path:
    parts = [f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Walkthrough</title><style>{STYLE}</style>"
             "<h1>Walkthrough</h1><p>Equations are typeset by MathJax, which the browser fetches: offline they show "
             "as TeX.</p>"]
    for walk in walks:
        parts.append(f"<h2><a href='{walk.path.stem}.html'>{html.escape(title(walk.notebook))}</a></h2>"
                     f"<p>{walk.minutes:.1f} minutes. {html.escape(walk.stopped)}</p>"
                     f"<pre>{html.escape(findings(walk.notebook))}</pre>")
    now = [walk.path for walk in walks]
    earlier = [p.stem for p in choose(folder, []) if p not in now and (out / f"{p.stem}.html").is_file()]
    if earlier:
        parts.append("<h2>From earlier walks</h2>" + "".join(f"<p><a href='{s}.html'>{s}</a></p>" for s in earlier))
    index = out / "index.html"
    index.write_text("\n".join(parts), encoding="utf-8")
    return index


def report(walks) -> str:
    """The closing table: per notebook its minutes, where it stopped if it did, and what it found."""
    lines = ["", "What was found"]
    for walk in walks:
        lines += ["", f"{title(walk.notebook)}  ({walk.minutes:.1f} min)"]
        lines += [f"    {line}" for line in [walk.stopped, *findings(walk.notebook).splitlines()] if line]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scnet_minimal.lab.walkthrough", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__, epilog="Exit code: 0, or 1 if a notebook stopped early; the others run all the same.")
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks to run, as in 01 03; none means all")
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for the pages (build)")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the notebooks (the repository's)")
    options = parser.parse_args(arguments)
    chosen, walks = choose(options.notebooks, options.numbers), []
    options.out.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        walk = run(path)
        if walk.stopped:
            print(f"{path.stem} {walk.stopped}")
        write_page(walk, options.out)
        walks.append(walk)
    index = write_index(walks, options.out, options.notebooks)
    print(report(walks), f"\nPages with pictures: {index.resolve()}", sep="\n")
    return any(walk.stopped for walk in walks)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
