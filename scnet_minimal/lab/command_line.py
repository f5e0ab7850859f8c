"""What every command shares: mistakes in a line or two, exit codes, and Ctrl-C.

    def main(argv=None) -> int:
        return exit_code(lambda: work(parser().parse_args(argv)))      # parser: a Parser

    if __name__ == "__main__":
        run_command(main)
"""
import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong command line, instead of printing all flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def exit_code(work: Callable[[], int | None]) -> int:
    """work()'s exit code, None meaning 0; 2 after printing a UserError.  Other errors keep their traceback."""
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run_command(main: Callable[[], int], *, cleans_up: bool = False) -> None:
    """main() as this whole process: `if __name__ == "__main__": run_command(main)`.

    cleans_up: Ctrl-C is a KeyboardInterrupt, for a main() that ends what it started; else it ends the process at once.
    """
    if cleans_up:
        signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs start with it ignored
    else:
        exit_at_once_on_signals()
    try:
        code = main()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):      # too late to change anything but the exit code
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def exit_at_once_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end this process at once, with exit code 130 and no traceback.

    While a Trainer with a Keeper runs, the first signal is the trainer's: it finishes its step and saves.
    """
    owner = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return leave_to_parent(number)
        with contextlib.suppress(Exception):            # printing may have been what was interrupted
            sys.stdout.flush()
        os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    show = sys.unraisablehook

    def show_unless_interrupted(raised: Any) -> None:
        # In a __del__ a KeyboardInterrupt is lost (Interrupts raises it again), and one within a loader's __init__
        # leaves an object of which torch's __del__ knows nothing.
        if raised.exc_type is not KeyboardInterrupt and "DataLoaderIter.__del__" not in repr(raised.object):
            show(raised)

    sys.unraisablehook = show_unless_interrupted


def leave_to_parent(number: int) -> None:
    """What a forked worker does with a signal before it has handlers of its own: Ctrl-C reaches the parent as well."""
    if number == signal.SIGTERM:
        os._exit(128 + number)
