"""How fast, compared with what: one table of networks and treatments, timed side by side.

    python -m scnet_minimal.lab.benchmark        (--help explains the rest)

A row is a network after a chain of steps, such as "fused + channels_last + compiled". All rows of a batch size take
turns, in a new order each round, so that whatever else the machine does affects all of them alike; ratios are taken
within a round. study/treatments.py has the steps.
"""
import argparse
import json
import os
import statistics
import sys

import torch

from .checks import Number, check_writable, place
from .command_line import Parser, exit_code, run_command
from .device import describe_machine, resolve_device, synchronize
from .errors import UserError, user_errors
from .study.timing import interleaved, peak_megabytes, ratio, settled, silence_tools
from .study.treatments import CHAINS, STEPS, TRAIN_CHAINS, missing, prepare

COMMAND = "python -m scnet_minimal.lab.benchmark"
EXAMPLES = f"""
four worked examples:

  {COMMAND}
      SCNet-50 beside ResNet-50 at 224 px in batches of 1, 8 and 32: half an hour on two CPU cores, most of it waiting
      for the compiler.

  {COMMAND} --batch 8 --rounds 5 --only straightforward fused "fused + channels_last"
      A minute: what folding and the memory layout bring. Any chain of the steps below can be named.

  {COMMAND} --train --batch 32 --size 128 --json runs/train.json
      A training step (forward and backward) and its memory; the file holds every single time.

  {COMMAND} --loader imagenette --rounds 5
      How many images a second are read, decoded and cropped by 0, 1, 2 ... workers (0: by this process alone), beside
      torchvision's usual loader. A GPU that trains faster than its cores decode waits for them.

  ms          the median of all rounds, and in brackets the middle half of them
  gain        how many times faster than the same network's first row, round by round (the median)
  / resnet50  time over that of the second network under the same treatment; 1.00 is level
  peak MB     of the tensors alive at the same time, besides weights and images, in one run
  apart       the largest difference from the first row's output, relative to the largest value in it

steps: {", ".join(STEPS)}
On a CPU, "compiled" runs with TORCHINDUCTOR_FREEZING=1 unless the environment says otherwise.
"""


def measure(networks: list[str], chains: list[str], batch: int, size: int, rounds: int,
            device: torch.device) -> tuple[list[dict], dict[str, str]]:
    """The rows of one batch size, and what was left out, each with its reason."""
    from .zoo import create_model  # brings torchvision, which must come after freeze_weights()

    torch.compiler.reset()
    torch.manual_seed(0)
    rows, left_out, first = {}, {}, {}
    possible = {chain: next((f"{step} {why}" for step in chain.split(" + ") if (why := missing(step, device))), "")
                for chain in chains}
    for network in networks:
        try:
            model = settled(create_model(network)).to(device)
        except (RuntimeError, ValueError) as error:                  # it needs larger images, or is no classifier
            left_out[network] = _first_line(error)
            continue
        x = torch.randn(batch, 3, size, size, device=device)
        for chain, reason in possible.items():
            if reason:
                left_out[chain] = reason
                continue
            print(f"  batch {batch}: {network}, {chain}", file=sys.stderr)
            try:
                once = prepare(model, chain, x)
                y = once().float().clone()
                once()
            except Exception as error:                               # a tool of another version: the rest still counts
                left_out[chain] = f"{network}: {_first_line(error)}"
                continue
            expected = first.setdefault(network, y)
            elsewhere = chain.endswith(("CUDA graph", "ONNX Runtime"))          # memory that torch does not allocate
            rows[network, chain] = dict(
                network=network, treatment=chain, batch=batch, size=size, once=once,
                peak_mb=None if elsewhere else peak_megabytes(once, device),
                apart=((y - expected).abs().max() / expected.abs().max()).item())
    times = interleaved({key: row.pop("once") for key, row in rows.items()}, rounds, lambda: synchronize(device))
    for (network, chain), row in rows.items():
        ms = times[network, chain]
        low, middle, high = statistics.quantiles(ms, n=4, method="inclusive")
        row |= dict(ms=middle, quartiles=[low, high], all_ms=ms, images_per_s=1000 * batch / middle,
                    gain=ratio(next(t for (n, _), t in times.items() if n == network), ms))
        if len(networks) == 2 and network == networks[0] and (networks[1], chain) in times:
            row["against_second"] = ratio(ms, times[networks[1], chain])
    return list(rows.values()), left_out


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:150]}"


