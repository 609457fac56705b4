"""Translates psutil's errors into mpkit's, so that callers need not know psutil."""

from __future__ import annotations

import operator
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from mpkit._platform.messages import shown
from mpkit.errors import AccessDenied, ProcessGone

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def translated(pid: int) -> Generator[None]:
    """A block in which psutil's errors about process `pid` become `ProcessGone` and `AccessDenied`."""
    try:
        yield
    except psutil.NoSuchProcess as error:
        raise ProcessGone(pid=pid) from error
    except psutil.AccessDenied as error:
        raise AccessDenied(pid=pid) from error


def checked_pid(pid: int | None) -> int:
    """`pid` as an int; for None, that of the calling process.

    Raises:
        TypeError: `pid` is not an integer.
        ValueError: `pid` is negative.
    """
    if pid is None:
        return os.getpid()
    try:
        number = operator.index(pid)
    except TypeError:
        raise TypeError(f"pid must be an int or None (this process); got {shown(pid)}") from None
    if number < 0:
        raise ValueError(f"pid must not be negative; got {shown(pid)}")
    return number


def find(pid: int) -> psutil.Process:
    """A psutil handle, bound to the process that has `pid` now and not to one that gets the same pid later.

    Raises:
        ProcessGone: there is no such process.
        AccessDenied: it may not be examined.
    """
    try:
        with translated(pid):
            return psutil.Process(pid)
    except OverflowError:
        # The number is too large for the kernel's type for pids, so no process can have it.
        raise ProcessGone(pid=pid) from None
