"""Reads the state of a queue at one moment, also from a process that does not use the queue. Changes nothing.

An administrator may look at the programs of other users, so the content of the file is not trusted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from mpkit._platform.files.descriptors import NO_WAIT, NOT_INHERITED
from mpkit._platform.processes import identity
from mpkit._shm.locks.shared_file import MAGIC, RECOVERIES
from mpkit._shm.locks.shared_object import while_nobody_opens
from mpkit._shm.memory.segment import Segment
from mpkit._shm.queues import layout
from mpkit._shm.queues.generations import Generations
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.regions import Regions
from mpkit._shm.queues.ring import COUNT_MASK

__all__ = ["QueueStatistics", "numbers_of", "open_to_look", "read_queue"]


def open_to_look(path: str, access: int = os.O_RDONLY) -> int:
    """Open a file for reading its state. Never blocks, even if it is a named pipe.

    Raises:
        FileNotFoundError: it is gone, or is no regular file.
        OSError: it may not be opened.
    """
    fd = os.open(path, access | NOT_INHERITED | NO_WAIT)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "no regular file", path)
    return fd


@dataclass(frozen=True)
class QueueStatistics:
    """Numbers about a queue at one moment.

    Attributes:
        size: items in the queue.
        bytes: how much shared memory they occupy, in bytes, including 8 to 15 bytes of overhead for each.
            (Small items that `put_many` has packed together occupy less, but all of it until the last of them
            is taken.)
        maxsize: the bound on items; 0: none.
        max_bytes: the bound on bytes; None: none.
        puts: items ever put, modulo ``2**36``.
        gets: items ever taken (or discarded by ``shutdown(immediate=True)``), modulo ``2**36``.
        waiting_putters: calls that wait for room now. A process that is killed while it waits may remain
            counted until the next wake-up.
        waiting_getters: calls that wait for an item now; the same applies.
        recoveries: how often a lock of the queue was taken over from a process that died while it held it.
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
        name: the path under which it was created.
        path: the path at which this process can open its file.

    Returns:
        The statistics, and the pids of the living processes that have a row: those that have received a
        handle to the queue, or have used it. None if the file is no queue of this version.

    Raises:
        OSError: the file is gone, or may not be opened.
    """
    # If this process uses the queue itself, it is read through what is open already: where file locks are
    # record locks, opening the file again and closing it would release the lock (see `filelock`). For the
    # same reason no other thread may open the queue meanwhile.
    return while_nobody_opens(name, lambda known: _read_alone(name, path, known))


def numbers_of(words: memoryview[int], generations: Generations, regions: Regions) -> QueueStatistics:
    """The statistics of a queue. Never blocks.

    Args:
        words: the words of the queue's file.
        generations: its rings.
        regions: its regions.
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


def _read_alone(name: str, path: str, known: object) -> tuple[QueueStatistics, tuple[int, ...]] | None:
    if isinstance(known, QueueFile):
        # ValueError: another thread is just closing it.
        with contextlib.suppress(ValueError):
            return None if known.closed else _read(known.segment, known.generations, known.regions)
        return None
    fd = open_to_look(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    if size < layout.FORM.file_bytes:
        os.close(fd)
        return None
    try:
        # `Segment` always maps for writing; nothing here writes.
        segment = Segment(name, fd, layout.FORM.file_bytes, owned=False)
    except BaseException:
        os.close(fd)
        raise
    regions = Regions(segment, start=layout.REGIONS, capacity=layout.REGION_SLOTS)
    try:
        if segment.words[MAGIC] != layout.FORM.magic:
            return None
        return _read(segment, Generations(segment.words, segment.mm, regions), regions)
    except (IndexError, TypeError, ValueError):
        # Its content is invalid: it refers to places outside the file, say.
        return None
    finally:
        regions.close()
        segment.close()


def _read(
    segment: Segment, generations: Generations, regions: Regions
) -> tuple[QueueStatistics, tuple[int, ...]]:
    rows = layout.FORM.rows(segment)
    users = tuple(sorted(process.pid for _, process in rows.taken() if identity.is_alive(process)))
    return numbers_of(segment.words, generations, regions), users
