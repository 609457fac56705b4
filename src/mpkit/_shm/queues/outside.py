"""Reads the state of a queue at one moment, also from a process that does not use the queue. Changes nothing.

An administrator may look at the programs of other users, so the content of the file is not trusted. It may
also change at any time, so the file is read and not mapped: an access to the mapping of a file that has been
truncated is a SIGBUS.
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

#: How often reading a queue is begun again at most, because it has moved to another ring meanwhile.
_MOST_LOOKS = 10_000


def open_to_look(path: str) -> int:
    """Open a file for reading its state. Never blocks, even if it is a named pipe.

    Raises:
        FileNotFoundError: It is gone, may not be opened, or is not a regular file.
        OSError: This process has no descriptor left.
    """
    try:
        fd = os.open(path, os.O_RDONLY | NOT_INHERITED | NO_WAIT | NO_TERMINAL)
    except OSError as error:
        if identity.is_lack_of_means(error):
            raise
        raise FileNotFoundError(errno.ENOENT, "cannot be opened", path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return fd


@dataclass(frozen=True)
class QueueStatistics:
    """Numbers about a queue at one moment.

    Attributes:
        size: Items in the queue.
        bytes: How much shared memory they occupy, in bytes, including 8 to 15 bytes of overhead for each.
            (Small items that `put_many` has packed together occupy less, but all of it until the last of them
            is taken.)
        maxsize: The bound on items; 0: none.
        max_bytes: The bound on bytes; None: none.
        puts: Items ever put, modulo ``2**36``.
        gets: Items ever taken (or discarded by ``shutdown(immediate=True)``), modulo ``2**36``.
        waiting_putters: Calls that wait for room now. A process that is killed while it waits may remain
            counted until the next wake-up.
        waiting_getters: Calls that wait for an item now; the same applies.
        recoveries: How often a lock of the queue was taken over from a process that died while it held it.
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
    """Read the state of a queue.

    Args:
        name: The path under which it was created.
        path: The path at which this process can open its file.

    Returns:
        The statistics, and the pids of the living processes that have a row: those that have received a
        handle to the queue, or have used it. None if the file is no queue of this version.

    Raises:
        OSError: The file is gone, or may not be opened.
    """
    # If this process uses the queue itself, it is read through what is open already: where file locks are
    # record locks, opening the file again and closing it would release the lock (see `filelock`). For the
    # same reason no other thread may open the queue meanwhile.
    return while_nobody_opens(name, lambda known: _read_alone(path, known))


def numbers_of(words: memoryview[int], generations: Generations, regions: Regions) -> QueueStatistics:
    """The statistics of a queue. Never blocks.

    Args:
        words: The words of the queue's file.
        generations: Its rings.
        regions: Its regions.
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
        # ValueError: another thread is just closing it.
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
        # The file is too short, refers to places outside itself, or cannot be read.
        return None
    finally:
        os.close(fd)


class _Words:
    """The words of a file, each read from it when it is asked for; takes the place of a mapping's words.

    A slice may reach beyond this object, up to the end of the file.
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
    """Takes the place of a `Segment`, as far as reading the state of a queue needs one."""

    __slots__ = ("words",)

    def __init__(self, words: _Words) -> None:
        self.words = words


class _Rings(Generations):
    """The rings of a queue whose file is not mapped."""

    __slots__ = ("_looks",)

    def __init__(self, words: memoryview[int], mm: Any, regions: Regions) -> None:  # noqa: ANN401  there is none
        super().__init__(words, mm, regions)
        self._looks = 0

    @override
    def _words_of(self, generation: int) -> memoryview[int]:
        # A queue that seems to move to another ring at each look is not a real one.
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
