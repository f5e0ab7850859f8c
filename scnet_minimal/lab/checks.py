"""Rules for what comes in, declared once: a number's range, a record's fields, a place to write to.

    EPOCHS = Number(int, 1, 10**6)
    parser.add_argument("--epochs", type=EPOCHS)                # what a person types
    check_fields(settings, {"epochs": EPOCHS}, "The file")      # what a file says: UserError names field and value

FIFOs and devices are never opened: reading one could wait for ever.
"""
import argparse
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import FileError, UserError


class Rule(NamedTuple):
    """What a value has to be: a test, and the same in words.  optional: the field may be missing, or None."""
    holds: Callable[[Any], bool]
    words: str
    optional: bool = False

    def __str__(self) -> str:
        return self.words


class Number(NamedTuple):
    """A finite number, int or float, from `least` to `most`, or below `most`.  Also an argparse type."""
    kind: type
    least: float
    most: float
    below: bool = False         # `most` itself is too much
    optional: bool = False

    def holds(self, value: Any) -> bool:
        return (type(value) in (int, self.kind) and self.least <= value <= self.most
                and not (self.below and value == self.most))

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            value = None
        if not self.holds(value):
            raise argparse.ArgumentTypeError(f"must be {self}, not {shown(text)}")
        return value

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        if self.below:
            return f"{what} from {self.least}, below {self.most}"
        if self.most >= 2**31:
            return f"{what} of {self.least} or more"
        return f"{what} from {self.least} to {self.most}"


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def is_number(value: Any) -> bool:
    """Finite, and not a bool."""
    return type(value) is int and abs(value) < 2**53 or type(value) is float and math.isfinite(value)


TEXT = Rule(is_text, "a text")
FLAG = Rule(lambda value: value is None or isinstance(value, bool), "true or false", optional=True)
RECORD = Rule(lambda value: isinstance(value, dict), "a record")
TEXTS = Rule(lambda value: isinstance(value, list) and all(map(is_text, value)), "a list of texts")


def one_of(*values: Any) -> Rule:
    return Rule(lambda value: any(type(value) is type(one) and value == one for one in values),
                f"one of {', '.join(map(str, values))}")


def filled(text: str) -> str:
    """An argparse type: anything but nothing."""
    if not is_text(text):
        raise argparse.ArgumentTypeError(f"must not be empty, as {text!r} is")
    return text


def place(text: str) -> Path:
    """An argparse type: a path."""
    return Path(filled(text))


def check_fields(record: Any, rules: Mapping[str, Rule | Number], what: str, hint: str = "") -> None:
    """UserError for the first field that is missing or breaks its rule, naming `what`, the field and the value."""
    if not isinstance(record, dict):
        raise UserError(f"{what} is {shown(record)}, not a record.{hint}")
    for name, rule in rules.items():
        value = record.get(name)
        if value is None and rule.optional:
            continue
        if name not in record:
            raise UserError(f"{what} lacks {name}, {rule}.{hint}")
        if not rule.holds(value):
            raise UserError(f"{what} has {name} {shown(value)}, which must be {rule}.{hint}")


def is_file(entry: os.DirEntry) -> bool:
    """A regular file, or a link to one; no FIFO or device, and no link that leads in a circle, where is_file raises."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def shown(value: Any, most: int = 60) -> str:
    """A value in one short line."""
    text = value if isinstance(value, str) and value.isprintable() and value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."


def check_writable(path: str | Path) -> None:
    """FileError if a file cannot be written there: found before the work, not after it.  Makes its folder."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = os.path.lexists(path)
        if there and not path.is_file():
            raise FileExistsError(0, "a folder or a device is there")
        path.open("ab").close()
        if not there:
            path.unlink()
    except OSError as error:
        raise FileError(f"{shown(str(path), 500)} cannot be written: {error.strerror or error}.") from error


def make_folder(path: str | Path) -> None:
    """Make a folder with its parents, or accept the one that is there.  FileError if nothing can be written to it."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise FileError(f"{shown(str(path), 500)} is no folder that can be written to: {error.strerror or error}."
                        ) from error
