"""The file of a queue, a lock or a counter: what all of them begin with, how one is made and opened, and
which handles to it are under way.

Whoever finds one can tell what it is and who uses it, by its first words::

    word 0   magic: what it is, and the version of its layout; stored last by the creator
    word 1   index of the table of processes
    word 2   rows of it that have ever been used
    word 3   how many locks were taken over from the dead
    word 4   how many handles have been pickled    } under the file lock
    word 5   which of the last 64 are under way    }

A handle is under way until it is unpickled for the first time: it may be unpickled any number of times (the
arguments of an initializer, in each worker), so counting would not do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.memory import names
from mpkit._shm.memory.rows import ROW_WORDS, MustStay, Rows
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import HandleLost

T = TypeVar("T")

MAGIC, ROWS_AT, ROWS_USED, RECOVERIES, EXPORTS, UNDER_WAY = range(6)
#: "mpkit" in ASCII, the version of all layouts, and room for the kind.
MAGIC_BASE = 0x6D706B6974 << 16 | 1 << 8
#: How long opening a handle may wait for a process that was stopped while it had the file lock.
OPENING_SECONDS = 5.0
#: As many handles are known by their number while they are under way.
NUMBERS = 64
#: As many processes (of a lock: threads) can use one object at the same time.
MOST_ROWS = 4096


class Form:
    """What the file of one kind of object looks like: the table of processes is its end.

    Args:
        kind: what users call it; a word for the file's name, too.
        magic: its first word.
        rows_at: index of the table of processes.
        semaphores: first value and maximum of each; the first `locks` are the permits of robust locks.
        locks: how many robust locks there are.
        must_stay: as of `Rows`.
    """

    def __init__(
        self,
        kind: str,
        magic: int,
        *,
        rows_at: int,
        semaphores: tuple[tuple[int, int], ...],
        locks: int,
        must_stay: MustStay | None = None,
    ) -> None:
        self.kind: str = kind
        self.magic: int = magic
        self.rows_at: int = rows_at
        self.semaphores: tuple[tuple[int, int], ...] = semaphores
        self.locks: int = locks
        self.must_stay: MustStay | None = must_stay
        self.reserved_bytes: int = rows_at * 8
        self.file_bytes: int = (rows_at + MOST_ROWS * ROW_WORDS) * 8

    def create(
        self, write: Callable[[memoryview[int]], object], use: Callable[[Segment, list[Semaphore]], T]
    ) -> T:
        """Make a new file, and the semaphores that go with it.

        Args:
            write: writes what it begins with, where that is not zero.
            use: called with both; they go if it fails.

        Returns:
            What `use` returns.

        Raises:
            SharedMemoryExhausted: no room; nothing is left behind.
        """
        segment = Segment.create(self.file_bytes, kind=self.kind, reserved=self.reserved_bytes)
        semaphores: list[Semaphore] = []
        try:
            semaphores = Semaphore.create_all(self.semaphores, segment.name)
            words = segment.words
            words[ROWS_AT] = self.rows_at
            write(words)
            words[MAGIC] = self.magic
            return use(segment, semaphores)
        except BaseException:
            for semaphore in semaphores:
                semaphore.close()
            segment.close()
            raise

    def attach(self, name: str) -> tuple[Segment, list[Semaphore]]:
        """Open a file that exists.

        Raises:
            HandleLost: the name is gone.
            SharedMemoryExhausted: this process may not open or map more.
        """
        segment = Segment.attach(name, self.file_bytes)
        if segment.words[MAGIC] != self.magic:
            raise HandleLost(
                f"{name!r} is no {self.kind} of this version of mpkit, or its creator died making it"
            )
        return segment, [
            Semaphore.attach(names.semaphore_name(name, number), maximum)
            for number, (_, maximum) in enumerate(self.semaphores)
        ]

    def rows(self, segment: Segment) -> Rows:
        """The table of processes in such a file."""
        return Rows(
            segment,
            start=self.rows_at,
            capacity=MOST_ROWS,
            used_at=ROWS_USED,
            must_stay=self.must_stay,
        )


def mark_exported(rows: Rows) -> int:
    """A handle is being pickled: until it is unpickled the names must outlive this process's handles.

    Returns:
        Its number, for `mark_arrived`; -1 if a stopped process keeps this one from giving it one, which only
        makes the names go sooner.
    """
    words = rows.words
    with rows.exclusive(CLOCK.monotonic() + OPENING_SECONDS) as alone:
        if not alone:
            return -1
        number = words[EXPORTS]
        words[UNDER_WAY] |= 1 << number % NUMBERS
        words[EXPORTS] = number + 1
    return number


def mark_arrived(rows: Rows, number: int) -> None:
    """The handle that `mark_exported` has given this number has been unpickled."""
    bit = 1 << number % NUMBERS
    # Looked at first: most often it has arrived before, or everybody is a child of a fork.
    words = rows.words
    if number < 0 or not words[UNDER_WAY] & bit:
        return
    with rows.exclusive(CLOCK.monotonic() + OPENING_SECONDS) as alone:
        # Else its place is another's by now: it arrives for the second time, or very late.
        if alone and words[EXPORTS] - number <= NUMBERS:
            words[UNDER_WAY] &= ~bit
