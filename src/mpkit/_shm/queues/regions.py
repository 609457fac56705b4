"""Stretches of one segment's file that are handed out, recycled and given back: rings and big items.

Writing into fresh shared pages is some fifteen times slower than into pages that have been written before, so
a region that is free again is used again. The table of regions lies in the segment; the file grows at its end
when no free region fits. Each entry is one cache line::

    word 0   state
    word 1   serial: of a ring its generation, of a big item its number in the queue; while it is
             written, a number that its writer has made up
    word 2   place: where it lies in the file and its size, in one word (see places)
    word 3   so many bytes of the file, from its offset on, are its own: as many as its size, if that is more
    word 4   pid of the process that writes it or holds it
    word 5   start time of that process
    word 6   bytes of it that are in use
    word 7   not 0: never to be used again; stored by anybody who has views, and looked at last

States, and who may leave them (the table is changed under the putters' lock, except where said)::

    NONE      never made
    FREE      to be used again; its pages are there
    DROPPED   free, and its pages given back to the system: to be reserved again before use
    RING      records of generation `serial`; free when that generation is over
    WRITING   a putter copies a big item into it; free when that putter is dead, or knows of it no more
    QUEUED    the queue's item number `serial` lies in it; stored just before that item is published, so
              one whose number is not in the queue was never published: free
    HELD      a getter has views of it; stored under the getters' lock just before the item is taken. Free
              when the last view goes (one store by the holder, no lock), or when the holder is dead *and*
              the item has been taken
    LENT      its holder was forked while it had views: the child has them too, see `borrowers`. LEFT when
              the holder's last view goes (one store, no lock)
    LEFT      free when no child has it any more, as is LENT when its holder is dead
    PINNED    forked, and not to be told who has views: never used again (word 7 says so as well)

When no entry is left for a new region, one that is free, but not of the size that is needed, is *remade*: its
place is changed by one store, when the memory is there. So whoever dies in between leaves the old place or
the new one, and memory behind the last region, which the next one to grow the file gets. Nobody uses a region
that is free, except that who looks at an old ring without a lock reads its first page: in the old place or in
the new one, never half of each. That page is there in either: the first page of a place is never given back,
and the file never cut in front of it, because the region that lies last gets no other place: it grows there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from mpkit._platform.files.file_maps import MAP_HAS_DESCRIPTOR, give_back, map_file
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.memory.segment import PAGE, Segment, exhausted, reserve, round_up
from mpkit._shm.queues.borrowers import Borrowers
from mpkit._shm.queues.places import offset_of, place_at, size_of
from mpkit.errors import ClosedError

ENTRY_WORDS = 8
#: Big items leave so many entries to the rings, without which nothing could be put.
KEPT_FOR_RINGS = 32
#: So many mappings are kept for the next use: a process has some thousand descriptors, and other needs.
MOST_MAPS = 64 if MAP_HAS_DESCRIPTOR else 256
NONE, FREE, DROPPED, RING, WRITING, QUEUED, HELD, PINNED, LENT, LEFT = range(10)

#: Tells of (state, serial, process) whether that use of a region has ended.
IsOver: TypeAlias = "Callable[[int, int, ProcessIdentity], bool]"
#: Looks at what is in use now.
Look: TypeAlias = "Callable[[], IsOver]"

_STATE, _SERIAL, _PLACE, _OWN, _PID, _STARTED, _USED, _KEPT = range(8)


class Regions:
    """The table of regions of one segment, seen from one process.

    Args:
        segment: the segment; its file grows.
        start: index of the table's first word.
        capacity: how many entries there are.
        begin_at: index of the word that says where the first region begins, in bytes.
        borrowers: the table of those that were forked with views; None for who only looks.
    """

    __slots__ = ("_begin_at", "_borrowers", "_capacity", "_maps", "_segment", "_start", "words")

    def __init__(
        self,
        segment: Segment,
        *,
        start: int,
        capacity: int,
        begin_at: int,
        borrowers: Borrowers | None = None,
    ) -> None:
        self._segment = segment
        self._borrowers = borrowers
        self.words = segment.words
        self._start = start
        self._capacity = capacity
        self._begin_at = begin_at
        # With the place that each was made for.
        self._maps: dict[int, tuple[int, mmap.mmap]] = {}

    # -- under the putters' lock -----------------------------------------------------------------------------

    def claim(self, size: int, state: int, serial: int, look: Look) -> int:
        """Take a region of at least `size` bytes into `state` and return its number, or -1 when there is no
        entry for it.

        Args:
            size: bytes.
            state: RING or WRITING.
            serial: what `word 1` of the entry holds for that state.
            look: called before the table is searched for what the dead have left behind.

        Raises:
            SharedMemoryExhausted: the memory is not to be had; nothing has changed.
        """
        number = self._best_free(size, 2 * size + 16 * PAGE)
        if number < 0 and self._reclaim(look()):
            number = self._best_free(size, 2 * size + 16 * PAGE)
        if number >= 0:
            at = self._at(number)
            if self.words[at] == DROPPED:
                self._reserve(offset_of(self.words[at + _PLACE]), size_of(self.words[at + _PLACE]), look)
        else:
            number = self._unused()
            if number >= 0 and (state == RING or number <= self._capacity - KEPT_FOR_RINGS):
                self._make(number, _size_class(size), look)
            else:
                number = self._remake(_size_class(size), look)
        if number >= 0:
            self._mark(number, state, serial)
        return number

    def mark_queued(self, number: int, serial: int, used: int) -> None:
        """The item number `serial` of the queue, `used` bytes long, is about to be published in this
        region.
        """
        self.words[self._at(number) + _USED] = used
        self._mark(number, QUEUED, serial)

    def queued_bytes(self, first: int, end: int, mask: int) -> int:
        """Bytes of the items numbered from `first` to before `end` (modulo `mask` + 1) that lie in
        regions.
        """
        words = self.words
        total = 0
        # `_made` in line: with `max_bytes` each put asks.
        for at in range(self._at(1), self._at(self._capacity), ENTRY_WORDS):
            state = words[at]
            if state == NONE:
                break
            if state in (QUEUED, HELD) and (words[at + _SERIAL] - first) & mask < (end - first) & mask:
                total += words[at + _USED]
        return total

    def drop_free(self, look: Look) -> int:
        """Give the pages of every free region back to the system; returns how many bytes that were."""
        self._reclaim(look())
        given = 0
        words = self.words
        for number, at in self._made():
            if words[at] == FREE and size_of(words[at + _PLACE]) > PAGE:
                given += self._drop(number)
        return given

    # -- under the lock of the side that the state belongs to ------------------------------------------------

    def mark_held(self, number: int) -> int:
        """This process is about to take the item in this region (under the getters' lock): its number."""
        serial = self.words[self._at(number) + _SERIAL]
        self._mark(number, HELD, serial)
        return serial

    # -- without a lock --------------------------------------------------------------------------------------

    def free(self, number: int) -> None:
        """One store by whoever has the region in his hands."""
        if not TOTAL_STORE_ORDER:
            # What was read there has been read before somebody else may write.
            full_fence()
        self.words[self._at(number)] = FREE

    def free_held(self, number: int, serial: int) -> None:
        """Free a region whose item this process has taken, unless that has been done already."""
        if self.words[self._at(number)] == HELD and self._is_mine(number, serial):
            self.free(number)

    def is_held(self, number: int, serial: int) -> bool:
        """Whether this process holds that item in the region."""
        state = self.words[self._at(number)]
        return state in (HELD, LENT, PINNED) and self._is_mine(number, serial)

    def free_unpublished(self, number: int, serial: int) -> None:
        """Free a region that was claimed as WRITING with this serial, unless it has been published since."""
        if self.words[self._at(number)] == WRITING and self._is_mine(number, serial):
            self.free(number)

    def free_unpublished_items(self, puts: int, mask: int) -> None:
        """Free what is QUEUED with a number that has not been published (under the putters' lock)."""
        words = self.words
        for _, at in self._made():
            if words[at] == QUEUED and (words[at + _SERIAL] - puts) & mask < mask >> 1:
                words[at] = FREE

    def lend(self, numbers: Sequence[int]) -> list[int]:
        """Who has views of these regions is about to fork: the child's slots, as of `Borrowers.lend`."""
        if self._borrowers is None:
            return [0] * len(numbers)
        return self._borrowers.lend(numbers)

    def mark_lent(self, number: int) -> None:
        """By the holder: a child has, or is about to have, views as well (one store)."""
        at = self._at(number)
        if self.words[at] == HELD:
            self.words[at] = LENT

    def arrive(self, slot: int) -> None:
        """In the child: it has what was lent to it."""
        if self._borrowers is not None:
            self._borrowers.arrive(slot)

    def give_back(self, slot: int) -> None:
        """By a child of a fork: its last view has gone, or it never had one (one store)."""
        if self._borrowers is not None:
            self._borrowers.give_back(slot)

    def let_go(self, number: int, serial: int) -> None:
        """By the holder: its last view of that item has gone (one store). A second time it does nothing."""
        if not self._is_mine(number, serial):
            return
        at = self._at(number)
        if not TOTAL_STORE_ORDER:
            full_fence()
        state = self.words[at]
        if state == HELD:
            self.words[at] = FREE
        elif state == LENT:
            self.words[at] = LEFT

    def pin(self, number: int) -> None:
        """By the holder: take the region out of use for ever."""
        self.keep_for_ever(number)
        at = self._at(number)
        if self.words[at] in (HELD, LENT):
            self.words[at] = PINNED

    def keep_for_ever(self, number: int) -> None:
        """The same by a child of a fork, which does not touch the state (one store; nobody takes it back)."""
        self.words[self._at(number) + _KEPT] = 1

    def with_getters(self) -> int:
        """How many regions are with getters now (a count for a decision of economy, not for correctness)."""
        return sum(self.words[at] in (HELD, LENT, LEFT, PINNED) for _, at in self._made())

    def are_short(self) -> bool:
        """Whether getters have half of all regions, or more."""
        # One look tells as long as there have never been so many.
        half = self._capacity >> 1
        return self.words[self._at(half)] != NONE and self.with_getters() >= half

    def map(self, number: int) -> mmap.mmap:
        """This process's mapping of a region, as long as that stays in its place."""
        place = self.words[self._at(number) + _PLACE]
        known = self._maps.get(number)
        if known is not None and known[0] == place:
            return known[1]
        mapped = self._map_open(place)
        # Two threads may come here at once: both mappings are good, one stays.
        self._maps[number] = place, mapped
        for oldest in list(self._maps)[:-MOST_MAPS]:
            self._maps.pop(oldest, None)
        return mapped

    def close(self) -> None:
        """Let go of all mappings; those that somebody still has views of go with their last view."""
        self._maps = {}

    # -- inside ----------------------------------------------------------------------------------------------

    def _at(self, number: int) -> int:
        """Index of an entry's first word, that of its state."""
        return self._start + number * ENTRY_WORDS

    def _made(self) -> Iterator[tuple[int, int]]:
        """Number and first word of every entry that has ever been used; they are taken into use in order."""
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            if self.words[at] == NONE:
                return
            yield number, at

    def _map_open(self, place: int) -> mmap.mmap:
        fd = self._segment.fd
        # Without a file it would be memory of this process's own.
        self._check_open(fd)
        try:
            mapped = self._map(fd, place)
        except (OSError, ValueError) as error:
            self._check_open(fd)
            if isinstance(error, OSError):
                raise exhausted(error, size_of(place)) from error
            raise
        # Else it may be another file that has been mapped.
        self._check_open(fd)
        return mapped

    def _check_open(self, fd: int) -> None:
        """Raise ClosedError unless `fd` is still the file's: another thread may have closed it, and have
        opened another by that number.
        """
        if fd < 0 or self._segment.fd != fd:
            raise ClosedError("this queue is closed in this process")

    def _map(self, fd: int, place: int) -> mmap.mmap:
        try:
            return map_file(fd, size_of(place), offset_of(place))
        except OSError as error:
            if not identity.is_lack_of_means(error):
                raise
        # Those that nobody uses go at once, and give back what is missing.
        self._maps.clear()
        return map_file(fd, size_of(place), offset_of(place))

    def _is_mine(self, number: int, serial: int) -> bool:
        at = self._at(number)
        return self.words[at + _SERIAL] == serial and self.words[at + _PID] == os.getpid()

    def _mark(self, number: int, state: int, serial: int) -> None:
        at = self._at(number)
        words = self.words
        me = identity.current()
        # The state last for a new use; for QUEUED and HELD the process changes hands while the item's number
        # stays the truth.
        words[at + _PID] = me.pid
        words[at + _STARTED] = me.started
        words[at + _SERIAL] = serial
        words[at] = state

    def _best_free(self, size: int, most: int) -> int:
        words = self.words
        best, best_size, best_state = -1, most + 1, DROPPED
        for number, at in self._made():
            state = words[at]
            if state in (FREE, DROPPED):
                has = size_of(words[at + _PLACE])
                # Pages that are there come before a closer fit.
                if size <= has <= most and (
                    best < 0
                    or (best_state == DROPPED and state == FREE)
                    or (state == best_state and has < best_size)
                ):
                    best, best_size, best_state = number, has, state
        return best

    def _unused(self) -> int:
        number = 1 + sum(1 for _ in self._made())
        return number if number < self._capacity else -1

    def _reclaim(self, is_over: IsOver) -> int:
        words = self.words
        freed = 0
        for number, at in self._made():
            state = words[at]
            if state in (RING, WRITING, QUEUED, HELD, LENT, LEFT):
                process = ProcessIdentity(words[at + _PID], words[at + _STARTED])
                if (
                    is_over(state, words[at + _SERIAL], process)
                    and not self._is_borrowed(state, number)
                    # HELD may turn FREE under our eyes, which changes nothing; or LENT, by one who dies then.
                    and words[at] == state
                    # Last: who keeps a region does it while the table or the state still tells of him.
                    and not words[at + _KEPT]
                ):
                    words[at] = FREE
                    freed += 1
        return freed

    def _is_borrowed(self, state: int, number: int) -> bool:
        # After the state: what has been lent by then is in the table, and a dead holder lends nothing more.
        if state not in (HELD, LENT, LEFT):
            return False
        return self._borrowers.has(number) if self._borrowers is not None else state != HELD

    def _make(self, number: int, size: int, look: Look) -> None:
        """Give the entry, the first that has never been used, its first place."""
        offset = self._end()
        self._reserve(offset, size, look)
        # It counts for nothing before the entry has a state: whoever comes after a kill begins again.
        self.words[self._at(number) + _PLACE] = place_at(offset, size)

    def _remake(self, size: int, look: Look) -> int:
        """Give a free region that is too small, or far too large, that size; its number, or -1 when none is
        free.
        """
        number = self._best_to_remake(size)
        if number < 0:
            return -1
        words = self.words
        at = self._at(number)
        place = words[at + _PLACE]
        if words[at] == FREE and size_of(place) >= size:
            # Its pages are there: to use more of them than needed costs nothing.
            return number
        offset, own, end = offset_of(place), self._own(number), self._end()
        if own < size and offset + own != end:
            # What lies there is given back first: it may be what is missing at the end.
            self._drop(number)
            offset = end
        self._reserve(offset, size, look)
        if offset == offset_of(place):
            words[at + _OWN] = own
        words[at + _PLACE] = place_at(offset, size)
        return number

    def _best_to_remake(self, size: int) -> int:
        words = self.words
        best: tuple[int, int, int] | None = None
        for number, at in self._made():
            state = words[at]
            if state not in (FREE, DROPPED):
                continue
            own = self._own(number)
            if state == FREE and size_of(words[at + _PLACE]) >= size:
                # Last: what is as large is best kept for what needs that.
                rank = 2
            else:
                rank = 0 if own >= size else 1
            if best is None or (rank, own) < best[:2]:
                best = rank, own, number
        return -1 if best is None else best[2]

    def _own(self, number: int) -> int:
        at = self._at(number)
        return max(self.words[at + _OWN], size_of(self.words[at + _PLACE]))

    def _end(self) -> int:
        """Where the file ends as far as it is used: behind it lies only what the dead have reserved in vain.

        Never less than it was: nothing that somebody may have mapped lies behind it, either.
        """
        words = self.words
        end = words[self._begin_at]
        for number, at in self._made():
            end = max(end, offset_of(words[at + _PLACE]) + self._own(number))
        return end

    def _drop(self, number: int) -> int:
        """Give the pages of a free region back to the system; returns how many bytes that were."""
        at = self._at(number)
        # The state first: a kill in between leaves pages that are reserved once more, which is harmless.
        self.words[at] = DROPPED
        size = size_of(self.words[at + _PLACE])
        # All but the first page: whoever looks at an old ring without a lock reads its head and tail there.
        if size <= PAGE or not give_back(self.map(number), PAGE, size - PAGE):
            return 0
        return size - PAGE

    def _reserve(self, offset: int, size: int, look: Look) -> None:
        """Reserve memory of the file, if need be what free regions have."""
        fd = self._segment.fd
        try:
            reserve(fd, offset, size)
        except OSError as error:
            self._check_open(fd)
            os.ftruncate(fd, self._end())
            if not self.drop_free(look):
                raise exhausted(error, size, os.path.dirname(self._segment.name)) from error
            try:
                reserve(fd, offset, size)
            except OSError as again:
                self._check_open(fd)
                os.ftruncate(fd, self._end())
                raise exhausted(again, size, os.path.dirname(self._segment.name)) from again


def _size_class(size: int) -> int:
    """Round up to eighths of a power of two, so that items of about one size share regions."""
    step = max(PAGE, 1 << max(size.bit_length() - 3, 0))
    return round_up(size, step)
