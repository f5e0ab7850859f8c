"""What the notebooks read, made by commands: python -m scnet_minimal.lab.study -h names them."""
import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from .. import detection, train_imagenet, zoo
from ..checks import Number, check_writable, make_folder, place
from ..command_line import Parser, exit_code, run_command
from ..data.download import locate
from ..data.toynette import write_toynette
from ..detect.coco import need_pycocotools
from ..device import cores
from ..errors import UserError
from ..train.checkpoint import write_torch
from . import dots, explore, keep, looks, photographs, transfer
from .figures import PLAIN, SC, seeds_and_differences
from .record import LEVELS, read_rows, record, setting

COMMAND = "python -m scnet_minimal.lab.study"
DOTS = Path("data", "studies", "dots.csv")
PHOTOGRAPHED = Path("data", "studies", "photographs.csv")
LOOKED = Path("data", "studies", "looks.csv")
TRANSFERRED = Path("data", "studies", "transfer.csv")
PAGE = Path("notebooks", "explore.html")
KEY = ("block", "seed", "pictures", "isa", "threads", "torch", "processor")
KEPT = ("plain", "two", "dilated4", "se", "coarse", "sc1", "sc4", "sc8")      # trained networks for the notebooks
DOTS_EXAMPLES = f"""
examples:

  {COMMAND} dots --seeds 40
      Every block on seeds 0 to 39, on all cores: about 40 minutes on two. The same line resumes.

  {COMMAND} dots --blocks sc4 sc4_sum --seeds 20 --pictures 12800
      Two blocks, with four times the training.

  {COMMAND} dots --seeds 10 --isa default --threads 2
      As on an older processor, two threads a run: other last bits of every number.

  {COMMAND} dots --table
      What the record holds: for each setting and block, quantiles over seeds, and the median at each distance.

blocks: {", ".join(dots.BLOCKS)}
"""


# --- dots -------------------------------------------------------------------------------------------------------------

def add_dots(commands) -> None:
    parser = commands.add_parser(
        "dots", help="the game of notebooks 01 to 03, for many blocks and seeds",
        description="Trains every block of the game \"mark the matches\" (study/dots.py) over many seeds and appends a "
                    "row for each run to a table. Runs that the table has already are left out.",
        epilog=DOTS_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=Number(int, 1, 10**6), default=40, metavar="N",
                        help="seeds 0 to N-1 (default 40)")
    parser.add_argument("--blocks", nargs="+", choices=list(dots.BLOCKS), default=list(dots.BLOCKS), metavar="BLOCK",
                        help="which, of those below (default all)")
    parser.add_argument("--pictures", type=Number(int, 1, 10**6), default=dots.PICTURES, metavar="N",
                        help=f"pictures to train on (default {dots.PICTURES})")
    parser.add_argument("--jobs", type=Number(int, 1, 1024), metavar="N",
                        help="runs at the same time (default: cores over threads)")
    parser.add_argument("--threads", type=Number(int, 1, 1024), default=1, metavar="N",
                        help="threads of a run (default 1)")
    parser.add_argument("--isa", choices=("native", *LEVELS), default="native",
                        help="instruction set: the processor's own (default), or a lesser one of x86")
    parser.add_argument("--out", type=place, default=DOTS, metavar="CSV", help=f"the table (default {DOTS})")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--table", action="store_true", help="print what the table holds and train nothing")
    instead.add_argument("--keep", type=place, metavar="FOLDER",
                         help=f"instead, train {', '.join(KEPT)} from seed 0 and write dots_BLOCK_0.pt there")
    parser.set_defaults(run=run_dots)


