"""How the commands write to standard output and standard error.

An error in writing (the reader has gone, the disk is full, the descriptor is closed) is raised as an
exception of its own, so that it cannot be mistaken for an error of a database or a process.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TextIO


class OutputError(Exception):
    """Standard output cannot be written to.

    Args:
        reason: the error of the system.

    Attributes:
        reason: as given.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write to standard output: {reason.strerror or reason}")
        self.reason = reason


def prepare() -> None:
    """Have characters that the encoding of the output lacks printed as escapes, and not raise an error."""
    out: TextIO | None = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def check() -> None:
    """Raise `OutputError` if there is no standard output, before any work is done in vain."""
    if sys.stdout is None:
        raise OutputError(OSError(errno.EBADF, "it is closed"))


@contextlib.contextmanager
def writing() -> Generator[None]:
    """A block that only writes to standard output: an `OSError` in it becomes an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def show(text: str = "", *, flush: bool = False) -> None:
    """Print one line or several.

    Raises:
        OutputError: standard output cannot be written to.
    """
    with writing():
        print(text, flush=flush)


def flush() -> None:
    """Flush standard output.

    Raises:
        OutputError: standard output cannot be written to.
    """
    if sys.stdout is not None:
        with writing():
            sys.stdout.flush()


def drop() -> None:
    """Redirect standard output to the null device, so that flushing it at exit raises no error."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print a line to standard error. If that fails, nothing can be reported any more, so it is ignored."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr)


def width() -> int:
    """How long a line may be: as wide as the terminal, or without limit if there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
