"""A lock on a file that the kernel frees when its holder dies: slow (system calls), but it cannot be left
behind.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import struct

    _OPEN_DESCRIPTION: Final = getattr(fcntl, "F_OFD_SETLK", None)
    # struct flock on a 64-bit Linux: type, whence, start, length, pid (which must be 0 for this command).
    _FLOCK: Final = "hhqqi"

_held: set[int] = set()
_opening = threading.RLock()


class FileLock:
    """The lock on the first byte of a file, held by whoever has this object, until `release`."""

    __slots__ = ("_fd", "_own")

    def __init__(self, fd: int, *, own: bool) -> None:
        self._fd = fd
        self._own = own

    @classmethod
    def try_acquire(cls, fd: int) -> FileLock | None:
        """Take the lock on the file behind `fd` without waiting; None when another process, or thread, has
        it.

        On Linux it is a lock of an open file description of its own ("OFD"): closing other descriptors of the
        file does not give it up, and a child that is forked meanwhile lets go of its copy at once. Elsewhere,
        and when no descriptor is to be had, it is the process's record lock, which conflicts with the other
        kind; closing *any* descriptor of the file gives that up, and the threads of a process do not exclude
        each other by it.
        """
        if sys.platform == "win32":
            os.lseek(fd, 0, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except OSError:
                return None
            return cls(fd, own=False)
        with _opening:
            own = _open_again(fd)
            if own is not None:
                _held.add(own)
        if own is None:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            except (BlockingIOError, PermissionError):
                return None
            return cls(fd, own=False)
        # The object closes the descriptor even if an exception (Ctrl-C) comes between here and its caller.
        lock = cls(own, own=True)
        try:
            fcntl.fcntl(own, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        except (BlockingIOError, PermissionError):
            lock.release()
            return None
        return lock

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if sys.platform == "win32":
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        elif self._own:
            if fd in _held:
                _held.discard(fd)
                # Not by closing alone: a child that is between fork and exec may have a copy of the
                # descriptor.
                try:
                    fcntl.fcntl(
                        fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)
                    )
                finally:
                    os.close(fd)
        else:
            fcntl.lockf(fd, fcntl.LOCK_UN, 1)

    def __del__(self) -> None:
        if self._fd >= 0:
            self.release()

    def __repr__(self) -> str:
        return f"<FileLock {'released' if self._fd < 0 else 'held'}>"


def _open_again(fd: int) -> int | None:
    """A descriptor of a new open file description of the same file, which may have no name any more."""
    if sys.platform != "linux" or _OPEN_DESCRIPTION is None:
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None


def _let_go_in_child() -> None:
    # The child's copies belong to the same open file descriptions: kept open, they would hold the parent's
    # locks beyond its death.
    global _opening
    _opening = threading.RLock()
    for fd in list(_held):
        os.close(fd)
    _held.clear()


def _hold_still() -> None:
    _opening.acquire()


def _go_on() -> None:
    _opening.release()


if hasattr(os, "register_at_fork"):
    # Held across the fork, so that no descriptor is copied that is not in the set yet.
    os.register_at_fork(before=_hold_still, after_in_parent=_go_on, after_in_child=_let_go_in_child)
