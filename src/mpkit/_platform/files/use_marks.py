"""Marks on a file that tell whether any process has it open.

A mark is a shared lock of an open file description, on a byte far behind the end of the file. The kernel
frees it when the last copy of the descriptor is closed, including copies in forked children, however these
processes end. It belongs to the file, so it also works between containers that share the file, where pids
mean nothing.

Outside Linux, and on some file systems, there are no such locks.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from mpkit._platform.files import own_locks
from mpkit._platform.files.descriptors import NOT_INHERITED

# Far from the first byte, which `filelock` locks, and from everything that is ever mapped.
_BYTE: Final = 1 << 62


def mark(fd: int) -> None:
    """Mark the file that `fd` refers to, until `fd` and all its copies in children are closed.

    Raises:
        OSError: this system, or this file system, has no such locks.
    """
    own_locks.change(fd, _BYTE, own_locks.MARKED)


def mark_of_its_own(fd: int) -> int:
    """Open the same file once more, and mark it through the new descriptor, which is returned.

    Raises:
        OSError: as `mark`; or there is no descriptor left.
    """
    if not own_locks.ARE_KNOWN:
        # Opening and closing the file for nothing would release a record lock that this process has on it
        # (see `filelock`).
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | NOT_INHERITED)
    try:
        mark(own)
    except BaseException:
        os.close(own)
        raise
    return own


def is_marked(fd: int) -> bool:
    """Whether there is a mark on the file other than that of `fd` itself; False if it cannot be known."""
    try:
        return own_locks.look(fd, _BYTE) != own_locks.UNLOCKED
    except OSError:
        return False


def nobody_uses(fd: int) -> bool:
    """Whether there is no mark other than that of `fd`. If so, none can be made while `fd` is open.

    True outside Linux, where there are no marks.
    """
    try:
        own_locks.change(fd, _BYTE, own_locks.LOCKED)
    except OSError:
        return sys.platform != "linux"
    return True
