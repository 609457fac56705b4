"""Finds regions for putters: it reuses free ones, reclaims those of dead processes, and extends the file.

Writing into fresh shared pages is some fifteen times slower than into pages that have been written before. So
free regions are reused, and the file grows only when none of them fits. All of this happens under the
putters' lock.

If no entry of the table is left for a new region, a free one of another size is *remade*: first its memory is
reserved in a new place, then its place is changed by one store. A process that is killed in between leaves
the old place or the new one, and perhaps reserved memory behind the last region, which the next process to
grow the file gets.

A free region is not in use, with one exception: a process that looks at an old ring without a lock may read
its first page, in the old place or in the new one, never half of each. That page exists in both. The first
page of a place is never given back to the system; and the file is never truncated in front of it, because the
last region in the file is never moved: it grows in place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

from mpkit._platform.files.file_maps import give_back
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.memory.segment import PAGE, exhausted, reserve, round_up
from mpkit._shm.queues.regions import (
    DROPPED,
    FREE,
    HELD,
    KEPT,
    LEFT,
    LENT,
    OWN,
    PID,
    PLACE,
    QUEUED,
    RING,
    SERIAL,
    STARTED,
    WRITING,
    Regions,
    offset_of,
    place_at,
    size_of,
)

#: How many entries big items leave to rings, without which nothing could be put.
KEPT_FOR_RINGS = 32

#: Called with the state, serial and process of an entry; tells whether the region is no longer in use.
IsOver: TypeAlias = "Callable[[int, int, ProcessIdentity], bool]"


class RegionSupply:
    """Finds regions for putters.

    Args:
        regions: the table.
        begin_at: index of the word with the offset of the first region, in bytes.
        look: returns a function that tells whether a region is no longer in use; called before the table is
            searched for regions of the dead.
    """

    __slots__ = ("_begin_at", "_look", "_regions", "_words")

    def __init__(self, regions: Regions, begin_at: int, look: Callable[[], IsOver]) -> None:
        self._regions = regions
        self._words = regions.words
        self._begin_at = begin_at
        self._look = look

    def claim(self, size: int, state: int, serial: int) -> int:
        """Claim a region.

        Args:
            size: how many bytes it needs at least.
            state: its new state, RING or WRITING.
            serial: its new serial (see `regions`).

        Returns:
            Its number; -1 if there is no entry for it.

        Raises:
            SharedMemoryExhausted: there is not enough memory. Nothing has changed.
        """
        number = self._best_free(size)
        if number < 0 and self._reclaim():
            number = self._best_free(size)
        if number >= 0:
            at = self._regions.at(number)
            if self._words[at] == DROPPED:
                self._reserve(offset_of(self._words[at + PLACE]), size_of(self._words[at + PLACE]))
        else:
            number = self._unused()
            if number >= 0 and (state == RING or number <= self._regions.capacity - KEPT_FOR_RINGS):
                self._make(number, _size_class(size))
            else:
                number = self._remake(_size_class(size))
        if number >= 0:
            self._regions.mark(number, state, serial)
        return number

    def drop_free(self) -> int:
        """Give the pages of all free regions back to the system; return how many bytes."""
        self._reclaim()
        given = 0
        words = self._words
        for number, at in self._regions.made():
            if words[at] == FREE and size_of(words[at + PLACE]) > PAGE:
                given += self._drop(number)
        return given

    def _best_free(self, size: int) -> int:
        """The free region that fits `size` bytes best and is not much larger; -1: none."""
        words = self._words
        most = 2 * size + 16 * PAGE
        best, best_size, best_state = -1, most + 1, DROPPED
        for number, at in self._regions.made():
            state = words[at]
            if state in (FREE, DROPPED):
                has = size_of(words[at + PLACE])
                # A region that still has its pages is better than one with a closer fit.
                if size <= has <= most and (
                    best < 0
                    or (best_state == DROPPED and state == FREE)
                    or (state == best_state and has < best_size)
                ):
                    best, best_size, best_state = number, has, state
        return best

    def _unused(self) -> int:
        """The number of the first entry that has never been used; -1: none."""
        number = 1 + sum(1 for _ in self._regions.made())
        return number if number < self._regions.capacity else -1

    def _reclaim(self) -> int:
        """Free the regions that are no longer in use; return how many."""
        words, is_over = self._words, self._look()
        freed = 0
        for number, at in self._regions.made():
            state = words[at]
            if state in (RING, WRITING, QUEUED, HELD, LENT, LEFT):
                process = ProcessIdentity(words[at + PID], words[at + STARTED])
                if (
                    is_over(state, words[at + SERIAL], process)
                    and not self._regions.is_borrowed(state, number)
                    # Meanwhile HELD may have become FREE, which does no harm; or LENT, by a holder that died
                    # then.
                    and words[at] == state
                    # Last, because a process sets this word while the state or the table of loans still shows
                    # that it uses the region.
                    and not words[at + KEPT]
                ):
                    words[at] = FREE
                    freed += 1
        return freed

    def _make(self, number: int, size: int) -> None:
        """Give an entry that has never been used a place."""
        offset = self._end()
        self._reserve(offset, size)
        # The place does not count before the entry has a state, so after a kill the next process begins
        # again.
        self._words[self._regions.at(number) + PLACE] = place_at(offset, size)

    def _remake(self, size: int) -> int:
        """Give a free region that is too small, or far too large, a place of `size` bytes.

        Returns:
            Its number; -1 if no region is free.
        """
        number = self._best_to_remake(size)
        if number < 0:
            return -1
        words = self._words
        at = self._regions.at(number)
        place = words[at + PLACE]
        if words[at] == FREE and size_of(place) >= size:
            # It is larger than needed, but still has its pages, so using it as it is costs nothing.
            return number
        offset, own, end = offset_of(place), self._own(number), self._end()
        if own < size and offset + own != end:
            # It has to move. Its pages are given back first, because that memory may be needed at the new
            # place.
            self._drop(number)
            offset = end
        self._reserve(offset, size)
        if offset == offset_of(place):
            words[at + OWN] = own
        words[at + PLACE] = place_at(offset, size)
        return number

    def _best_to_remake(self, size: int) -> int:
        """The free region that is best remade with this size; -1: none is free."""
        words = self._words
        best: tuple[int, int, int] | None = None
        for number, at in self._regions.made():
            state = words[at]
            if state not in (FREE, DROPPED):
                continue
            own = self._own(number)
            if state == FREE and size_of(words[at + PLACE]) >= size:
                # The last choice: such a large region is better kept for an item that needs it.
                rank = 2
            else:
                rank = 0 if own >= size else 1
            if best is None or (rank, own) < best[:2]:
                best = rank, own, number
        return -1 if best is None else best[2]

    def _own(self, number: int) -> int:
        """How many bytes of the file, from its offset on, belong to a region."""
        at = self._regions.at(number)
        return max(self._words[at + OWN], size_of(self._words[at + PLACE]))

    def _end(self) -> int:
        """The end of the last region in the file. Any memory behind it was reserved by processes that died.

        This never decreases, so no process has mapped anything behind it either.
        """
        words = self._words
        end = words[self._begin_at]
        for number, at in self._regions.made():
            end = max(end, offset_of(words[at + PLACE]) + self._own(number))
        return end

    def _drop(self, number: int) -> int:
        """Give the pages of a free region back to the system; return how many bytes."""
        at = self._regions.at(number)
        # The state first: after a kill in between, existing pages are reserved once more, which is harmless.
        self._words[at] = DROPPED
        size = size_of(self._words[at + PLACE])
        # All but the first page: a process that looks at an old ring without a lock reads its head and tail
        # there.
        if size <= PAGE or not give_back(self._regions.map(number), PAGE, size - PAGE):
            return 0
        return size - PAGE

    def _reserve(self, offset: int, size: int) -> None:
        """Reserve memory of the file. If there is none left, take that of the free regions.

        Raises:
            SharedMemoryExhausted: there is not enough memory.
            ClosedError: this process has closed the queue.
        """
        segment = self._regions.segment
        fd = segment.fd
        may_drop = True
        while True:
            try:
                reserve(fd, offset, size)
                return
            except OSError as error:
                self._regions.check_open(fd)
                os.ftruncate(fd, self._end())
                if not may_drop or not self.drop_free():
                    raise exhausted(error, size, os.path.dirname(segment.name)) from error
                may_drop = False


def _size_class(size: int) -> int:
    """Round up to eighths of a power of two, so that items of similar size can reuse each other's regions."""
    step = max(PAGE, 1 << max(size.bit_length() - 3, 0))
    return round_up(size, step)