def timing_table(rows: list[dict], networks: list[str]) -> str:
    second = f"/ {networks[1]}" if len(networks) == 2 else ""
    wide = max((len(row["treatment"]) for row in rows), default=0) + 2
    lines, network = [], None
    for row in rows:
        if row["network"] != network:
            network = row["network"]
            lines.append(f"{network:{wide}} {'ms':>7} {'(middle half)':17} {'images/s':>8} {'gain':>6} {second:>10} "
                         f"{'peak MB':>7} {'apart':>5}")
        half = "({:.1f} to {:.1f})".format(*row["quartiles"])
        against = f"{row['against_second']:.2f}" if "against_second" in row else ""
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
        lines.append(f"  {row['treatment']:{wide - 2}} {row['ms']:7.1f} {half:17} {row['images_per_s']:8.1f} "
                     f"{row['gain']:5.2f}x {against:>10} {peak:>7} {row['apart']:5.0e}")
    return "\n".join(lines)


def freeze_weights() -> None:
    """Let torch.compile turn weights into constants, which pays on a CPU.

    It reads the environment when it is first imported, and torchvision imports it: so zoo.py is imported later.
    """
    os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")


def parser() -> Parser:
    p = Parser(prog=COMMAND, description=__doc__.split("\n")[0], epilog=EXAMPLES,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--networks", nargs="+", default=["scnet50", "resnet50"], metavar="NAME",
                   help="two are also compared with each other; any of torchvision's classifiers (%(default)s)")
    p.add_argument("--batch", nargs="+", type=Number(int, 1, 2**16), default=[1, 8, 32], metavar="N",
                   help="images at a time")
    p.add_argument("--size", type=Number(int, 1, 4096), default=224, metavar="PX",
                   help="side of the images (%(default)s)")
    p.add_argument("--rounds", type=Number(int, 2, 10**6), default=11, help="how often each row runs (%(default)s)")
    p.add_argument("--only", nargs="+", metavar="CHAIN", help="treatments; gains are relative to the first")
    p.add_argument("--train", action="store_true", help="a training step instead of inference")
    p.add_argument("--loader", metavar="DIR", help="no networks: reading images of DIR/train, or of a set by its name")
    p.add_argument("--device", help="cpu, cuda, cuda:1, mps (the best one here)")
    p.add_argument("--threads", type=Number(int, 1, 1024), help="CPU threads")
    p.add_argument("--json", type=place, metavar="FILE", help="write every time of every row there")
    return p


def run_benchmark(args: argparse.Namespace) -> None:
    """Measure what the arguments ask for; the table goes to stdout, progress to stderr.  UserError for wrong ones."""
    chains = args.only or (TRAIN_CHAINS if args.train else CHAINS)
    if unknown := [step for chain in chains for step in chain.split(" + ") if step not in STEPS]:
        raise UserError(f"There is no step {unknown[0]!r}: there are {', '.join(STEPS)}, joined by ' + '.")
    try:
        device = resolve_device(args.device)
    except (RuntimeError, AssertionError) as error:                  # AssertionError: a torch built without CUDA
        raise UserError(f"The device {args.device!r} cannot be used here ({_first_line(error)[:100]}).") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"Networks cannot be timed on the device {args.device!r}: choose cpu, cuda or mps.")
    if args.json:
        check_writable(args.json)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.loader:
        return benchmark_loader(args, device)
    if device.type == "cpu" and not args.train:
        freeze_weights()
    from .zoo import create_model

    for name in args.networks:
        with user_errors(ValueError), torch.device("meta"):
            create_model(name)
    silence_tools()

    machine = describe_machine(device)
    print(f"{machine}; {args.size} px, {args.rounds} rounds")
    rows, left_out = [], {}
    for batch in args.batch:
        found, reasons = measure(args.networks, chains, batch, args.size, args.rounds, device)
        print(f"\nbatch {batch}\n{timing_table(found, args.networks)}", flush=True)
        rows, left_out = rows + found, left_out | reasons
    for what, reason in left_out.items():
        print(f"left out: {what}: {reason}")
    if args.json:
        args.json.write_text(json.dumps(dict(machine=machine, rows=rows, left_out=left_out), indent=1))


def benchmark_loader(args: argparse.Namespace, device: torch.device) -> None:
    """--loader: images per second by the number of workers, each of them with one thread."""
    from .data.download import locate
    from .study.loaders import loader_table, measure_loaders

    torch.set_num_threads(args.threads or 1)
    machine = describe_machine(device)
    what, rows = measure_loaders(locate(args.loader), args.size, max(args.batch), args.rounds, device)
    print(f"{machine}; {args.rounds} rounds\n{what}\n{loader_table(rows)}")
    if args.json:
        args.json.write_text(json.dumps(dict(machine=machine, what=what, rows=rows), indent=1))


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run_benchmark(parser().parse_args(argv)))


if __name__ == "__main__":
    run_command(main)
