"""Run the notebooks in order, write each as a web page, and print what they found.

    python -m scnet_minimal.lab.walkthrough             every notebook
    python -m scnet_minimal.lab.walkthrough 03 05       these two

The notebooks themselves are not changed. Open build/index.html to read.
"""
import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
from nbclient import NotebookClient
from tqdm import tqdm

from .checks import make_folder, place
from .command_line import Parser, exit_code, run_command
from .course.grading import end_process_tree
from .course.notebooks import NOTEBOOKS, choose_notebooks, code_cells, findings, read_notebook, title
from .course.pages import Walk, write_front_page, write_notebook_page
from .errors import UserError

COMMAND = "python -m scnet_minimal.lab.walkthrough"


def run_notebook(path: Path) -> Walk:
    """Execute one notebook in its own folder, in this Python."""
    notebook = read_notebook(path)
    code = code_cells(notebook)
    for cell in code:                       # where a run stops early, no output of an older one must show
        cell.outputs, cell.execution_count = [], None
    started, done, stopped = time.monotonic(), [], ""
    with tqdm(total=len(code), desc=path.stem, unit="cell", bar_format="{desc} {bar:30} cell {n}/{total}, {elapsed}",
              mininterval=0, file=sys.stdout) as bar:
        client = NotebookClient(notebook, kernel_name=NATIVE_KERNEL_NAME, timeout=None, coalesce_streams=True,
                                shutdown_kernel="immediate", resources={"metadata": {"path": str(path.parent)}},
                                on_cell_execute=lambda cell, **_: (done.append(cell), bar.update()))
        # Without kernel folders, this very Python is the only kernel: none of another environment can step in.
        client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
        # In a thread, because in the main thread nbclient would answer Ctrl-C itself and report a dead kernel.
        pool = ThreadPoolExecutor(1)
        try:
            pool.submit(client.execute, stderr=subprocess.DEVNULL).result()     # not what cells print: the kernel's log
        except Exception as error:          # a cell's error, a dead kernel: the other notebooks still run
            if code and not done:
                raise UserError(f"The kernel did not start: {error}") from error
            kind, why = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
            stopped = f"stopped at cell [{len(done)}]: {kind}: {(why.strip().splitlines() or ['no message'])[-1]}"
        finally:
            pool.shutdown(wait=False)
    return Walk(path, notebook, (time.monotonic() - started) / 60, stopped)


def closing_table(walks: list[Walk]) -> str:
    """Per notebook its minutes, where it stopped if it did, and what it found."""
    lines = ["", "What was found"]
    for walk in walks:
        lines += ["", f"{title(walk.notebook)}  ({walk.minutes:.1f} min)"]
        lines += [f"    {line}" for line in [walk.stopped, *findings(walk.notebook).splitlines()] if line]
    return "\n".join(lines)


def walk_through(chosen: list[Path], out: Path, folder: Path) -> list[Walk]:
    """Run the chosen notebooks, and write their pages and the front page into the folder `out`.

    Pages that earlier walks left in `out` are linked too; for them the stored notebook gives title and picture.
    """
    make_folder(out)
    pages = {path: Walk(path, read_notebook(path)) for path in choose_notebooks(folder, [])
             if path in chosen or (out / f"{path.stem}.html").is_file()}
    for path in chosen:
        pages[path] = run_notebook(path)
        if pages[path].stopped:
            print(f"{path.stem} {pages[path].stopped}")
        write_notebook_page(pages[path], out, list(pages.values()))
    write_front_page(list(pages.values()), out)
    return [pages[path] for path in chosen]


def parser() -> Parser:
    p = Parser(
        prog=COMMAND, formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog="Exit code: 0; 1 if a notebook stopped early (the others still run); 2 for wrong arguments.")
    p.add_argument("numbers", nargs="*", metavar="NUMBER", help="notebooks to run, as in 01 03; none means all")
    p.add_argument("--out", type=place, default=Path("build"), help="folder for the pages (build)")
    p.add_argument("--notebooks", type=place, default=NOTEBOOKS, help="folder of the notebooks (the repository's)")
    return p


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        args = parser().parse_args(argv)
        try:
            walks = walk_through(choose_notebooks(args.notebooks, args.numbers), args.out, args.notebooks)
        except KeyboardInterrupt:           # at once: nbclient's own clean-up would wait for the kernel
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for child in psutil.Process().children():
                end_process_tree(child.pid)
            print("\ninterrupted", file=sys.stderr, flush=True)
            os._exit(130)
        print(closing_table(walks), f"\nPages: {(args.out / 'index.html').resolve()}", sep="\n")
        return int(any(walk.stopped for walk in walks))

    return exit_code(run)


if __name__ == "__main__":
    run_command(main, cleans_up=True)
