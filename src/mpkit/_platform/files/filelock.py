"""A file lock that the kernel frees when its holder dies: slow (system calls), but never left behind.

`mpkit._shm.memory.rows` uses it for joining and for finding out what the dead have held.
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

# Not where it is used: a lock may be released by a garbage collection, even as the interpreter ends.
if sys.platform != "win32":
    import fcntl

_BYTE: Final = 0

# These contain weak references without callbacks, because Ctrl-C would be lost in a callback.
#: The open files that have locks in this process, by descriptor; a forked child closes its copies.
_held: dict[int, weakref.ref[FileIO]] = {}
#: Which lock object in this process has the record lock of which file (device and inode). A record lock
#: belongs to the process as a whole, so this table excludes its threads from each other.
_threads: dict[tuple[int, int], weakref.ref[FileLock]] = {}
#: Held while a file is opened and entered in these tables, and across forks.
_opening = InterruptibleLock()


class FileLock:
    """The lock on the first byte of a file, held until `release`, or until this object is dropped.

    An exception (Ctrl-C) may come anywhere: an object that is only half made releases the lock when it is
    dropped.
    """

    __slots__ = ("__weakref__", "_fd", "_file")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file: FileIO | None = None

    @classmethod
    def try_acquire(cls, fd: int) -> FileLock | None:
        """Acquire the lock on the file of `fd` without waiting; None if another process or thread has it.

        On Linux this opens the file once more, and takes a lock of this open file description ("OFD"): it is
        not lost when another descriptor of the file is closed, and a forked child closes its copy at once.
        Elsewhere, and if no descriptor is left, it is the record lock of the process, which conflicts with
        the other kind, and is lost when *any* descriptor of the file is closed.
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
        """Enter this object as the holder of the record lock; False if another thread's object is."""
        if key in _threads and _threads[key]() is not None:
            return False
        _threads[key] = weakref.ref(self)
        return True

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        fd, file = self._fd, self._file
        if file is not None:
            # Unlocked explicitly, because a child between fork and exec may have a copy of the descriptor.
            # Then closed in any case. If this runs again after an interrupt, the file object does not close a
            # number twice, which may be another file's by then.
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
                # EBADF: another thread has closed the file, which has released the lock.
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
            # With OFD locks, the file object closes itself, without Python code in which Ctrl-C would be
            # lost.
            if getattr(self, "_fd", -1) >= 0:
                self.release()


def _open_again(fd: int) -> FileIO | None:
    """A new open file description of the same file (whose name may be gone); None if that is not possible."""
    if not own_locks.ARE_KNOWN:
        return None
    try:
        # A file object, because that closes itself if an interrupt comes before it is assigned.
        return FileIO(f"/proc/self/fd/{fd}", "r+")
    except OSError:
        return None


def _change_record(fd: int, *, lock: bool) -> None:
    """Acquire or release the record lock of this process."""
    if sys.platform != "win32":
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if lock else fcntl.LOCK_UN, 1)
    else:
        raise NotImplementedError("there is no shared memory on Windows, and so nothing to lock")


def _let_go_in_child() -> None:
    # The child's copies refer to the same open file descriptions: if they stayed open, the parent's locks
    # would outlive it.
    for held in list(_held.values()):
        file = held()
        if file is not None:
            file.close()
    _held.clear()
    _threads.clear()


# Held across forks, so that no descriptor is inherited that is not in `_held` yet.
held_across_forks(_opening.raw)
in_forked_children(_let_go_in_child)
