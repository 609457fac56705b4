"""The table of the processes that use an object: each has a row, in which it says what it is doing.

(In the file of a `Lock` there is a row for each thread that holds or wants the lock.)

A row is one cache line, so that neighbours do not slow each other down::

    word 0        pid, 0 in a free row; stored last when a process joins, first when it leaves
    word 1        start time of that process (its pid alone may have been reused since)
    word 2 to 7   two words for each robust lock of the segment (see robust_lock), or three for a lock
                  that knows its owner (see lock_rows)

Only the process itself writes these words, except when another process releases a lock on its behalf. Rows
are handed out, and rows of the dead reclaimed, under a file lock (`Rows.exclusive`), which the kernel frees
when its holder dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeAlias

from mpkit._platform.files.filelock import FileLock
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.memory.segment import Segment, exhausted, reserve
from mpkit.errors import ClosedError, SharedMemoryExhausted

#: Called with the words of the segment and the index of the row's first word.
MustStay: TypeAlias = "Callable[[memoryview[int], int], bool]"

#: The length of a row; the word in it at which the state of the locks begins; how many each robust lock has.
ROW_WORDS = 8
FIRST_LOCK = 2
LOCK_WORDS = 2

# How often a process tries again for the file lock while another one holds it. File locks cannot be waited
# for with a time limit; their holders need microseconds (joining) or well under a second (investigating).
_RETRY_SECONDS = 0.002
# How many used rows are checked for a dead process before a row that has never been used is taken.
_LOOKS = 4


class Exclusive:
    """Holds the file lock of a segment during a `with` block.

    This is a class instead of a generator, so that an exception between its instructions leaves no lock
    behind.
    """

    __slots__ = ("_deadline", "_lock", "_segment")

    def __init__(self, segment: Segment, deadline: float | None) -> None:
        self._segment = segment
        self._deadline = deadline
        self._lock: FileLock | None = None

    def __enter__(self) -> bool:
        deadline = self._deadline
        try:
            while True:
                fd = self._segment.fd
                try:
                    self._lock = FileLock.try_acquire(fd) if fd >= 0 else None
                except OSError:
                    # Unless another thread has just closed the segment, and with it this descriptor.
                    if self._segment.fd == fd:
                        raise
                if self._segment.fd < 0:
                    raise ClosedError("this object is closed in this process")
                if self._lock is not None or not (deadline is None or CLOCK.monotonic() < deadline):
                    break
                time.sleep(_RETRY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self._lock is not None

    def __exit__(self, *_exc_info: object) -> None:
        lock = self._lock
        if lock is not None:
            try:
                lock.release()
            finally:
                # Again, in case an interrupt came before the first call; a second release does nothing.
                lock.release()


class Rows:
    """The table of rows in one segment, seen from one process.

    Args:
        segment: contains the table; its file carries the file lock.
        start: index of the table's first word.
        capacity: the maximal number of rows.
        used_at: index of the word that counts the rows ever handed out (the rest have never been used).
        must_stay: tells whether the row of a dead process is still needed.
    """

    __slots__ = ("_capacity", "_must_stay", "_start", "_used_at", "segment", "words")

    def __init__(
        self,
        segment: Segment,
        *,
        start: int,
        capacity: int,
        used_at: int,
        must_stay: MustStay | None = None,
    ) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self._start = start
        self._capacity = capacity
        self._used_at = used_at
        self._must_stay = must_stay

    def exclusive(self, deadline: float | None) -> Exclusive:
        """A context manager for the file lock, which excludes all other processes and threads.

        It is needed to hand out or reclaim rows, and to investigate whether a lock was lost. The value of
        ``with … as alone`` is False when the deadline passed first.

        Raises:
            ClosedError: on entering the block: this process has closed the object.
        """
        return Exclusive(self.segment, deadline)

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
            if not TOTAL_STORE_ORDER:
                # Others read without a lock: a reader that sees the pid must also see the start time.
                full_fence()
            words[at] = me.pid
            return at

    def leave(self, at: int) -> None:
        """Give back this process's row or (under `exclusive`) that of a dead one."""
        # What this process has stored in the row must not arrive when the row is another process's already.
        full_fence()
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

    def _free_row(self) -> int:
        words = self.words
        used = words[self._used_at]
        for number in range(used):
            at = self._start + number * ROW_WORDS
            if words[at] == 0:
                return at
        # Check a few rows for processes that died without leaving; all of them only when the table is full.
        # Processes begin at different rows, so that they do not all check the same ones.
        taken = self.taken()
        turn = identity.current().pid % (used or 1)
        for at, process in (taken[turn:] + taken[:turn])[: _LOOKS if used < self._capacity else used]:
            if not identity.is_alive(process) and not (self._must_stay and self._must_stay(words, at)):
                self.leave(at)
                return at
        if used < self._capacity:
            at = self._start + used * ROW_WORDS
            # The table is reserved page by page: a queue used by two processes should not cost the memory
            # that five hundred need.
            try:
                reserve(self.segment.fd, at << 3, ROW_WORDS << 3)
            except OSError as error:
                raise exhausted(error, ROW_WORDS << 3, os.path.dirname(self.segment.name)) from error
            words[self._used_at] = used + 1
            return at
        raise SharedMemoryExhausted(
            f"{self._capacity} living processes already use this object, which is the maximum; close it in "
            "some of them"
        )
