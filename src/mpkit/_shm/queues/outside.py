"""What the file of a queue says at one moment, also seen from a process that does not use it: read, and never
changed.

The administrator may look at the programs of others: what lies in their files may be anything, and change at
any time. So they are not mapped: to look at one that has just been cut would be a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from dataclasses import dataclass
from typing import Any

from mpkit._platform.files.descriptors import NO_TERMINAL, NO_WAIT, NOT_INHERITED
from mpkit._platform.files.positioned import read_at
from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit._shm.locks.shared_file import MAGIC, RECOVERIES
from mpkit._shm.locks.shared_object import while_nobody_opens
from mpkit._shm.memory.segment import Segment
from mpkit._shm.queues import layout
from mpkit._shm.queues.generations import Generations, RingView
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.regions import PLACE, Regions, offset_of, size_of
from mpkit._shm.queues.ring import COUNT_MASK

__all__ = ["QueueStatistics", "numbers_of", "open_to_look", "read_queue"]


#: So often the numbers of a queue are read anew at most.
_MOST_LOOKS = 10_000


def open_to_look(path: str) -> int:
    """Open a file that has the name of one of mpkit's, which a named pipe may have as well. Never waits.

    Raises:
        FileNotFoundError: it is gone, or is none that can be read.
        OSError: this process has no descriptor left.
    """
    try:
        fd = os.open(path, os.O_RDONLY | NOT_INHERITED | NO_WAIT | NO_TERMINAL)
    except OSError as error:
        if identity.is_lack_of_means(error):
            raise
        raise FileNotFoundError(errno.ENOENT, "cannot be read", path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return fd


@dataclass(frozen=True)
class QueueStatistics:
    """Numbers about a queue at one moment.

    Attributes:
        size: items in the queue.
        bytes: what they occupy in shared memory, including 8 to 15 bytes of overhead for each (small items
            that `put_many` has packed together occupy less, but until the last of them is taken).
        maxsize: the bound on items, 0 for none.
        max_bytes: the bound on bytes, None for none.
        puts: items ever put, modulo ``2**36``.
        gets: items ever taken (or discarded by ``shutdown(immediate=True)``), modulo ``2**36``.
        waiting_putters: calls that wait for room now. A process that is killed while it waits may stay
            counted until the next wake-up.
        waiting_getters: calls that wait for an item now; the same applies.
        recoveries: how often a lock was taken over from a process that died while it held it.
    """

    size: int
    bytes: int
    maxsize: int
    max_bytes: int | None
    puts: int
    gets: int
    waiting_putters: int
    waiting_getters: int
    recoveries: int


def read_queue(name: str, path: str) -> tuple[QueueStatistics, tuple[int, ...]] | None:
    """Read the queue that was created as `name` and can be opened at `path`.

    Args:
        name: of its file.
        path: where that is.

    Returns:
        The numbers, and the living processes that have a row: those that opened the queue by name, or have
        used it. None if it is none of this version.

    Raises:
        OSError: the file is gone, or may not be read.
    """
    # Opening the file a second time and closing it would give up the file lock of a process that uses the
    # queue itself (see `filelock`): then it is read through what is open already, and nobody may open it
    # meanwhile.
    return while_nobody_opens(name, lambda known: _read_alone(path, known))


def numbers_of(words: memoryview[int], generations: Generations, regions: Regions) -> QueueStatistics:
    """The numbers of a queue. Never blocks.

    Args:
        words: of the queue's file.
        generations: the rings in it.
        regions: the regions in it.
    """
    gets, puts, in_rings = generations.snapshot()
    return QueueStatistics(
        size=(puts - gets) & COUNT_MASK,
        bytes=in_rings + regions.queued_bytes(gets, puts),
        maxsize=words[layout.MAXSIZE],
        max_bytes=words[layout.MAX_BYTES] or None,
        puts=puts,
        gets=gets,
        waiting_putters=max(words[layout.ROOM_SLEPT] - words[layout.ROOM_POSTED], 0),
        waiting_getters=max(words[layout.ITEMS_SLEPT] - words[layout.ITEMS_POSTED], 0),
        recoveries=words[RECOVERIES],
    )


def _read_alone(path: str, known: object) -> tuple[QueueStatistics, tuple[int, ...]] | None:
    if isinstance(known, QueueFile):
        # ValueError: another thread closes it at this moment.
        with contextlib.suppress(ValueError):
            return None if known.closed else _read(known.segment, known.generations, known.regions)
        return None
    fd = open_to_look(path)
    try:
        file: Any = _File(_Words(fd, 0, layout.FORM.file_bytes >> 3))
        if file.words[MAGIC] != layout.FORM.magic:
            return None
        regions = Regions(file, start=layout.REGIONS, capacity=layout.REGION_SLOTS)
        return _read(file, _Rings(file.words, file.words, regions), regions)
    except (IndexError, ValueError, OSError):
        # It is shorter, or what it says leads out of it, or it cannot be read.
        return None
    finally:
        os.close(fd)


class _Words:
    """Words of a file, each read when it is asked for: in the place of those of a mapping. A slice may be any
    stretch of the file.
    """

    __slots__ = ("_fd", "_first", "_number")

    def __init__(self, fd: int, first: int, number: int) -> None:
        self._fd = fd
        self._first = first
        self._number = number

    def __getitem__(self, at: int | slice) -> int | _Words:
        if isinstance(at, slice):
            return _Words(self._fd, self._first + at.start, at.stop - at.start)
        word = read_at(self._fd, 8, (self._first + at) << 3) if 0 <= at < self._number else b""
        if len(word) < 8:
            raise IndexError(at)
        return int.from_bytes(word, sys.byteorder)


class _File:
    """In the place of a segment, as far as somebody needs it who only looks."""

    __slots__ = ("words",)

    def __init__(self, words: _Words) -> None:
        self.words = words


class _Rings(Generations):
    """The rings in a file that is not mapped."""

    __slots__ = ("_looks",)

    def __init__(self, words: memoryview[int], mm: Any, regions: Regions) -> None:  # noqa: ANN401  there is none
        super().__init__(words, mm, regions)
        self._looks = 0

    @override
    def _words_of(self, generation: int) -> memoryview[int]:
        # No queue moves each time it is looked at.
        self._looks += 1
        if self._looks > _MOST_LOOKS:
            raise ValueError
        return super()._words_of(generation)

    @override
    def in_region(self, region: int) -> RingView:
        if region == 0:
            return super().in_region(0)
        place = self._words[self._regions.at(region) + PLACE]
        first, number = offset_of(place) >> 3, size_of(place) >> 3
        return RingView(self._words[first : first + number], self._mm, layout.RING_RECORDS << 3, number)


def _read(
    segment: Segment, generations: Generations, regions: Regions
) -> tuple[QueueStatistics, tuple[int, ...]]:
    rows = layout.FORM.rows(segment)
    users = tuple(sorted(process.pid for _, process in rows.taken() if identity.is_alive(process)))
    return numbers_of(segment.words, generations, regions), users
