"""What the two training commands share: flags, settings, resume and output rules, what is printed.

    def work(args, device, place):                              # in each process
        plan = from_first(lambda: settle(args, complete, default_output))
        ...                                                     # data, model, keeper, trainer
        return train_until_done(trainer.run, keeper, args, MODULE)

    def main(argv=None):
        return start(parser(), work, argv)
"""
import argparse
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..checks import FLAG, TEXT, Number, Rule, check_fields, filled
from ..command_line import Parser, exit_code
from ..device import cores, set_deterministic
from ..errors import UserError
from .checkpoint import Keeper, read_checkpoint
from .processes import Place, add_process_flags, is_first, launch, under_torchrun

# What a setting may be, on the command line and in a checkpoint alike; each command adds its own.
RULES = {"epochs": Number(int, 1, 10**6), "batch_size": Number(int, 1, 2**20), "lr": Number(float, 0, 1e30),
         "seed": Number(int, 0, 2**63 - 1, optional=True), "data": TEXT, "arch": TEXT, "amp": FLAG, "sync_bn": FLAG,
         "deterministic": FLAG}
# Of this process, and not of the run.
WORKERS, PRINT_FREQ = Number(int, 0, 1024), Number(int, 1, 10**9)

# --- flags ----------------------------------------------------------------------------------------------------------

def new_parser(command: str, description: str, examples: str) -> Parser:
    """A parser whose --help ends with worked examples, printed as they are."""
    return Parser(prog=command, description=description, epilog=examples, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)


def add_common_flags(parser: argparse.ArgumentParser, *, output: str, epochs: str, batch_size: str, lr: str) -> None:
    """The flags of both commands; the texts are those of their defaults in --help.  -b and -j mean what they mean in
    the PyTorch ImageNet example: numbers for one machine, shared by its processes."""
    p = parser
    p.add_argument("--output", type=filled, metavar="FOLDER", help=f"folder of the run (default: {output})")
    p.add_argument("--resume", type=filled, metavar="PATH", help="resume from this last.pt or its folder, with its "
                   "settings where this command line names no others; auto: from --output, if there is a checkpoint")
    p.add_argument("-e", "--evaluate", action="store_true", help="evaluate the weights on the validation images, and "
                   "stop")
    p.add_argument("--amp", action="store_true", default=None, help="mixed precision: bfloat16, or float16 with loss "
                   "scaling on a GPU without bfloat16")
    p.add_argument("--sync-bn", action="store_true", default=None, help="with several GPUs: batch norm over the images "
                   "of all, which is slower and pays where each has only a few")
    p.add_argument("--seed", type=RULES["seed"], help="make the run repeatable (default: drawn, and written to "
                   "args.json)")
    p.add_argument("--epochs", type=RULES["epochs"], metavar="N", help=f"epochs in all (default: {epochs})")
    p.add_argument("-b", "--batch-size", type=RULES["batch_size"], metavar="N", help="images per step on this machine, "
                   f"over all of its GPUs (default: {batch_size})")
    p.add_argument("--lr", "--learning-rate", type=RULES["lr"], metavar="LR", help=f"default: {lr}")
    p.add_argument("-j", "--workers", type=WORKERS, default=cores(), metavar="N",
                   help="data loading workers on this machine, "
                   "over all of its GPUs (default: one for each CPU core)")
    p.add_argument("-p", "--print-freq", type=PRINT_FREQ, default=10, metavar="N",
                   help="batches between two updates of "
                   "the running loss (default: 10)")
    add_process_flags(p)


def start(parser: argparse.ArgumentParser, work: Callable, argv: list[str] | None = None) -> int:
    """Parse the command line and run work(args, device, place) in every process; the exit code.

    args.argv is the command line itself, for resume_command().
    """
    def run() -> int:
        args = parser.parse_args(argv)
        args.argv = sys.argv[1:] if argv is None else list(argv)
        return launch(work, args)

    return exit_code(run)


# --- settings -------------------------------------------------------------------------------------------------------

class Plan(NamedTuple):
    """What a command line asks for.

    settings   all settings by name, "output", "seed" and "deterministic" among them
    state      the checkpoint to resume from, or None
    source     where that was read: a last.pt or its folder
    continues  whether the run goes on in the folder where its checkpoint is
    """
    settings: dict
    state: dict | None
    source: str | None
    continues: bool


