"""When the use of a region has ended: what the counts of a queue tell about an entry of its table.

`region_supply` asks, before it takes a region back.
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

# Tells one writing of a region by this process from the next.
_serials = itertools.count(1)
_under_way: dict[int, weakref.ref[Writing]] = {}


class Writing:
    """One writing of a region by this process, which is over when nobody has this object any more.

    An exception may come between any two instructions (Ctrl-C), also when a region has been claimed and
    nobody knows yet which: then the object goes, and the region is free.

    Attributes:
        serial: what the region's entry has as its serial.
    """

    __slots__ = ("__weakref__", "serial")

    def __init__(self) -> None:
        self.serial: int = next(_serials)
        _under_way[self.serial] = weakref.ref(self)

    def __del__(self, forget: Callable[[int, None], object] = _under_way.pop) -> None:
        # Only to keep the table small, should an interrupt come just now: what counts is the reference.
        # It may have come before there was a serial, too.
        forget(getattr(self, "serial", -1), None)


def _is_under_way(serial: int) -> bool:
    reference = _under_way.get(serial)
    return reference is not None and reference() is not None


def look_at_uses(words: memoryview[int], generations: Generations) -> UseIsOver:
    """What is in use now; to be called under the putters' lock, before the table is read.

    An item that had been taken then, by whoever is dead now, is nobody's.
    """
    gets, puts = generations.counts()
    if not TOTAL_STORE_ORDER:
        full_fence()
    return UseIsOver(gets, puts, words[GET_GENERATION], words[PUT_GENERATION] & GENERATION_MASK)


class UseIsOver:
    """Tells of a region's use whether it has ended, from what was read before the table."""

    __slots__ = ("_alive", "_first", "_gets", "_last", "_puts")

    def __init__(self, gets: int, puts: int, first: int, last: int) -> None:
        self._gets = gets
        self._puts = puts
        self._first = first
        self._last = last
        # One getter may have a hundred views: the system is asked about it once. The dead stay dead, and who
        # dies now is found by the next one that looks.
        self._alive: dict[ProcessIdentity, bool] = {}

    def __call__(self, state: int, serial: int, process: ProcessIdentity) -> bool:
        if state == RING:
            return not self._first <= serial <= self._last
        published = (serial - self._gets) & COUNT_MASK < (self._puts - self._gets) & COUNT_MASK
        if state == QUEUED:
            # Taken items are HELD before they are counted as taken, so a QUEUED one that is not in the queue
            # now was never published: its putter is dead, since we have his lock.
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
