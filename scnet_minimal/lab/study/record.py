"""A table of many runs on disk: it grows by a row per run and resumes where it stopped; and what it says.

    record("data/studies/x.csv", jobs, work, key=("block", "seed"), processes=2)

runs work(job) -> row, or rows, for every job whose key no row has yet.  They are appended in one write when the run is
done, so a killed recording loses no finished run, and two recordings may share a table.
"""
import contextlib
import csv
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..device import processor_name
from ..errors import FileError, MissingFileError, UserError

STUDIES = Path(__file__).resolve().parents[3] / "data" / "studies"
LEVELS = ("default", "avx2", "avx512")                                  # of x86, each holding the one before
ONEDNN = {"default": "SSE41", "avx2": "AVX2", "avx512": "AVX512_CORE"}  # the same for PyTorch's convolutions
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


# --- the table --------------------------------------------------------------------------------------------------------

def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV, every value as text; none if there is no file.  A last line without its end does not count."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}.") from error
    return list(csv.DictReader(io.StringIO(text[:text.rfind("\n") + 1])))


def recorded(name: str) -> list[dict[str, str]]:
    """The rows of data/studies/NAME.csv, which comes with the repository.

    MissingFileError if it is neither in the checkout nor in a data/studies above the working folder.
    """
    above = [folder / "data" / "studies" for folder in (Path.cwd(), *Path.cwd().parents)]
    for path in (folder / f"{name}.csv" for folder in (STUDIES, *above)):
        if path.is_file():
            return read_rows(path)
    raise MissingFileError(f"There is no {name}.csv in {STUDIES}, nor in a data/studies above the working folder: it "
                           "comes with the repository.")


def append_row(path: str | Path, *rows: dict) -> None:
    """Add a row, or several in one write, with the names of the columns first if the file is new; on disk when this
    returns.

    UserError if the table has other columns.
    """
    path, lines, row = Path(path), io.StringIO(newline=""), rows[0]
    writer = csv.DictWriter(lines, list(row), lineterminator="\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            header = file.readline().decode()
            if not header.endswith("\n"):
                file.truncate(0)                                        # new, or torn within its first line
                writer.writeheader()
            elif header.strip().split(",") != list(row):
                raise UserError(f"{path} has the columns {header.strip()}, and these runs {','.join(row)}: name "
                                "another file.")
            else:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    drop_torn_line(file)
            writer.writerows(rows)
            file.write(lines.getvalue().encode())                       # at the end, whoever else writes
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error


def drop_torn_line(file: io.BufferedRandom) -> None:
    """Cut what a run that was killed while it wrote has left at the end."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


# --- the runs ---------------------------------------------------------------------------------------------------------

def setting(isa: str, threads: int) -> dict[str, str]:
    """The columns that say where a run took place; "native" is what PyTorch takes by itself."""
    return {"isa": native_level() if isa == "native" else isa, "threads": str(threads),
            "torch": torch.__version__.split("+")[0], "processor": processor_name()}


def native_level() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()


def environment(isa: str) -> dict[str, str]:
    """What to set before PyTorch starts, so that it keeps to these instructions.  UserError if the CPU lacks them."""
    if isa == "native":
        return {}
    if native_level() not in LEVELS or LEVELS.index(isa) > LEVELS.index(native_level()):
        raise UserError(f"--isa {isa}: this processor has {native_level()}; take native.")
    return {"ATEN_CPU_CAPABILITY": isa, "ONEDNN_MAX_CPU_ISA": ONEDNN[isa]}


@contextlib.contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    """os.environ with these values, for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def record(path: str | Path, jobs: Sequence[dict], work: Callable[[dict], dict | list[dict]], *, key: Sequence[str],
           processes: int = 1, threads: int = 1, isa: str = "native") -> int:
    """Append work(job), a row or several, for every job of which the table has no row with the same `key` columns; how
    many ran.

    work must be importable by name: it runs in new processes, with `threads` threads each.
    """
    done = {tuple(row[k] for k in key) for row in read_rows(path)}
    todo = [job for job in jobs if tuple(str(job[k]) for k in key) not in done]
    if not todo:
        return 0
    with environ({**environment(isa), "OMP_NUM_THREADS": str(threads)}), multiprocessing.get_context("spawn").Pool(
            min(processes, len(todo)), start_worker, (threads,)) as pool:
        for rows in tqdm(pool.imap_unordered(work, todo), total=len(todo), unit="run", desc=Path(path).stem,
                         file=sys.stdout):
            append_row(path, *([rows] if isinstance(rows, dict) else rows))
    return len(todo)


def start_worker(threads: int) -> None:
    """In each new process: its threads; Ctrl-C is for the parent, which ends this one."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- what it says -----------------------------------------------------------------------------------------------------

def quantiles(rows: Sequence[dict], by: Sequence[str], column: str) -> dict[tuple[str, ...], tuple[int, np.ndarray]]:
    """Per group of rows that agree in the columns `by`, in the order of the table: n, and QUANTILES of a column."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in by), []).append(float(row[column]))
    return {group: (len(values), np.quantile(values, QUANTILES)) for group, values in groups.items()}


def failure_bound(n: int, runs: int, confidence: float = 0.95) -> float:
    """How often, at most, all of `runs` new runs miss what each of n recorded runs reached.

    A miss of chance p passes unseen n times with chance (1 - p)**n, so that p <= 1 - (1 - confidence)**(1 / n) (about
    3 / n), and `runs` runs miss together with chance p**runs.  Nothing is assumed of the distribution; only that the
    new runs are independent draws from it.
    """
    return (1 - (1 - confidence) ** (1 / n)) ** runs


def failure_estimate(values: Sequence[float], threshold: float) -> float:
    """The chance that one new run falls beyond a threshold outside the middle half of the values recorded.

    An estimate, not a bound: it takes the quarter of the values on that side to thin out exponentially, at the pace of
    their mean distance from the quartile.  (Heavier than a normal tail; two heaps of values are another matter.)
    """
    values = np.asarray(values, float)
    if threshold > np.median(values):
        values, threshold = -values, -threshold
    quartile = np.quantile(values, 0.25)
    if threshold > quartile:
        raise ValueError(f"{abs(threshold)} lies within the middle half of the values")
    return float(0.25 * np.exp((threshold - quartile) / np.mean(quartile - values[values <= quartile])))
