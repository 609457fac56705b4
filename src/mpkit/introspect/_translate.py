"""psutil's errors become mpkit's at this border, so that callers need not know psutil."""

from __future__ import annotations

import operator
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from mpkit.errors import AccessDenied, ProcessGone

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def translated(pid: int) -> Generator[None]:
    """Raise `ProcessGone` and `AccessDenied` where psutil raises its own errors about process `pid`."""
    try:
        yield
    except psutil.NoSuchProcess as error:
        raise ProcessGone(pid=pid) from error
    except psutil.AccessDenied as error:
        raise AccessDenied(pid=pid) from error


def checked_pid(pid: int | None) -> int:
    """`pid` itself, or the caller's own for None.

    Raises:
        TypeError: `pid` is no integer.
        ValueError: `pid` is negative.
    """
    if pid is None:
        return os.getpid()
    try:
        number = operator.index(pid)
    except TypeError:
        raise TypeError(f"pid must be an int or None (this process), not {pid!r}") from None
    if number < 0:
        raise ValueError(f"pid must not be negative, not {pid!r}")
    return number


def find(pid: int) -> psutil.Process:
    """A psutil handle bound to the process that has `pid` now, not to whoever gets that number later.

    Raises:
        ProcessGone: there is no such process.
        AccessDenied: it may not be looked at.
    """
    try:
        with translated(pid):
            return psutil.Process(pid)
    except OverflowError:
        # Larger than the kernel's own pid type: nobody can have it.
        raise ProcessGone(pid=pid) from None
