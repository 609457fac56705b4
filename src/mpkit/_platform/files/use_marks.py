"""Marks that tell whether anybody has a file open: each lasts as long as a copy of its descriptor does.

A mark is a shared lock of an open file description on a byte far behind the end of the file. The kernel frees
it when the last copy of the descriptor is gone, those in forked children included, however their processes
end. It belongs to the file, so it holds between containers that share it, too, whose pids mean nothing to
each other.

There are no such locks outside Linux, and on some file systems.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from mpkit._platform.files import own_locks
from mpkit._platform.files.descriptors import NOT_INHERITED

__all__ = ["is_marked", "mark", "mark_of_its_own", "nobody_uses"]

# Far from the first byte, which is the lock of `filelock`, and from all that is ever mapped.
_BYTE: Final = 1 << 62


def mark(fd: int) -> None:
    """Mark the file behind `fd`, until `fd` and all its copies in children are closed.

    Raises:
        OSError: this system, or file system, has no such locks.
    """
    own_locks.change(fd, _BYTE, own_locks.MARKED)


def mark_of_its_own(fd: int) -> int:
    """A new descriptor of the same file, which is marked by it alone.

    Raises:
        OSError: as `mark`; or there is no descriptor left.
    """
    if not own_locks.ARE_KNOWN:
        # Opened in vain and closed, it would give up a lock that this process has on the file (`filelock`).
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | NOT_INHERITED)
    try:
        mark(own)
    except BaseException:
        os.close(own)
        raise
    return own


def is_marked(fd: int) -> bool:
    """Whether there is a mark on the file besides that of `fd` itself."""
    try:
        return own_locks.look(fd, _BYTE) != own_locks.UNLOCKED
    except OSError:
        return False


def nobody_uses(fd: int) -> bool:
    """Whether there is no mark besides that of `fd`. If so none can come, as long as `fd` is open.

    Outside Linux, where nothing tells that somebody does, there is none.
    """
    try:
        own_locks.change(fd, _BYTE, own_locks.LOCKED)
    except OSError:
        return sys.platform != "linux"
    return True
