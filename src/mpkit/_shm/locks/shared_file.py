"""The file of a queue, lock or counter: its first words, creating and opening it, and the handles under way.

The first words are the same in all of them, so that any process can tell what a file is, and who uses it::

    word 0   magic: the kind of the object, and the version of its layout; stored last by the creator
    word 1   index of the table of processes
    word 2   number of its rows that have ever been used
    word 3   how many locks were taken over from the dead
    word 4   how many handles have been pickled         } both are written under the file lock
    word 5   which of the last 64 of them are under way }

A handle is under way until it is unpickled for the first time. It may be unpickled any number of times (an
argument of an initializer, in each worker), so a plain counter would not do.
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
#: How long pickling or opening a handle waits for the file lock, which a stopped process may have.
OPENING_SECONDS = 5.0
#: Of how many handles, the last ones, it is known whether they are under way; the bits of word 5.
NUMBERS = 64
#: How many processes (of a lock: threads) can use one object at the same time.
MOST_ROWS = 4096


class Form:
    """The layout of the file of one kind of object; the table of processes is at its end.

    Args:
        kind: the word for it in error messages and in the file's name.
        magic: its first word.
        rows_at: index of the table of processes.
        semaphores: initial and maximal value of each; the first `locks` are the permits of robust locks.
        locks: how many robust locks there are.
        must_stay: as for `Rows`.
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
        """Create a new file, and the semaphores that go with it.

        Args:
            write: writes the initial values of the words that are not zero.
            use: called with both; if it raises, they are removed.

        Returns:
            What `use` returns.

        Raises:
            SharedMemoryExhausted: there is no room. Nothing is left behind.
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
        """Open an existing file, and its semaphores.

        Raises:
            HandleLost: a name is gone, or the file is of another kind or version.
            SharedMemoryExhausted: this process may not open or map more.
        """
        segment = Segment.attach(name, self.file_bytes)
        if segment.words[MAGIC] != self.magic:
            raise HandleLost(
                f"{name!r} is not a {self.kind} of this version of mpkit, or its creator died creating it"
            )
        return segment, [
            Semaphore.attach(names.semaphore_name(name, number), maximum)
            for number, (_, maximum) in enumerate(self.semaphores)
        ]

    def rows(self, segment: Segment) -> Rows:
        """The table of processes in a file of this form."""
        return Rows(
            segment,
            start=self.rows_at,
            capacity=MOST_ROWS,
            used_at=ROWS_USED,
            must_stay=self.must_stay,
        )


def mark_exported(rows: Rows) -> int:
    """Record that a handle is being pickled: the names must not be removed before it is unpickled.

    Returns:
        The number of the handle, for `mark_arrived`. -1: the file lock was not to be had, because a process
        is stopped; then the handle is not recorded, and the names may be removed too early.
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
    """Record that the handle with this number (from `mark_exported`) has been unpickled."""
    bit = 1 << number % NUMBERS
    # Checked first without the lock: often it has been unpickled before.
    words = rows.words
    if number < 0 or not words[UNDER_WAY] & bit:
        return
    with rows.exclusive(CLOCK.monotonic() + OPENING_SECONDS) as alone:
        # Otherwise its bit belongs to a later handle by now: this one arrives very late, or once more.
        if alone and words[EXPORTS] - number <= NUMBERS:
            words[UNDER_WAY] &= ~bit
