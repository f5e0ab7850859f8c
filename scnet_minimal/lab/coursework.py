"""The notebooks in class: copies for students, grading, badges.

    python -m scnet_minimal.lab.coursework make OUT                             the students' copy: no answers
    python -m scnet_minimal.lab.coursework grade FOLDER --out grades.csv        a table of points for what came back
    python -m scnet_minimal.lab.coursework stamp https://github.com/OWNER/REPO  badges, and where Colab clones from

One source serves teachers and students: notebooks/TEACHING.md says how exercises are written.
"""
import argparse
from pathlib import Path

from .checks import Number, place
from .command_line import Parser, exit_code, run_command
from .course.grading import grade
from .course.handout import make_handout
from .course.notebooks import NOTEBOOKS, choose_notebooks
from .course.stamp import stamp, stamped_address
from .device import cores

COMMAND = "python -m scnet_minimal.lab.coursework"


def parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    p = Parser(prog=COMMAND, description=__doc__, formatter_class=raw)
    commands = p.add_subparsers(dest="command", required=True)

    one = commands.add_parser("make", formatter_class=raw, help="the students' copy", description=(
        "Write a folder to hand out: the notebooks without answers, and all that they need to run.\n\n"
        f"    {COMMAND} make build/course        then zip it, or push it to a repository of its own\n\n"
        'There "pytest --nbval notebooks" fails at the unsolved exercises and nowhere else.'))
    one.add_argument("out", type=place, metavar="OUT", help="a new folder")

    one = commands.add_parser("grade", formatter_class=raw, help="points for what was handed in", description=(
        "Run your checks on every student's answers, and write a table. The same line resumes an interrupted run.\n\n"
        "    handed-in/ada/03_self_calibrated_convolution.ipynb\n"
        "    handed-in/bob/notebooks/03_self_calibrated_convolution.ipynb\n\n"
        f"    {COMMAND} grade handed-in --only 03 --out grades.csv --jobs 4\n\n"
        "Each check runs in a process of its own, on Linux without access to files, network or other hand-ins.\n"
        "What that does not prevent is in notebooks/TEACHING.md."))
    one.add_argument("folder", type=place, metavar="FOLDER", help="holds one folder per student, named after them")
    one.add_argument("--out", type=place, default=Path("grades.csv"), help="the table (%(default)s)")
    one.add_argument("--only", nargs="+", default=[], metavar="NUMBER", help="notebooks to grade, as in 01 03 (all)")
    one.add_argument("--jobs", type=Number(int, 1, 1024), default=max(1, cores() // 2), help="at once (%(default)s)")
    one.add_argument("--cell-seconds", type=Number(float, 1, 10**7), default=300,
                     help="time limit of an exercise (%(default)s)")
    one.add_argument("--seconds", type=Number(float, 1, 10**7), default=1800,
                     help="time limit of a notebook (%(default)s)")
    one.add_argument("--notebooks", type=place, default=NOTEBOOKS, help="yours, with the answers (the repository's)")

    one = commands.add_parser("stamp", formatter_class=raw, help="badges, and where the first cell clones from",
                              description=(
        "Write the address of your repository into pyproject.toml and into the first cell of every notebook, which\n"
        "then clones it where the package is missing (Colab, Gradient). If it is on GitHub, also write badges, which\n"
        "open branch main, below the notebooks' titles and into the README.\n\n"
        f"    {COMMAND} stamp https://github.com/OWNER/REPO"))
    one.add_argument("address", nargs="?", metavar="https://…",
                     help="without it: the address of the last stamp, for new notebooks")
    return p


def main(argv: list[str] | None = None) -> int:
    def run() -> None:
        args = parser().parse_args(argv)
        if args.command == "make":
            print(f"{make_handout(args.out)} exercises to solve in {args.out}")
        elif args.command == "stamp":
            address = args.address or stamped_address()
            stamp(address)
            print(f"stamped with {address}: look at the changes, then commit them")
        else:
            rows = grade(args.folder, args.out, choose_notebooks(args.notebooks, args.only), jobs=args.jobs,
                         threads=max(1, cores() // args.jobs), cell_seconds=args.cell_seconds,
                         seconds=args.seconds)
            for student in dict.fromkeys(row["student"] for row in rows):
                own = [row for row in rows if row["student"] == student]
                print(f"{student:24} {sum(r['points'] for r in own):g} of {sum(r['max_points'] for r in own):g}")
            print(args.out)

    return exit_code(run)


if __name__ == "__main__":
    run_command(main, cleans_up=True)
