"""A lock on a file that the kernel frees when its holder dies: slow (system calls), but it cannot be left
behind.

It is the file lock of `mpkit._shm.memory.rows`, under which processes join, and find out about the dead.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref
from io import FileIO
from typing import Final

from mpkit._platform.files import own_locks
from mpkit._platform.threads.forks import held_across_forks, in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock

_BYTE: Final = 0

if sys.platform == "win32":
    import msvcrt

    def _change_record(fd: int, *, lock: bool) -> None:
        """Take or give back the lock of this process."""
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK if lock else msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _change_record(fd: int, *, lock: bool) -> None:
        """Take or give back the lock of this process."""
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if lock else fcntl.LOCK_UN, 1)


# Plain references, which call nobody when their object goes: Ctrl-C in a call from there would be swallowed.
#: What holds locks in this process, by descriptor: closed in a forked child.
_held: dict[int, weakref.ref[FileIO]] = {}
#: Who in this process has the record lock of which file (device and inode): its threads are all one to it.
_threads: dict[tuple[int, int], weakref.ref[FileLock]] = {}
_opening = InterruptibleLock()


class FileLock:
    """The lock on the first byte of a file, held by whoever has this object, until `release`.

    An exception (Ctrl-C) may come anywhere: what is half made gives the lock back when it goes.
    """

    __slots__ = ("__weakref__", "_fd", "_file")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file: FileIO | None = None

    @classmethod
    def try_acquire(cls, fd: int) -> FileLock | None:
        """Take the lock on the file behind `fd` without waiting; None when another process, or thread, has
        it.

        On Linux it is a lock of an open file description of its own ("OFD"): closing other descriptors of the
        file does not give it up, and a child that is forked meanwhile lets go of its copy at once. Elsewhere,
        and when no descriptor is to be had, it is the process's record lock, which conflicts with the other
        kind; closing *any* descriptor of the file gives that up.
        """
        lock = cls(fd)
        try:
            taken = lock._take()
        except BaseException:
            lock.release()
            raise
        if not taken:
            lock.release()
            return None
        return lock

    def _take(self) -> bool:
        fd = self._fd
        own = _opening.run(self._open_own)
        try:
            if own is not None:
                own_locks.change(own, _BYTE, own_locks.LOCKED)
                return True
            about = os.fstat(fd)
            if not _opening.run(self._enter, (about.st_dev, about.st_ino)):
                return False
            try:
                _change_record(fd, lock=True)
            except OSError:
                self._forget_thread()
                raise
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _open_own(self) -> FileIO | None:
        self._file = own = _open_again(self._fd)
        if own is not None:
            _held[own.fileno()] = weakref.ref(own)
        return own

    def _enter(self, key: tuple[int, int]) -> bool:
        """Whether no other thread has the record lock of this file: then this object has it."""
        if key in _threads and _threads[key]() is not None:
            return False
        _threads[key] = weakref.ref(self)
        return True

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        fd, file = self._fd, self._file
        if file is not None:
            # Not by closing alone: a child that is between fork and exec may have a copy of the descriptor.
            # Closing is for once, whatever comes in between.
            try:
                if not file.closed:
                    own_locks.change(file, _BYTE, own_locks.UNLOCKED)
                    _held.pop(file.fileno(), None)
            finally:
                file.close()
        elif fd >= 0 and self._is_known():
            try:
                _change_record(fd, lock=False)
            except OSError as error:
                # Another thread has closed the file meanwhile, and that gives it back.
                if error.errno != errno.EBADF:
                    raise
            finally:
                self._forget_thread()
        self._fd = -1

    def _is_known(self) -> bool:
        return any(holder() is self for holder in list(_threads.values()))

    def _forget_thread(self) -> None:
        for key, holder in list(_threads.items()):
            if holder() is self:
                _threads.pop(key, None)

    if not own_locks.ARE_KNOWN:

        def __del__(self) -> None:
            # Elsewhere the file object does it, without Python code that Ctrl-C would be lost in.
            if getattr(self, "_fd", -1) >= 0:
                self.release()


def _open_again(fd: int) -> FileIO | None:
    """A new open file description of the same file, which may have no name any more."""
    if not own_locks.ARE_KNOWN:
        return None
    try:
        # An object that closes itself if nobody gets it.
        return FileIO(f"/proc/self/fd/{fd}", "r+")
    except OSError:
        return None


def _let_go_in_child() -> None:
    # The child's copies belong to the same open file descriptions: kept open, they would hold the parent's
    # locks beyond its death.
    for held in list(_held.values()):
        file = held()
        if file is not None:
            file.close()
    _held.clear()
    _threads.clear()


# Held across the fork, so that no descriptor is copied that is not in the set yet.
held_across_forks(_opening.raw)
in_forked_children(_let_go_in_child)
