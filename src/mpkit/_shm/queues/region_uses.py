"""Tells whether a region is no longer in use, from the counts of the queue and the entry of the table.

`region_supply` asks this before it reclaims a region.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.queues.generations import Generations
from mpkit._shm.queues.layout import GENERATION_MASK, GET_GENERATION, PUT_GENERATION
from mpkit._shm.queues.regions import HELD, LEFT, LENT, QUEUED, RING, WRITING
from mpkit._shm.queues.ring import COUNT_MASK

# Numbers for the writings of this process; and those that are under way.
_serials = itertools.count(1)
_under_way: dict[int, weakref.ref[Writing]] = {}


class Writing:
    """Stands for one writing of a region by this process. The writing is over when this object is dropped.

    An exception (Ctrl-C) may come between any two instructions, even when a region has been claimed and no
    variable has its number yet. Then this object is dropped, and the region is free again.

    Attributes:
        serial: the serial in the region's entry.
    """

    __slots__ = ("__weakref__", "serial")

    def __init__(self) -> None:
        self.serial: int = next(_serials)
        _under_way[self.serial] = weakref.ref(self)

    def __del__(self, forget: Callable[[int, None], object] = _under_way.pop) -> None:
        # This only keeps the dictionary small: what counts is that the reference is dead. (There is no serial
        # if an interrupt came in `__init__`.)
        forget(getattr(self, "serial", -1), None)


def _is_under_way(serial: int) -> bool:
    reference = _under_way.get(serial)
    return reference is not None and reference() is not None


def look_at_uses(words: memoryview[int], generations: Generations) -> UseIsOver:
    """Read the counts that tell what is in use, under the putters' lock and before reading the table.

    (In this order, an item that counts as taken and whose getter is dead belongs to nobody.)
    """
    gets, puts = generations.counts()
    if not TOTAL_STORE_ORDER:
        full_fence()
    return UseIsOver(gets, puts, words[GET_GENERATION], words[PUT_GENERATION] & GENERATION_MASK)


class UseIsOver:
    """Tells whether a region is no longer in use, from counts that were read before the table."""

    __slots__ = ("_alive", "_first", "_gets", "_last", "_puts")

    def __init__(self, gets: int, puts: int, first: int, last: int) -> None:
        self._gets = gets
        self._puts = puts
        self._first = first
        self._last = last
        # Cached, because one getter may have a hundred regions. The dead stay dead, and a process that dies
        # now is noticed by the next look.
        self._alive: dict[ProcessIdentity, bool] = {}

    def __call__(self, state: int, serial: int, process: ProcessIdentity) -> bool:
        if state == RING:
            return not self._first <= serial <= self._last
        published = (serial - self._gets) & COUNT_MASK < (self._puts - self._gets) & COUNT_MASK
        if state == QUEUED:
            # An item becomes HELD before it is counted as taken. So one that is QUEUED and not in the queue
            # was never published; and it never will be: its putter is dead or has failed, since we have the
            # putters' lock.
            return not published
        if state == HELD:
            return not published and not self._is_alive(process)
        if state == LEFT:
            return True
        if state == WRITING and process == identity.current():
            return not _is_under_way(serial)
        return state in (LENT, WRITING) and not self._is_alive(process)

    def _is_alive(self, process: ProcessIdentity) -> bool:
        alive = self._alive.get(process)
        if alive is None:
            alive = self._alive[process] = identity.is_alive(process)
        return alive
