"""The file and the semaphores of a queue, and how a process opens, shares, leaves and loses them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Final

from mpkit._shm import layout
from mpkit._shm.generations import Generations
from mpkit._shm.regions import Regions
from mpkit._shm.robust_lock import RobustLock
from mpkit._shm.rows import Rows
from mpkit._shm.segment import Segment
from mpkit._shm.semaphore import MAX_VALUE, Semaphore
from mpkit._shm.sleepers import Sleepers
from mpkit.errors import ClosedError, HandleLost

_PUT, _GET, _ITEMS, _ROOM, _DONE = range(5)
#: Permits each semaphore begins with, and its maximum.
_SEMAPHORES: Final = ((1, 1), (1, 1), (0, MAX_VALUE), (0, MAX_VALUE), (0, MAX_VALUE))

_open_files: weakref.WeakValueDictionary[str, QueueFile] = weakref.WeakValueDictionary()
_opening = threading.RLock()


class QueueFile:
    """One queue as this process has it open; every handle and thread of the process shares this object.

    That is more than thrift: the process has one row, and closing one of two descriptors of a file would give up its file lock.
    """

    __slots__ = (
        "__weakref__", "_closing", "_row", "closed", "done", "generations", "get_lock", "items", "max_bytes", "maxsize", "name", "put_lock",
        "regions", "room", "rows", "segment", "semaphores", "words",
    )  # fmt: skip

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        self.name = segment.name
        self.segment = segment
        self.semaphores = semaphores
        words = self.words = segment.words
        self.maxsize = words[layout.MAXSIZE]
        self.max_bytes = words[layout.MAX_BYTES]
        self.closed = False
        self._closing = threading.Lock()
        self._row = 0
        self.rows = Rows(segment, start=layout.ROWS, capacity=layout.ROW_SLOTS, used_at=layout.ROWS_USED)
        self.regions = Regions(segment, start=layout.REGIONS, capacity=layout.REGION_SLOTS, end_at=layout.FILE_END)
        self.generations = Generations(words, segment.mm, self.regions)
        self.put_lock = RobustLock(self.rows, 0, semaphores[_PUT], recoveries_at=layout.RECOVERIES, join=self._join)
        self.get_lock = RobustLock(self.rows, 1, semaphores[_GET], recoveries_at=layout.RECOVERIES, join=self._join)
        self.items = Sleepers(words, slept_at=layout.ITEMS_SLEPT, posted_at=layout.ITEMS_POSTED, tokens=semaphores[_ITEMS])
        self.room = Sleepers(words, slept_at=layout.ROOM_SLEPT, posted_at=layout.ROOM_POSTED, tokens=semaphores[_ROOM])
        self.done = Sleepers(words, slept_at=layout.DONE_SLEPT, posted_at=layout.DONE_POSTED, tokens=semaphores[_DONE])

    @classmethod
    def create(cls, maxsize: int, max_bytes: int) -> QueueFile:
        """Make a new queue (0 = unbounded).

        Raises:
            SharedMemoryExhausted: no room; nothing is left behind.
        """
        segment = Segment.create(layout.FILE_BYTES, kind="queue")
        semaphores: list[Semaphore] = []
        try:
            for number, (value, maximum) in enumerate(_SEMAPHORES):
                semaphores.append(Semaphore.create(value, maximum, kind="queue", name=_semaphore_name(segment.name, number)))
            words = segment.words
            words[layout.MAXSIZE] = maxsize
            words[layout.MAX_BYTES] = max_bytes
            words[layout.FILE_END] = segment.size
            file = cls(segment, semaphores)
            for sleepers in (file.items, file.room, file.done):
                sleepers.format()
            file.generations.begin(0, 0, 0)
            words[layout.MAGIC] = layout.MAGIC_VALUE
        except BaseException:
            for semaphore in semaphores:
                semaphore.close()
            segment.close()
            raise
        with _opening:
            _open_files[file.name] = file
        return file

    @classmethod
    def attach(cls, name: str) -> QueueFile:
        """Open a queue that exists, or share what this process has open.

        Raises:
            HandleLost: the name is gone.
            SharedMemoryExhausted: this process may not open or map more.
        """
        with _opening:
            file = _open_files.get(name)
            if file is not None and not file.closed:
                return file
            segment = Segment.attach(name)
            if segment.words[layout.MAGIC] != layout.MAGIC_VALUE:
                raise HandleLost(f"{name!r} is not a queue of this version of mpkit, or its creator died while making it")
            semaphores = [Semaphore.attach(_semaphore_name(name, number), maximum) for number, (_, maximum) in enumerate(_SEMAPHORES)]
            file = cls(segment, semaphores)
            _open_files[name] = file
            return file

    def mark_exported(self) -> None:
        """A handle has been pickled: the names must outlive this process's handles for a while."""
        self.segment.mark_exported()
        for semaphore in self.semaphores:
            semaphore.mark_exported()

    def _join(self, deadline: float | None) -> bool:
        """Give this process a row and open both locks; called by a lock's slow path where there is none."""
        timeout = -1 if deadline is None else max(deadline - time.monotonic(), 0)
        if not self._closing.acquire(timeout=timeout):
            return False
        try:
            self.check_open()
            if not self._row:
                row = self.rows.join(deadline)
                if row < 0:
                    return False
                self.put_lock.open(row)
                self.get_lock.open(row)
                self._row = row
            return True
        finally:
            self._closing.release()

    def check_open(self) -> None:
        """Raise ClosedError if this process has closed the queue."""
        if self.closed:
            raise ClosedError("this queue has been closed in this process; open a new handle, or close it later")

    def close(self) -> None:
        """Leave the queue: operations of other threads that are under way end first, later ones raise ClosedError."""
        with self._closing:
            if self.closed:
                return
            for lock in (self.put_lock, self.get_lock):
                lock.begin_to_shut()
            for lock in (self.put_lock, self.get_lock):
                lock.shut()
            self.closed = True
            if self._row:
                self.rows.leave(self._row)
                self._row = 0
            # Closing a descriptor of the file gives up the process's file lock: not in the middle of an investigation.
            with self.rows.threads:
                self.regions.close()
                self.segment.close()
            for semaphore in self.semaphores:
                semaphore.close()

    def _forget_after_fork(self) -> None:
        self._closing = threading.Lock()
        self._row = 0
        self.rows.forget()
        if not self.closed:
            self.put_lock.forget()
            self.get_lock.forget()

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and hasattr(self, "done"):
            self.close()


def _semaphore_name(segment_name: str, number: int) -> str:
    """Derived from the file's name, so that a handle is one name; macOS allows 31 characters."""
    _, _, pid, _, random = os.path.basename(segment_name).split("-")
    return f"/mpkit-{pid}-{random[:12]}-{'pgird'[number]}"


def _forget_after_fork() -> None:
    global _opening
    _opening = threading.RLock()
    for file in list(_open_files.values()):
        file._forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
