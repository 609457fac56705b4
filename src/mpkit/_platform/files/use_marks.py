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

__all__ = ["is_marked", "mark", "mark_of_its_own", "nobody_uses"]

if sys.platform == "linux":
    import fcntl
    import struct

    # Far from the first byte, which is the lock of `filelock`, and from all that is ever mapped.
    _LOCKED_BYTE: Final = 1 << 62
    # struct flock on a 64-bit Linux: type, whence, start, length, pid (which must be 0 for these commands).
    _FLOCK: Final = "hhqqi"

    def _ask(fd: int, command: int, kind: int) -> int:
        """The lock's kind as the system leaves it."""
        flock = fcntl.fcntl(fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCKED_BYTE, 1, 0))
        found: int = struct.unpack_from("h", flock)[0]
        return found

    def mark(fd: int) -> None:
        """Mark the file behind `fd`, until `fd` and all its copies in children are closed.

        Raises:
            OSError: this system, or file system, has no such locks.
        """
        _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK)

    def mark_of_its_own(fd: int) -> int:
        """A new descriptor of the same file, which is marked by it alone.

        Raises:
            OSError: as `mark`; or there is no descriptor left.
        """
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            mark(own)
        except BaseException:
            os.close(own)
            raise
        return own

    def is_marked(fd: int) -> bool:
        """Whether there is a mark on the file besides that of `fd` itself."""
        try:
            return _ask(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK
        except OSError:
            return False

    def nobody_uses(fd: int) -> bool:
        """Whether there is no mark besides that of `fd`. If so none can come, as long as `fd` is open."""
        try:
            _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
        except OSError:
            return False
        return True

else:

    def mark(fd: int) -> None:
        """There are none here."""
        raise OSError(errno.ENOTSUP, "no locks of open file descriptions", fd)

    def mark_of_its_own(fd: int) -> int:
        """There are none here."""
        raise OSError(errno.ENOTSUP, "no locks of open file descriptions", fd)

    def is_marked(fd: int) -> bool:  # noqa: ARG001  there are none here
        """There are none here."""
        return False

    def nobody_uses(fd: int) -> bool:  # noqa: ARG001  there are none here
        """Nothing tells here that somebody does."""
        return True