def run_dots(args: argparse.Namespace) -> None:
    if args.table:
        print(dots.dots_table(read_rows(args.out)))
        return
    if args.keep:
        make_folder(args.keep)
        for block in KEPT:
            net = dots.train_one(dots.BLOCKS[block].make, seed=0)
            write_torch(args.keep / f"dots_{block}_0.pt", net.state_dict())
            print(f"{args.keep / f'dots_{block}_0.pt'}: {100 * dots.score(net, seed=0)['all']:.1f}")
        return
    check_writable(args.out)
    where = setting(args.isa, args.threads)
    jobs = [{"block": block, "seed": seed, "pictures": args.pictures, **where}
            for seed in range(args.seeds) for block in args.blocks]
    ran = record(args.out, jobs, dots.play, key=KEY, threads=args.threads, isa=args.isa,
                 processes=args.jobs or max(1, cores() // args.threads))
    print(f"{args.out}: {ran} new runs, {len(read_rows(args.out))} in all")


# --- photographs ------------------------------------------------------------------------------------------------------

def add_photographs(commands) -> None:
    parser = commands.add_parser(
        "photographs", help="SCNet, its plain twin and what tells causes apart, on 50 classes of ImageNet",
        description="Trains the small networks of study/photographs.py, 8 seeds of each kind, and appends a "
                    "row for each to a table. Runs that the table has already are left out; one that was interrupted "
                    "resumes from its last epoch.")
    add_common(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for all processes (default cpu)")
    parser.add_argument("--out", type=place, default=PHOTOGRAPHED, metavar="CSV",
                        help=f"the table (default {PHOTOGRAPHED})")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--table", action="store_true", help="print what the table holds and train nothing")
    instead.add_argument("--figure", type=place, metavar="FILE", help="draw it, every seed a dot (.png, .svg)")
    instead.add_argument("--keep", type=place, metavar="FOLDER",
                         help="write the trained networks of seeds 0 to 2 of SCNet and twin there, in half precision")
    parser.set_defaults(run=run_photographs)


def add_common(parser) -> None:
    """What the study on photographs and the looks at its networks have in common."""
    parser.add_argument("--data", default="tiny-imagenet-50", metavar="DIR",
                        help="a data set's name or folder (default tiny-imagenet-50, downloaded if it is missing)")
    parser.add_argument("--epochs", type=Number(int, 1, 10**6), default=photographs.EPOCHS, metavar="N",
                        help=f"of every run (default {photographs.EPOCHS})")
    parser.add_argument("--size", type=Number(int, 8, 4096), default=photographs.PIXELS, metavar="PX",
                        help=f"side of the images (default {photographs.PIXELS})")
    parser.add_argument("--processes", type=Number(int, 1, 1024), default=cores(), metavar="N",
                        help="runs at the same time, one thread each (default: one per core)")
    parser.add_argument("--runs", type=place, default=Path("runs", "photographs"), metavar="DIR",
                        help="checkpoints (default runs/photographs)")


def run_photographs(args: argparse.Namespace) -> None:
    if args.table:
        print(photographs.photographs_table(read_rows(args.out)))
        return
    if args.figure:
        draw_photographs(args)
        return
    where = setting("native", 1)
    if args.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: there is no GPU that CUDA can use. Leave the flag out.")
        where["processor"] = torch.cuda.get_device_name()
    jobs = [{"kind": kind, "seed": seed, "epochs": args.epochs, "size": args.size, **where}
            for kind, seed in photographs.in_order()]
    if args.keep:
        keep.keep_photographs(args.keep, args.runs, jobs)
        return
    folder = str(locate(args.data, download=True).resolve())
    work = partial(photographs.train_kind, folder=folder, runs=args.runs, device=args.device)
    ran = record(args.out, jobs, work, key=photographs.RUN, processes=args.processes)
    print(f"{args.out}: {ran} new runs, {len(read_rows(args.out))} in all")


def draw_photographs(args: argparse.Namespace) -> None:
    rows = [row for row in read_rows(args.out) if (row["epochs"], row["size"]) == (str(args.epochs), str(args.size))]
    found = photographs.comparisons(rows)
    if not found:
        raise UserError(f"{args.out} has no two pairs of {args.epochs} epochs at {args.size} px to compare.")
    label = {kind: label for kind, (label, *_) in photographs.KINDS.items()}
    right = photographs.right_by_kind(rows)
    fig = seeds_and_differences(
        {label[kind]: {seed: bits.mean() for seed, bits in seeds.items()} for kind, seeds in right.items() if seeds},
        [(" − ".join(label[kind] for kind in one.kinds), one.differences, one.seeds, one.both) for one in found],
        {label["scnet"]: SC, label["plain"]: PLAIN})
    check_writable(args.figure)
    fig.savefig(args.figure)


def add_looks(commands) -> None:
    parser = commands.add_parser(
        "looks", help="what the networks of photographs look at: their gates, maps and fields",
        description="Measures the networks that photographs has trained, by their checkpoints: accuracy with other "
                    "gates, Grad-CAM in the boxes of objects, effective fields (study/looks.py).  Appends the rows of "
                    "each look to a table; looks that the table has already are left out.")
    add_common(parser)
    parser.add_argument("--out", type=place, default=LOOKED, metavar="CSV", help=f"the table (default {LOOKED})")
    parser.add_argument("--table", action="store_true", help="print what the table holds and measure nothing")
    parser.set_defaults(run=run_looks)


def run_looks(args: argparse.Namespace) -> None:
    if args.table:
        print(looks.looks_table(read_rows(args.out)))
        return
    jobs = looks.look_jobs(args.runs, args.epochs, args.size)
    if not jobs:
        raise UserError(photographs.nothing_finished(args.runs, args.epochs, args.size))
    work = partial(looks.look_once, folder=str(locate(args.data, download=True).resolve()), runs=args.runs,
                   where=setting("native", 1))
    ran = record(args.out, jobs, work, key=looks.LOOK, processes=args.processes)
    print(f"{args.out}: {ran} new looks, {len(read_rows(args.out))} rows in all")


def add_transfer(commands) -> None:
    parser = commands.add_parser(
        "transfer", help="class maps, masks, Grad-CAM in masks: the photographs' networks on other photographs",
        description="Carries the networks of the study on photographs over to a folder in COCO's layout: trained on it "
                    "(segment, mask), or as they are, with Grad-CAM scored in its masks (cam). Appends the results to "
                    "a table; runs that it has already are left out, and one that was interrupted resumes.")
    parser.add_argument("data", metavar="DIR", nargs="?", help="a folder in COCO's layout, or pets")
    parser.add_argument("--task", choices=tuple(transfer.SCHEDULES), default="segment",
                        help="segment (default): FCN; mask: Mask R-CNN; cam: a new classifier, and Grad-CAM in masks")
    parser.add_argument("--networks", type=place, metavar="DIR",
                        help="for cam: checkpoints of photographs, SCNet, plain twin, r = 1 and no gate (default: the "
                             "three pairs of data/trained)")
    parser.add_argument("--epochs", type=Number(int, 1, 10**6), metavar="N", help="default 8 for segment, 6 for mask")
    parser.add_argument("--size", type=Number(int, 32, 4096), metavar="PX",
                        help="shorter side of the images (default 180 for segment, 128 for mask)")
    parser.add_argument("--processes", type=Number(int, 1, 1024), default=cores(), metavar="N",
                        help="runs at the same time, one thread each (default: one per core)")
    parser.add_argument("--runs", type=place, default=Path("runs", "transfer"), metavar="DIR",
                        help="checkpoints (default runs/transfer)")
    parser.add_argument("--out", type=place, default=TRANSFERRED, metavar="CSV",
                        help=f"the table (default {TRANSFERRED})")
    parser.add_argument("--table", action="store_true", help="print what the table holds and train nothing")
    parser.set_defaults(run=run_transfer)


def run_transfer(args: argparse.Namespace) -> None:
    if args.table:
        print(transfer.transfer_table(read_rows(args.out)))
        return
    if not args.data:
        raise UserError("transfer needs a folder in COCO's layout, or pets (see --help)")
    if args.networks and args.task != "cam":
        raise UserError(f"--networks goes with --task cam; {args.task} starts from data/trained. Leave it out.")
    folder = locate(args.data, download=True).resolve()
    need_pycocotools()
    jobs = transfer.transfer_jobs(args.task, folder, args.epochs, args.size, args.networks)
    if not jobs:
        raise UserError(photographs.nothing_finished(args.networks, photographs.EPOCHS, photographs.PIXELS))
    work = partial(transfer.transfer_once, folder=folder, runs=args.runs, where=setting("native", 1),
                   train=detection.main, networks=args.networks)
    ran = record(args.out, jobs, work, key=transfer.TRANSFER, processes=args.processes)
    print(f"{args.out}: {ran} new runs, {len(read_rows(args.out))} rows in all")


def add_explore(commands) -> None:
    parser = commands.add_parser(
        "explore", help="the game as a page: drag the dots, see what each block answers",
        description=f"Writes one HTML page with the trained networks of {', '.join(KEPT)} inside; it needs no server.")
    parser.add_argument("--out", type=place, default=PAGE, metavar="HTML", help=f"the page (default {PAGE})")
    parser.set_defaults(run=run_explore)


def run_explore(args: argparse.Namespace) -> None:
    check_writable(args.out)
    explore.write_page(args.out, KEPT)


# --- what the notebooks start from ------------------------------------------------------------------------------------

def add_trained(commands) -> None:
    parser = commands.add_parser(
        "trained", help="the small networks of the notebooks, trained on Toynette",
        description="Trains the small networks of the notebooks on Toynette (24 epochs of 96 px, the quick recipe) and "
                    "writes their weights to data/trained. A minute or two each on an idle laptop. An interrupted "
                    "training resumes where it was, in runs/trained. No number of theirs is a result.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(zoo.TRAINED)}; none means all")
    parser.set_defaults(run=run_trained)


def run_trained(args: argparse.Namespace) -> int:
    if unknown := set(args.names) - set(zoo.TRAINED):
        raise UserError(f"There is no small network {', '.join(sorted(unknown))}, only {', '.join(zoo.TRAINED)}.")
    for name in args.names or zoo.TRAINED:
        if code := keep.train_small(name, train_imagenet.main):
            return code
        print(f"-> {zoo.TRAINED_FOLDER / name}.pt")
    return 0


def add_toynette(commands) -> None:
    parser = commands.add_parser("toynette", help="the drawn data set",
                                 description="Draws Toynette, both splits, as parquet: about a minute.")
    parser.add_argument("--out", type=place, required=True, metavar="DIR", help="the folder to write")
    parser.set_defaults(run=lambda args: write_toynette(args.out))


# --- the command ------------------------------------------------------------------------------------------------------

def parser() -> Parser:
    p = Parser(prog=COMMAND, description="Makes what the notebooks read: recorded studies, small trained networks, the "
                                         "drawn data set.")
    commands = p.add_subparsers(dest="command", required=True, metavar="STUDY")
    for add in (add_dots, add_photographs, add_looks, add_transfer, add_explore, add_trained, add_toynette):
        add(commands)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    def run() -> int | None:
        args = parser().parse_args(argv)
        return args.run(args)

    return exit_code(run)


if __name__ == "__main__":
    run_command(main)
