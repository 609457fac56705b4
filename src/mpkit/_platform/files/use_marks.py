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

__all__ = ["is_marked", "mark", "mark_of_its_own", "nobody_uses"]

if sys.platform == "linux":
    import fcntl
    import struct

    # Far from the first byte, which `filelock` locks, and from everything that is ever mapped.
    _LOCKED_BYTE: Final = 1 << 62
    # struct flock on a 64-bit Linux: type, whence, start, length, pid (which must be 0 for these commands).
    _FLOCK: Final = "hhqqi"

    def _ask(fd: int, command: int, kind: int) -> int:
        """Call fcntl(2) with a lock of this kind, and return the kind that the kernel has filled in."""
        flock = fcntl.fcntl(fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCKED_BYTE, 1, 0))
        found: int = struct.unpack_from("h", flock)[0]
        return found

    def mark(fd: int) -> None:
        """Mark the file that `fd` refers to, until `fd` and all its copies in children are closed.

        Raises:
            OSError: this file system has no such locks.
        """
        _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK)

    def mark_of_its_own(fd: int) -> int:
        """Open the same file once more, and mark it through the new descriptor, which is returned.

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
        """Whether there is a mark on the file other than that of `fd` itself; False if it cannot be known."""
        try:
            return _ask(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK
        except OSError:
            return False

    def nobody_uses(fd: int) -> bool:
        """Whether there is no mark other than that of `fd`. If so, none can be made while `fd` is open."""
        try:
            _ask(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
        except OSError:
            return False
        return True

else:

    def mark(fd: int) -> None:
        """Raise OSError, because there are no marks on this system."""
        raise OSError(errno.ENOTSUP, "no locks of open file descriptions", fd)

    def mark_of_its_own(fd: int) -> int:
        """Raise OSError, because there are no marks on this system."""
        raise OSError(errno.ENOTSUP, "no locks of open file descriptions", fd)

    def is_marked(fd: int) -> bool:  # noqa: ARG001  there are no marks here
        """Return False, because there are no marks on this system."""
        return False

    def nobody_uses(fd: int) -> bool:  # noqa: ARG001  there are no marks here
        """Return True, because there are no marks on this system."""
        return True
