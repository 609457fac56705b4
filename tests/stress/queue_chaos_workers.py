"""What the child processes of `test_queue_chaos` run, and what they record for it (the "judge").

Each worker has a notebook: a file that it and the judge map into memory. The words that a worker has written
survive when it is killed. A getter also records every item in a second file, with one system call for each
call of `get` or `get_many`.
"""

from __future__ import annotations

import mmap
import os
import random
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit.errors import QueueShutDown

Item = tuple[int, int, bytes, int]
"""The number of the putter, the number of the item, the payload, and a checksum of all three."""

#: Words of a worker's notebook: operations finished; when the current one began (ns, 0: none); faults found.
DONE, SINCE, WRONG = range(3)
#: Words of the judge's notebook: whether workers must stop; the pid of who is inside the critical section.
STOP, INSIDE = 0, 8

#: The most items that one call puts into the queue.
LARGEST_BATCH = 40
#: The most items that one call takes, by a getter with an odd number. The others take one at a time.
LARGEST_HANDFUL = 6

#: One record of a getter's file: the putter and the number of the item.
SEEN = Struct("=QQ")


class Notebook:
    """A page of 8-byte words in a file that is mapped into memory."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self.words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("B").cast("Q")
        finally:
            os.close(fd)

    @contextmanager
    def timed(self, operations: int = 1) -> Iterator[None]:
        """Record when the call in the block began and that it is finished, so that the judge can time it."""
        self.words[SINCE] = time.monotonic_ns()
        yield
        self.words[SINCE] = 0
        self.words[DONE] += operations


def checksum(putter: int, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, putter * 1_000_003 + number & 0xFFFFFFFF)


def putter(queue: BoundedQueue[Item], number: int, notebook: Path, judge: Path) -> None:
    """Put items 0, 1, 2, …; DONE counts those whose `put` has returned."""
    mine, stop = Notebook(notebook), Notebook(judge).words
    dice = random.Random(number)

    def item(count: int, sizes: tuple[int, ...], weights: tuple[int, ...]) -> Item:
        size = dice.randrange(dice.choices(sizes, weights)[0])
        payload = dice.randbytes(8) * (size // 8)
        return number, count, payload, checksum(number, count, payload)

    while not stop[STOP]:
        count = mine.words[DONE]
        if dice.random() < 0.7:
            with mine.timed():
                queue.put(item(count, (200, 20_000, 200_000), (90, 7, 3)))
        else:
            batch = dice.randint(1, LARGEST_BATCH)
            items = [item(count + nth, (200, 20_000), (99, 1)) for nth in range(batch)]
            with mine.timed(batch):
                queue.put_many(items)


def getter(queue: BoundedQueue[Item], number: int, notebook: Path, judge: Path) -> None:
    """Take items until the queue is shut down, and record each; WRONG counts torn ones."""
    mine = Notebook(notebook)
    seen = os.open(notebook.with_suffix(".seen"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    dice = random.Random(number)
    while True:
        try:
            with mine.timed():
                if number % 2 and dice.random() < 0.5:
                    items = queue.get_many(dice.randint(1, LARGEST_HANDFUL))
                else:
                    items = [queue.get()]
        except QueueShutDown:
            mine.words[SINCE] = 0
            return
        os.write(seen, b"".join(SEEN.pack(who, count) for who, count, _, _ in items))
        for who, count, payload, check in items:
            if check != checksum(who, count, payload):
                mine.words[WRONG] += 1


def adder(counter: LockedCounter, number: int, notebook: Path, judge: Path) -> None:
    """Add one, sometimes in a compound update; DONE counts the additions that have returned."""
    mine, stop = Notebook(notebook), Notebook(judge).words
    dice = random.Random(number)
    while not stop[STOP]:
        with mine.timed():
            if dice.random() < 0.8:
                counter.add()
            else:
                with counter as locked:
                    locked.value = locked.value + 1


def locker(lock: Lock, number: int, notebook: Path, judge: Path) -> None:
    """Acquire the lock, check that nobody else is inside, release it; WRONG counts living others inside."""
    mine, common = Notebook(notebook), Notebook(judge).words
    dice = random.Random(number)
    me = os.getpid()
    while not common[STOP]:
        with mine.timed():
            lock.acquire()
            # The word is 0, unless the last owner died with the lock: then it is that one's pid.
            if common[INSIDE] not in (0, lock.abandoned_by):
                mine.words[WRONG] += 1
            common[INSIDE] = me
            if dice.random() < 0.1:
                time.sleep(0.0005)
            if common[INSIDE] != me:
                mine.words[WRONG] += 1
            common[INSIDE] = 0
            lock.release()
