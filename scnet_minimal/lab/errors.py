"""What the person at the keyboard can put right, and everything else.

A command prints a UserError as one or two lines and exits with code 2.  Any other exception keeps its traceback,
because it is a mistake of this program.
"""
import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """A setting, a file or a data set is not what is needed; the message names what was found and what to do."""


class FileError(UserError, OSError):
    """A file or folder is in the way, or cannot be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder is not there."""


class DataError(UserError, RuntimeError):
    """A data set is damaged, or could not be downloaded."""


@contextlib.contextmanager
def user_errors(*types: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn exceptions of these types into a UserError with the same message, and `hint` on a second line.

    For calls into code that knows no UserError, where such an exception means that the user's input was wrong.
    """
    try:
        yield
    except UserError:
        raise
    except types as error:
        message = str(error) or type(error).__name__
        raise UserError(f"{message}\n{hint}" if hint else message) from error
