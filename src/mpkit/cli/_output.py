"""Standard output and standard error, as the commands use them.

Output that nobody takes (a reader that has gone, a full disk, a closed descriptor) is an error of its own
kind, so that it is never taken for one of a database or a process.
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
    """Standard output does not take what is written to it.

    Args:
        reason: what the system said.

    Attributes:
        reason: As given.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"cannot write to standard output: {reason.strerror or reason}")
        self.reason = reason


def prepare() -> None:
    """Have characters that the encoding lacks come out as escapes: others' text is no error of ours."""
    out: TextIO | None = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")


def check() -> None:
    """Raise `OutputError` where there is no standard output at all, before any work is done for nobody."""
    if sys.stdout is None:
        raise OutputError(OSError(errno.EBADF, "it is closed"))


@contextlib.contextmanager
def writing() -> Generator[None]:
    """Raise `OutputError` for an `OSError` in the block, which does nothing but write to standard output."""
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def show(text: str = "", *, flush: bool = False) -> None:
    """Print a line, or several.

    Raises:
        OutputError: nobody takes it.
    """
    with writing():
        print(text, flush=flush)


def flush() -> None:
    """Have all that was printed arrive.

    Raises:
        OutputError: nobody takes it.
    """
    if sys.stdout is not None:
        with writing():
            sys.stdout.flush()


def drop() -> None:
    """Give up standard output: what the interpreter flushes at exit goes where it is taken."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """Print a line on standard error. Where that is closed or full, there is nobody left to be told."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr)


def width() -> int:
    """How long a line may be: as wide as the terminal, and without limit where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
