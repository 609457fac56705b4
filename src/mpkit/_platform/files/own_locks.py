"""Locks of open file descriptions ("OFD"), each on one byte of a file: the kernel frees one when the last
copy of the descriptor is gone. Linux has them, from 3.15 on; gVisor has not.
"""

from __future__ import annotations

import errno
import os
import sys
from io import FileIO

__all__ = ["ARE_KNOWN", "LOCKED", "MARKED", "UNLOCKED", "change", "look"]

if sys.platform == "linux":
    import fcntl
    import struct

    UNLOCKED, MARKED, LOCKED = fcntl.F_UNLCK, fcntl.F_RDLCK, fcntl.F_WRLCK

    # struct flock on a 64-bit Linux: type, whence, start, length, pid (which must be 0 for these commands).
    _FLOCK = "hhqqi"

    def change(file: int | FileIO, byte: int, kind: int) -> None:
        """Take the lock for oneself (`LOCKED`) or with others (`MARKED`), or give it back; never waits.

        Raises:
            OSError: others have it (BlockingIOError, PermissionError); or there are no such locks here.
        """
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))

    def look(file: int | FileIO, byte: int) -> int:
        """What others have: `UNLOCKED` if `LOCKED` could be had.

        Raises:
            OSError: there are no such locks here.
        """
        flock = struct.pack(_FLOCK, LOCKED, os.SEEK_SET, byte, 1, 0)
        found: int = struct.unpack_from("h", fcntl.fcntl(file, fcntl.F_OFD_GETLK, flock))[0]
        return found

    def _are_known() -> bool:
        try:
            with FileIO(os.devnull) as any_file:
                look(any_file, 0)
        except OSError as error:
            return error.errno != errno.EINVAL
        return True

    #: Whether there are such locks here.
    ARE_KNOWN = hasattr(fcntl, "F_OFD_SETLK") and _are_known()

else:
    # Python may know them on macOS as well, where they are not documented.
    ARE_KNOWN = False
    UNLOCKED, MARKED, LOCKED = range(3)

    def change(file: int | FileIO, byte: int, kind: int) -> None:  # noqa: ARG001  there are none here
        """There are none here."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def look(file: int | FileIO, byte: int) -> int:  # noqa: ARG001  there are none here
        """There are none here."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