def settle(args: argparse.Namespace, complete: Callable[[dict, dict | None], dict],
           default_output: Callable[[dict], str]) -> Plan:
    """Read the command line, and the checkpoint that it names.

    A setting comes from the command line, else from the checkpoint, else it is a default of the command.

    complete(given, state)   all settings from those that were given, checked; UserError if one is wrong
    default_output(given)    the folder of a run without --output

    UserError if the checkpoint cannot be resumed from, or the folder already holds another run.
    """
    given = given_flags(args)
    source = args.resume
    if args.resume == "auto":
        folder = Path(args.output or default_output(given))
        source = str(folder) if os.path.exists(folder / "last.pt") else None
    state = read_checkpoint(source, args.arch) if source else None
    saved = state.get("arguments", {}) if state else {}
    given = {**saved, **given}
    settings = complete(given, state)
    seed = given["seed"] if "seed" in given else int(torch.randint(2**31, ()))
    settings |= {"seed": seed, "deterministic": args.seed is not None or bool(saved.get("deterministic"))}

    here = Path(source) if source else None
    here = here.parent if here and here.is_file() else here
    output = Path(args.output or here or default_output(given))
    continues = here is not None and output.resolve() == here.resolve()
    # A kill before the first last.pt leaves a best.pt behind; then "auto" may start again.
    names = ("last.pt",) if args.resume == "auto" else ("last.pt", "best.pt")
    if not continues and any(os.path.exists(output / name) for name in names):
        raise UserError(f"{output} already holds a run: resume it with --resume {output}, "
                        "or name another folder with --output.")
    return Plan(settings | {"output": str(output)}, state, source, continues)


def given_flags(args: argparse.Namespace) -> dict:
    """The flags that the command line names, and those that have a default."""
    return {name: value for name, value in vars(args).items() if value is not None}


def check_given(given: dict, rules: dict[str, Rule | Number]) -> None:
    """UserError for a setting that breaks its rule.  argparse has checked the command line's: it is a checkpoint's."""
    check_fields(given, {name: rule for name, rule in (RULES | rules).items() if name in given}, "The checkpoint")


def seed_everything(settings: dict) -> None:
    """Before the network is made: torch's generators and, on CUDA, cuDNN's choice of algorithms."""
    torch.manual_seed(settings["seed"])
    set_deterministic(settings["deterministic"])


# --- training -------------------------------------------------------------------------------------------------------

def train_until_done(train: Callable[[], list[dict]], keeper: Keeper, args: argparse.Namespace,
                     module: str) -> list[dict] | None:
    """train()'s history; None if Ctrl-C or SIGTERM stopped it, after printing how to resume (exit code 130)."""
    try:
        return train()
    except KeyboardInterrupt:
        print_first(f"\nStopped and saved. Resume with\n  {resume_command(module, args.argv, keeper.folder)}")
        return None


def resume_command(module: str, argv: list[str], folder: str | Path) -> str:
    """The shell command that resumes a run of `python -m module argv...`, under torchrun if it runs under torchrun."""
    kept = [word for i, word in enumerate(argv)
            if not word.startswith("--resume=") and word != "--resume" and (i == 0 or argv[i - 1] != "--resume")]
    return shlex.join([*_launcher(), "-m", module, *kept, "--resume", str(folder)])


def _launcher() -> list[str]:
    if not under_torchrun():
        return ["python"]
    machines, each = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", "1")
    if machines == "1":
        meet = ["--standalone"]
    else:                                   # on the first machine; the others say --node-rank 1 and so on
        meet = ["--nnodes", machines, "--node-rank", os.environ.get("GROUP_RANK", "0"),
                "--master-addr", os.environ.get("MASTER_ADDR", ""), "--master-port", os.environ.get("MASTER_PORT", "")]
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    return ["torchrun", *meet, "--nproc-per-node", each, *(["--max-restarts", restarts] if restarts != "0" else [])]


# --- printing: the first process only -------------------------------------------------------------------------------

def print_first(text: str) -> None:
    if is_first():
        print(text, flush=True)


def print_start(data: object, what: str, plan: Plan, batch_size: int, place: Place, device: torch.device) -> None:
    """What is about to be trained: data, network, processes, settings, folder, and where it resumes."""
    s = plan.settings
    print_first(f"{data}\n{what} on {place.world} x {device}: {s['epochs']} epochs, batch {batch_size}, "
                f"lr {s['lr']:g}, seed {s['seed']} -> {s['output']}")
    if plan.state:
        print_first(f"resuming at epoch {plan.state['epoch'] + 1}, step {plan.state['step']}")


def print_epoch(row: dict, epochs: int, best: bool, results: str) -> None:
    """One line per epoch: results, speed and the time left, written above the progress bar."""
    tqdm.write(f"epoch {row['epoch'] + 1}/{epochs}: {results}; {pace(row, epochs)}{' (best)' if best else ''}",
               file=sys.stdout)


def pace(row: dict, epochs: int) -> str:
    """Speed and time of an epoch's row: images per second, seconds, and the minutes that the other epochs will take."""
    speed, left = row["images_per_second"], (epochs - row["epoch"] - 1) * row["seconds"] / 60
    return (f"{speed:,.{0 if speed >= 100 else 1}f} images/s, {row['seconds']:.0f} s"
            + (f", {left:.0f} min left" if left >= 1 else ""))
