"""Which processes take part: one row for each (in a lock one for each thread that is at it), in which it says
what it is doing.

A row is one cache line, so that neighbours do not slow each other down::

    word 0        pid, 0 in a free row; stored last when a process joins, first when it leaves
    word 1        start time of that process (a pid alone may have been given to another process since)
    word 2 to 7   two words for each robust lock of the segment (see robust_lock), or three for a lock
                  that knows its owner (see lock_rows)

Only the process itself writes these words (but for a release by another one). Rows are handed out, and rows
of the dead taken back, under a lock of the file system (`Rows.exclusive`), which the kernel frees when its
holder dies.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from mpkit._platform import identity
from mpkit._platform.filelock import FileLock
from mpkit._platform.identity import ProcessIdentity
from mpkit._shm.segment import Segment, exhausted, reserve
from mpkit.errors import SharedMemoryExhausted

ROW_WORDS = 8
FIRST_LOCK = 2
LOCK_WORDS = 2

# How often a process looks again for the file lock that another one holds; its holders are done in
# microseconds (joining) or in well under a second (investigating), and file locks cannot be waited for with a
# time limit.
_RETRY_SECONDS = 0.002


class Rows:
    """The table of rows in one segment, seen from one process.

    Args:
        segment: where the table lies; its file is the file lock.
        start: index of the table's first word.
        capacity: how many rows there are.
        used_at: index of the word that counts the rows ever handed out (what lies above has never been used).
    """

    __slots__ = ("_capacity", "_start", "_used_at", "segment", "words")

    def __init__(self, segment: Segment, *, start: int, capacity: int, used_at: int) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self._start = start
        self._capacity = capacity
        self._used_at = used_at

    @contextlib.contextmanager
    def exclusive(self, deadline: float | None) -> Generator[bool]:
        """Be the only one in all processes and threads who changes rows or investigates.

        Yields False when the deadline passed first.
        """
        lock: FileLock | None = None
        try:
            lock = FileLock.try_acquire(self.segment.fd)
            while lock is None and (deadline is None or time.monotonic() < deadline):
                time.sleep(_RETRY_SECONDS)
                lock = FileLock.try_acquire(self.segment.fd)
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def join(self, deadline: float | None) -> int:
        """Take a row for this process and return the index of its first word, or -1 when the deadline passed.

        Raises:
            SharedMemoryExhausted: every row belongs to a living process.
        """
        me = identity.current()
        with self.exclusive(deadline) as alone:
            if not alone:
                return -1
            at = self._free_row()
            words = self.words
            for word in range(1, ROW_WORDS):
                words[at + word] = 0
            words[at + 1] = me.started
            words[at] = me.pid
            return at

    def leave(self, at: int) -> None:
        """Give this process's row back."""
        self.words[at] = 0

    def bury(self, at: int) -> None:
        """Free the row of a dead process (only under `exclusive`)."""
        self.words[at] = 0

    def taken(self) -> list[tuple[int, ProcessIdentity]]:
        """First word and process of every row in use, dead ones included."""
        words = self.words
        found: list[tuple[int, ProcessIdentity]] = []
        for number in range(words[self._used_at]):
            at = self._start + number * ROW_WORDS
            pid = words[at]
            if pid:
                found.append((at, ProcessIdentity(pid, words[at + 1])))
        return found

    def holder(self, at: int) -> ProcessIdentity | None:
        """The process that the row at word `at` belongs to."""
        pid = self.words[at]
        return ProcessIdentity(pid, self.words[at + 1]) if pid else None

    def _free_row(self) -> int:
        words = self.words
        used = words[self._used_at]
        for number in range(used):
            at = self._start + number * ROW_WORDS
            if words[at] == 0:
                return at
        if used < self._capacity:
            at = self._start + used * ROW_WORDS
            # The table is reserved page by page; a queue of two processes should not cost what five hundred
            # need.
            try:
                reserve(self.segment.fd, at << 3, ROW_WORDS << 3)
            except OSError as error:
                raise exhausted(error, ROW_WORDS << 3) from error
            words[self._used_at] = used + 1
            return at
        for at, process in self.taken():
            if not identity.is_alive(process):
                self.bury(at)
                return at
        raise SharedMemoryExhausted(
            f"{self._capacity} living processes use this object already, which is the most; let some of "
            "them close it"
        )
