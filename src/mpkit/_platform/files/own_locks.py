"""Locks that belong to an open file description ("OFD locks"), each on one byte of a file.

The kernel frees such a lock when the last copy of the descriptor is closed. Linux has them since 3.15; gVisor
does not.
"""

from __future__ import annotations

import errno
import os
import sys
from io import FileIO

if sys.platform == "linux":
    import fcntl
    import struct

    UNLOCKED, MARKED, LOCKED = fcntl.F_UNLCK, fcntl.F_RDLCK, fcntl.F_WRLCK

    # struct flock on a 64-bit Linux: type, whence, start, length, pid (which must be 0 for these commands).
    _FLOCK = "hhqqi"

    def change(file: int | FileIO, byte: int, kind: int) -> None:
        """Acquire the lock exclusively (`LOCKED`) or shared (`MARKED`), or release it; never blocks.

        Raises:
            OSError: others hold it (BlockingIOError, PermissionError), or there are no such locks here.
        """
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))

    def look(file: int | FileIO, byte: int) -> int:
        """What others hold: `UNLOCKED` if the exclusive lock could be acquired.

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
    # Python may have the constants on macOS, too, but there these locks are not documented.
    ARE_KNOWN = False
    UNLOCKED, MARKED, LOCKED = range(3)

    def change(file: int | FileIO, byte: int, kind: int) -> None:  # noqa: ARG001  there are none here
        """Raise OSError, because there are no such locks on this system."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def look(file: int | FileIO, byte: int) -> int:  # noqa: ARG001  there are none here
        """Raise OSError, because there are no such locks on this system."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
