"""What the children of `test_queue_chaos` run, and what they leave for the judge.

Each worker has a notebook: a file mapped by it and by the judge, in which it writes words of its own. What
stands there survives any kill. Getters note every item in a second file, with one system call for each.
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
"""Number of the putter, number of the item, payload, checksum of all that."""

#: Words of a notebook: operations finished; when the one under way began (ns, 0 = none); faults found.
DONE, SINCE, WRONG = range(3)
#: In the notebook of the judge: nobody starts anything new; who is inside the critical section.
STOP, INSIDE = 0, 8

#: As many items go into the queue by one call at most.
LARGEST_BATCH = 40
#: Getters with an odd number take so many by one call at most, the others one.
LARGEST_HANDFUL = 6

#: One line of a getter's list: putter and number.
SEEN = Struct("=QQ")


class Notebook:
    """A page of words in a file."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self.words = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("B").cast("Q")
        finally:
            os.close(fd)

    @contextmanager
    def timed(self, operations: int = 1) -> Iterator[None]:
        """One call, for the judge's stop-watch."""
        self.words[SINCE] = time.monotonic_ns()
        yield
        self.words[SINCE] = 0
        self.words[DONE] += operations


def checksum(putter: int, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, putter * 1_000_003 + number & 0xFFFFFFFF)


def putter(queue: BoundedQueue[Item], number: int, notebook: Path, judge: Path) -> None:
    """Put items 0, 1, 2, …; DONE counts those whose put has returned."""
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
    """Take items until the queue is shut down, and note each; WRONG counts torn ones."""
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
    """Add one, sometimes in a compound update; DONE counts the additions acknowledged."""
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
    """Take the lock, check to be alone, give it back; WRONG counts company that was not dead."""
    mine, common = Notebook(notebook), Notebook(judge).words
    dice = random.Random(number)
    me = os.getpid()
    while not common[STOP]:
        with mine.timed():
            lock.acquire()
            # Between two owners stands 0, or the one who died with the lock.
            if common[INSIDE] not in (0, lock.abandoned_by):
                mine.words[WRONG] += 1
            common[INSIDE] = me
            if dice.random() < 0.1:
                time.sleep(0.0005)
            if common[INSIDE] != me:
                mine.words[WRONG] += 1
            common[INSIDE] = 0
            lock.release()
