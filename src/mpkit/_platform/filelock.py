"""A lock on a file that the kernel frees when its holder dies: a system call, but never left behind."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    def try_lock(fd: int) -> bool:
        """Take the lock on the first byte of the file without waiting; False when another process has it."""
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(fd: int) -> None:
        """Give the lock back."""
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def try_lock(fd: int) -> bool:
        """Take the lock on the first byte of the file without waiting; False when another process has it.

        A record lock (POSIX `fcntl`), because it belongs to the process: a fork does not pass it on, as it
        would an `flock`. Two things follow: threads of one process do not exclude each other by it, and
        closing *any* descriptor of the file gives it up.
        """
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(fd: int) -> None:
        """Give the lock back."""
        fcntl.lockf(fd, fcntl.LOCK_UN, 1)
