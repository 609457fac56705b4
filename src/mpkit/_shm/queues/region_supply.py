"""Where regions come from: free ones are used again, those of the dead taken back, and the file grows at its
end.

Writing into fresh shared pages is some fifteen times slower than into pages that have been written before, so
a region that is free again is used again; the file grows when none fits. All of it happens under the putters'
lock.

When no entry is left for a new region, one that is free, but not of the size that is needed, is *remade*: its
place is changed by one store, when the memory is there. So whoever dies in between leaves the old place or
the new one, and memory behind the last region, which the next one to grow the file gets. Nobody uses a region
that is free, except that who looks at an old ring without a lock reads its first page: in the old place or in
the new one, never half of each. That page is there in either: the first page of a place is never given back,
and the file never cut in front of it, because the region that lies last gets no other place: it grows there.
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

#: Big items leave so many entries to the rings, without which nothing could be put.
KEPT_FOR_RINGS = 32

#: Tells of (state, serial, process) whether that use of a region has ended.
IsOver: TypeAlias = "Callable[[int, int, ProcessIdentity], bool]"


class RegionSupply:
    """Finds regions for putters.

    Args:
        regions: the table.
        begin_at: index of the word that says where the first region begins, in bytes.
        look: looks at what is in use now; called before the table is searched for what the dead have left.
    """

    __slots__ = ("_begin_at", "_look", "_regions", "_words")

    def __init__(self, regions: Regions, begin_at: int, look: Callable[[], IsOver]) -> None:
        self._regions = regions
        self._words = regions.words
        self._begin_at = begin_at
        self._look = look

    def claim(self, size: int, state: int, serial: int) -> int:
        """Take a region of at least `size` bytes into `state` and return its number, or -1 when there is no
        entry for it.

        Args:
            size: bytes.
            state: RING or WRITING.
            serial: what `word 1` of the entry holds for that state.

        Raises:
            SharedMemoryExhausted: the memory is not to be had; nothing has changed.
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
        """Give the pages of every free region back to the system; returns how many bytes that were."""
        self._reclaim()
        given = 0
        words = self._words
        for number, at in self._regions.made():
            if words[at] == FREE and size_of(words[at + PLACE]) > PAGE:
                given += self._drop(number)
        return given

    def _best_free(self, size: int) -> int:
        words = self._words
        most = 2 * size + 16 * PAGE
        best, best_size, best_state = -1, most + 1, DROPPED
        for number, at in self._regions.made():
            state = words[at]
            if state in (FREE, DROPPED):
                has = size_of(words[at + PLACE])
                # Pages that are there come before a closer fit.
                if size <= has <= most and (
                    best < 0
                    or (best_state == DROPPED and state == FREE)
                    or (state == best_state and has < best_size)
                ):
                    best, best_size, best_state = number, has, state
        return best

    def _unused(self) -> int:
        number = 1 + sum(1 for _ in self._regions.made())
        return number if number < self._regions.capacity else -1

    def _reclaim(self) -> int:
        """Free what the dead have left; returns how many regions that were."""
        words, is_over = self._words, self._look()
        freed = 0
        for number, at in self._regions.made():
            state = words[at]
            if state in (RING, WRITING, QUEUED, HELD, LENT, LEFT):
                process = ProcessIdentity(words[at + PID], words[at + STARTED])
                if (
                    is_over(state, words[at + SERIAL], process)
                    and not self._regions.is_borrowed(state, number)
                    # HELD may turn FREE under our eyes, which changes nothing; or LENT, by one who dies then.
                    and words[at] == state
                    # Last: who keeps a region does it while the table or the state still tells of him.
                    and not words[at + KEPT]
                ):
                    words[at] = FREE
                    freed += 1
        return freed

    def _make(self, number: int, size: int) -> None:
        """Give the entry, the first that has never been used, its first place."""
        offset = self._end()
        self._reserve(offset, size)
        # It counts for nothing before the entry has a state: whoever comes after a kill begins again.
        self._words[self._regions.at(number) + PLACE] = place_at(offset, size)

    def _remake(self, size: int) -> int:
        """Give a free region that is too small, or far too large, that size; its number, or -1 when none is
        free.
        """
        number = self._best_to_remake(size)
        if number < 0:
            return -1
        words = self._words
        at = self._regions.at(number)
        place = words[at + PLACE]
        if words[at] == FREE and size_of(place) >= size:
            # Its pages are there: to use more of them than needed costs nothing.
            return number
        offset, own, end = offset_of(place), self._own(number), self._end()
        if own < size and offset + own != end:
            # What lies there is given back first: it may be what is missing at the end.
            self._drop(number)
            offset = end
        self._reserve(offset, size)
        if offset == offset_of(place):
            words[at + OWN] = own
        words[at + PLACE] = place_at(offset, size)
        return number

    def _best_to_remake(self, size: int) -> int:
        words = self._words
        best: tuple[int, int, int] | None = None
        for number, at in self._regions.made():
            state = words[at]
            if state not in (FREE, DROPPED):
                continue
            own = self._own(number)
            if state == FREE and size_of(words[at + PLACE]) >= size:
                # Last: what is as large is best kept for what needs that.
                rank = 2
            else:
                rank = 0 if own >= size else 1
            if best is None or (rank, own) < best[:2]:
                best = rank, own, number
        return -1 if best is None else best[2]

    def _own(self, number: int) -> int:
        at = self._regions.at(number)
        return max(self._words[at + OWN], size_of(self._words[at + PLACE]))

    def _end(self) -> int:
        """Where the file ends as far as it is used: behind it lies only what the dead have reserved in vain.

        Never less than it was: nothing that somebody may have mapped lies behind it, either.
        """
        words = self._words
        end = words[self._begin_at]
        for number, at in self._regions.made():
            end = max(end, offset_of(words[at + PLACE]) + self._own(number))
        return end

    def _drop(self, number: int) -> int:
        """Give the pages of a free region back to the system; returns how many bytes that were."""
        at = self._regions.at(number)
        # The state first: a kill in between leaves pages that are reserved once more, which is harmless.
        self._words[at] = DROPPED
        size = size_of(self._words[at + PLACE])
        # All but the first page: whoever looks at an old ring without a lock reads its head and tail there.
        if size <= PAGE or not give_back(self._regions.map(number), PAGE, size - PAGE):
            return 0
        return size - PAGE

    def _reserve(self, offset: int, size: int) -> None:
        """Reserve memory of the file, if need be what free regions have."""
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
    """Round up to eighths of a power of two, so that items of about one size share regions."""
    step = max(PAGE, 1 << max(size.bit_length() - 3, 0))
    return round_up(size, step)
