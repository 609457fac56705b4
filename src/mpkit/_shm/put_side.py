"""The putters' side of a queue, in one process."""

from __future__ import annotations

import contextlib
import mmap
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from mpkit._platform.deadlines import has_passed
from mpkit._platform.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm import records
from mpkit._shm.layout import (
    GENERATION_MASK,
    GENERATION_SLOTS,
    GET_GENERATION,
    ITEMS_SLEPT,
    PUT_GENERATION,
    RING_HEAD,
    RING_RECORDS,
    RING_TAIL,
    RING_WRAPPED_AT,
    SHUT_DOWN,
)
from mpkit._shm.queue_file import QueueFile
from mpkit._shm.records import BIG, PACK, PACK_BITS, PACKED
from mpkit._shm.region_uses import UseIsOver, Writing, look_at_uses
from mpkit._shm.regions import RING, WRITING
from mpkit._shm.ring import COUNT_LIMIT, COUNT_MASK, INDEX_BITS, INDEX_MASK, ONE, WRAP
from mpkit._shm.robust_lock import COMPLETED, PATIENCE_SECONDS
from mpkit._shm.sleepers import EVERYBODY, Ticket
from mpkit._shm.spin import SpinBudget
from mpkit.errors import ClosedError, QueueShutDown, SharedMemoryExhausted

#: A new ring is this many times as large as the one before, and twice from `SLOWER_GROWTH` on, up to
#: `LARGEST_RING`.
GROWTH: Final = 4
SLOWER_GROWTH: Final = 16 * 1024 * 1024
LARGEST_RING: Final = 256 * 1024 * 1024
#: The most words for records that a ring can have, if an item needs them: half a gigabyte.
_MOST_WORDS: Final = INDEX_MASK - RING_RECORDS - 1
#: Results of `_tail_for` that are no tail.
_FULL: Final = -1
_GROW: Final = -2
#: More than anybody puts at once, and a small number.
_MANY: Final = 1 << 20
#: A tail near the end of the counts.
_LATE: Final = COUNT_LIMIT - (_MANY << (INDEX_BITS + 2))
_BYTE_ORDER: Final = sys.byteorder
_PADDING: Final = tuple(bytes(number) for number in range(8))


class WrittenItem(NamedTuple):
    """A big item that lies in its region and has not been put yet."""

    record: bytes
    flag: int
    """`BIG`: the record describes the region; `PACKED`: it holds everything, because there was no region."""
    region: int
    writing: Writing | None
    """What keeps the region from being taken for one that was given up."""


class PutSide:
    """Puts records; every thread of the process uses this one object."""

    __slots__ = (
        "_base",
        "_bounded",
        "_capacity",
        "_file",
        "_generation",
        "_left",
        "_lock",
        "_mm",
        "_quiet",
        "_ring",
        "_room",
        "_spin",
        "_tail",
        "_weighed",
        "_words",
    )

    def __init__(self, file: QueueFile) -> None:
        self._file = file
        self._lock = file.put_lock
        self._words = file.words
        self._spin = SpinBudget()
        # The ring as this process knows it; no generation yet.
        self._generation = -1
        self._ring: memoryview[int] = file.words
        self._mm: mmap.mmap = file.segment.mm
        self._base = 0
        self._capacity = 0
        self._bounded = bool(file.maxsize or file.max_bytes)
        self._weighed = bool(file.max_bytes)
        # What this process knows about the ring as long as its tail is `_tail`: words free in one piece
        # behind it, and how many more items `maxsize` allows (getters only ever make room).
        self._tail = -1
        self._room = 0
        self._left = 0
        # The value of ITEMS_SLEPT at which nobody is known to sleep.
        self._quiet = -1

    def try_put(self, data: bytes) -> bool:
        """Put one record now; False when that needs more than the fast path: waiting, growing, or an error to
        raise.

        The body of `RobustLock.try_acquire` and `release` stands in line here: a call costs as much as the
        copy.
        """
        lock = self._lock
        try:
            if not lock.local_acquire(False):
                return False
            words = self._words
            value = lock.value
            words[lock.at] = value + 1
            if not lock.permit_acquire(False) and not lock.try_some_more():
                lock.step_out(value)
                lock.local_release()
                return False
            done = False
            if words[PUT_GENERATION] == self._generation:
                ring = self._ring
                size = len(data)
                length = (size + 15) >> 3
                tail = ring[RING_TAIL]
                if tail != self._tail or length > self._room or self._left <= 0:
                    tail = self._tail_for(tail, length, length << 3)
                    if self._left <= 0:
                        tail = _FULL
                if tail >= 0:
                    index = tail & INDEX_MASK
                    ring[RING_RECORDS + index] = size
                    at = self._base + (index << 3) + 8
                    self._mm[at : at + size] = data
                    tail += ONE + length
                    self._room -= length
                    self._left -= 1
                    self._tail = tail
                    if not TOTAL_STORE_ORDER:
                        full_fence()
                    ring[RING_TAIL] = tail
                    done = True
            lock.permit_release()
            lock.value = words[lock.at] = value + COMPLETED
            lock.local_release()
        except BaseException:
            try:
                lock.unwind()
            finally:
                lock.unwind()
            raise
        # The release above was the barrier between our tail and this look (see sleepers).
        if done and words[ITEMS_SLEPT] != self._quiet:
            self.wake_getters(1)
        return done

    def put(self, data: bytes, flag: int, block: bool, deadline: float | None) -> bool:
        """Put one record, waiting for room if `block`; False when there was none in time.

        Raises:
            QueueShutDown: the queue has been shut down.
            SharedMemoryExhausted: an unbounded queue cannot grow.
            ClosedError: this process has closed the queue.
        """
        done = self._put_once(data, flag, lock_deadline(block, deadline))
        if done is not False or not block or has_passed(deadline):
            return bool(done)
        self._spin_for_room()
        ticket = Ticket(self._file.room, self._spin)

        def put_or_take_ticket() -> bool:
            done = self._put_locked(data, flag)
            if done:
                ticket.hand_back()
            else:
                ticket.take()
            return done

        try:
            while True:
                done = self._lock.run(lock_deadline(True, deadline), put_or_take_ticket)
                if done:
                    self.wake_getters(1)
                if done is not False or has_passed(deadline):
                    return bool(done)
                ticket.sleep(deadline)
        finally:
            ticket.give_up(self._lock)
            ticket.pass_on(self._has_room, self._file.putters)

    def is_full(self) -> bool:
        """Whether there is no room for any item, seen without the lock, so that nothing is pickled in vain.

        True: it was so at one moment during the call. False tells nothing: also where this process knew of
        room a while ago. For a queue with `maxsize`.
        """
        if self._left > 0:
            return False
        file, ring = self._file, self._ring
        # A rough look first, at what may be no ring at all yet.
        if ((ring[RING_TAIL] >> INDEX_BITS) - (ring[RING_HEAD] >> INDEX_BITS)) & COUNT_MASK < file.maxsize:
            return False
        # Last what is for ever: the queue was full before that.
        return file.generations.size() >= file.maxsize and not self.is_shut_down and not file.closed

    def put_now(self, data: bytes, flag: int) -> bool | None:
        """`put` that waits neither for room nor for a process that was stopped in the middle of an operation:
        False when there is no room, None when the lock could not be had.
        """
        return self._put_once(data, flag, lock_deadline(False, None))

    def _put_once(self, data: bytes, flag: int, lock_by: float | None) -> bool | None:
        done = self._lock.run(lock_by, self._put_locked, data, flag)
        if done:
            self.wake_getters(1)
        return done

    def put_many(self, items: Sequence[bytes], block: bool, deadline: float | None) -> int:
        """Put records in order as room allows; returns how many went in.

        Raises:
            QueueShutDown: the queue is shut down and nothing went in.
            SharedMemoryExhausted: an unbounded queue cannot grow, and nothing went in.
            ClosedError: this process has closed the queue, and nothing went in.
        """
        done = 0
        while done < len(items):
            try:
                went = self._lock.run(lock_deadline(block, deadline), self._put_run_locked, items, done)
                if not went:
                    # What needs more than room in this ring is put as a single item is.
                    if not self.put(items[done], 0, block, deadline):
                        return done
                    went = 1
                else:
                    self.wake_getters(went)
            except (QueueShutDown, SharedMemoryExhausted, ClosedError):
                if done:
                    return done
                raise
            done += went
        return done

    def put_pack(self, data: bytes, number: int, block: bool, deadline: float | None) -> bool | None:
        """Put `number` items as one pack, all or none.

        False when that needs more than room in this ring, None when the lock could not be had in time.

        Never waits for room; `block` and `deadline` are about the lock.

        Raises:
            RuntimeError, ClosedError: as `put`.
        """
        done = self._lock.run(lock_deadline(block, deadline), self._put_pack_locked, data, number)
        if done:
            self.wake_getters(number)
        return done

    def shut_down(self, deadline: float | None) -> bool:
        """Let nobody put any more; False when the lock could not be had in time."""
        if self._lock.run(deadline, self._refuse_further_puts) is None:
            return False
        # Only now: the release was the barrier between our word and the look at who sleeps.
        self.wake_getters(EVERYBODY)
        return True

    def wake_getters(self, number: int) -> None:
        """Let up to `number` sleeping getters look again."""
        if self._words[ITEMS_SLEPT] != self._quiet:
            self._quiet = self._file.getters.wake(number)

    @property
    def is_shut_down(self) -> bool:
        return self._words[PUT_GENERATION] >= SHUT_DOWN

    # -- big items -------------------------------------------------------------------------------------------

    def write_big(
        self,
        head: bytes,
        buffers: Sequence[memoryview],
        block: bool,
        deadline: float | None,
        *,
        if_room: bool = False,
    ) -> WrittenItem | None:
        """Copy a big item into a region; None when the lock could not be had in time.

        Args:
            head: the pickle.
            buffers: what it has left out.
            block: `block` and `deadline` are about the lock.
            deadline: as that of `put`.
            if_room: None, too, when the queue is full now: for who would not wait for room, so that nothing
                is copied in vain. (There may be none any more when the item is put.)

        Raises:
            SharedMemoryExhausted: there is no room for it.
        """
        places, size = records.lay_out(head, buffers)
        # First: from now on it is known to be under way.
        writing = Writing()
        serial = writing.serial

        def claim() -> int | None:
            self._check_shut_down()
            if if_room and self._is_full(sum(length for _, length in places)):
                return None
            return self._file.regions.claim(size, WRITING, serial, self._look_at_uses)

        region = self._lock.run(lock_deadline(block, deadline), claim)
        if region is None:
            return None
        if region < 0:
            # Getters and the queue itself keep so many items that regions run short: this one goes into the
            # ring.
            return WrittenItem(records.packed(head, buffers), PACKED, 0, None)
        try:
            mapped = self._file.regions.map(region)
            for (at, length), part in zip(places, (memoryview(head), *buffers), strict=True):
                mapped[at : at + length] = part
        except BaseException:
            self._file.regions.free_unpublished(region, serial)
            raise
        return WrittenItem(records.big(region, places), BIG, region, writing)

    def drop_big(self, item: WrittenItem) -> None:
        """The item was not put after all, unless an exception came just after it was published."""
        # Ours as long as it is WRITING, so no lock is needed for it.
        if item.writing is not None:
            self._file.regions.free_unpublished(item.region, item.writing.serial)
        with contextlib.suppress(ClosedError):
            self._lock.run(time.monotonic() + PATIENCE_SECONDS, self.repair)

    def repair(self) -> None:
        """Free the regions of what was never published; whoever calls has the lock, or takes it over."""
        _, puts, _ = self._file.generations.snapshot()
        self._file.regions.free_unpublished_items(puts, COUNT_MASK)

    def used_bytes(self) -> int:
        """What the queued items occupy: exact when nobody is at work, else from one moment to the next. Never
        blocks.
        """
        gets, puts, used = self._file.generations.snapshot()
        return used + self._file.regions.queued_bytes(gets, puts, COUNT_MASK)

    # -- for those who wait without putting ------------------------------------------------------------------

    def progress(self) -> int:
        """A number that changes when room is made or the queue is shut down."""
        gets, _, _ = self._file.generations.snapshot()
        return -1 if self.is_shut_down else gets

    def wait_for_progress(self, seen: int, deadline: float) -> bool:
        """Wait until `progress` is no longer `seen`; False when the deadline passed first."""

        def has_changed() -> bool:
            return self.progress() != seen

        def woken() -> None:
            # Whoever is told of it takes one place at most. (Passed on without any progress, a token too many
            # would go round for ever.)
            if has_changed() and self._has_room():
                self._file.putters.pass_on()

        return self._file.room.wait_until(self._lock, has_changed, deadline, woken)

    def trim(self) -> bool:
        """Give memory back to the system that an empty queue does not need (called under the getters'
        lock).

        Returns:
            Whether the lock could be had. It is not waited for: getters are kept out meanwhile, and a putter
            that is at work shows that the queue is not idle.
        """
        lock = self._lock
        lock.refuse_reentry()
        try:
            taken = lock.try_acquire()
            if taken:
                self._trim_locked()
            return taken
        finally:
            try:
                lock.unwind()
            finally:
                lock.unwind()

    # -- under the lock --------------------------------------------------------------------------------------

    def _put_locked(self, data: bytes, flag: int) -> bool:
        """Put one record; False when the queue is full."""
        while True:
            self._check_shut_down()
            generation = self._words[PUT_GENERATION]
            if generation != self._generation:
                self._load(generation)
            size = len(data)
            length = (size + 15) >> 3
            tail = self._tail_for(
                self._ring[RING_TAIL], length, records.weight(data) if flag == BIG else length << 3
            )
            if tail == _FULL:
                return False
            if tail >= 0:
                break
            self._grow(length)
        ring = self._ring
        index = tail & INDEX_MASK
        ring[RING_RECORDS + index] = size | flag
        at = self._base + (index << 3) + 8
        self._mm[at : at + size] = data
        if flag == BIG:
            # The record itself counts, too, as long as it is in the ring.
            self._file.regions.mark_queued(
                records.big_region(data), tail >> INDEX_BITS, records.weight(data) - (length << 3)
            )
        self._publish(tail, 1, length)
        return True

    def _put_pack_locked(self, data: bytes, number: int) -> bool:
        words = self._words
        generation = words[PUT_GENERATION]
        if generation >= SHUT_DOWN:
            return False
        if generation != self._generation:
            self._load(generation)
        ring = self._ring
        size = len(data) + 8
        length = (size + 15) >> 3
        tail = self._tail_for(ring[RING_TAIL], length, length << 3)
        if tail < 0 or self._left < number:
            return False
        index = tail & INDEX_MASK
        ring[RING_RECORDS + index] = size | PACK
        ring[RING_RECORDS + index + 1] = (tail >> INDEX_BITS) << PACK_BITS | number
        at = self._base + (index << 3) + 16
        self._mm[at : at + len(data)] = data
        self._publish(tail, number, length)
        return True

    def _is_full(self, size: int) -> bool:
        """Whether the bounds let no big item of that size in."""
        if not self._bounded:
            return False
        generation = self._words[PUT_GENERATION]
        if generation != self._generation:
            self._load(generation)
        if self._allowance(self._ring[RING_TAIL], records.weight_of(size)) > 0:
            return False
        # What was known of room is over.
        self._tail = -1
        self._left = 0
        return True

    def _publish(self, tail: int, number: int, length: int) -> None:
        """Put what has been written at `tail`: `number` items in `length` words."""
        tail += number * ONE + length
        if tail >= COUNT_LIMIT:
            tail -= COUNT_LIMIT
        self._room -= length
        self._left -= number
        self._tail = tail
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._ring[RING_TAIL] = tail

    def _put_run_locked(self, items: Sequence[bytes], start: int) -> int:
        """Put what fits into one piece of the ring, as one copy and one publication; returns how many items
        that were, possibly none.
        """
        if self._words[PUT_GENERATION] != self._generation:
            return 0
        done = used = 0
        length = (len(items[start]) + 15) >> 3
        tail = self._tail_for(self._ring[RING_TAIL], length, length << 3)
        if tail < 0:
            return 0
        room, left = self._room, self._left
        parts: list[bytes] = []
        for position in range(start, len(items)):
            data = items[position]
            size = len(data)
            length = (size + 15) >> 3
            if used + length > room or done >= left:
                break
            parts += (size.to_bytes(8, _BYTE_ORDER), data, _PADDING[-size & 7])
            used += length
            done += 1
        if done:
            at = self._base + ((tail & INDEX_MASK) << 3)
            self._mm[at : at + (used << 3)] = b"".join(parts)
            self._publish(tail, done, used)
        return done

    def _tail_for(self, tail: int, length: int, weight: int) -> int:
        """Where a record goes, as a tail (the ring's own, or one whose index is the ring's start); else
        `_FULL` or `_GROW`.

        Notes in `_room` and `_left` what may be put from there on without asking again.

        Args:
            tail: the ring's tail.
            length: words of the record.
            weight: bytes that the item counts for `max_bytes`.
        """
        # First, and valid again only when all of it is known: an interrupt may come in between.
        self._tail = -1
        left = _MANY
        if self._bounded:
            # What others take while we look only makes room.
            left = self._allowance(tail, weight)
            if left <= 0:
                self._left = left
                return _FULL
        if tail >= _LATE:
            # Near the end of the counts every put takes the slow way, which knows how to begin again at zero.
            left = min(left, (COUNT_LIMIT - tail) >> (INDEX_BITS + 2))
        self._left = left
        # With several putters almost every put comes here: numbers beyond 2**30, like head and tail, cost
        # three times as much as smaller ones, so they are used as little as can be.
        head = self._ring[RING_HEAD]
        index, first = tail & INDEX_MASK, head & INDEX_MASK
        if index > first or tail == head:
            room = self._capacity - index
            if room < length:
                return self._begin_at_start(tail, index, index if tail == head else first, length)
        else:
            room = first - index
            if room < length:
                return _GROW
        # With `max_bytes` every item asks again: what big items take is not in the ring.
        self._room = length if self._weighed else room
        return tail

    def _begin_at_start(self, tail: int, index: int, other: int, length: int) -> int:
        """Where a record goes for which there is no room up to the end of the ring; `other` words are free at
        its start.
        """
        if other < length:
            return _GROW
        ring = self._ring
        if index < self._capacity:
            ring[RING_RECORDS + index] = WRAP
        ring[RING_WRAPPED_AT] = index
        self._room = length if self._weighed else other
        return tail - index

    def _allowance(self, tail: int, weight: int) -> int:
        """How many items `maxsize` and `max_bytes` let in behind `tail`, at most `_MANY`."""
        file = self._file
        left = _MANY
        if file.maxsize:
            generation = self._words[GET_GENERATION]
            # Getters may go on to the next generation while we look: what we then see was true before, and
            # they only make room.
            head = (
                self._ring[RING_HEAD]
                if generation == self._generation
                else file.generations.view(generation).words[RING_HEAD]
            )
            left = min(left, file.maxsize - (((tail >> INDEX_BITS) - (head >> INDEX_BITS)) & COUNT_MASK))
        if left > 0 and self._weighed:
            used = self.used_bytes()
            if used and used + weight > file.max_bytes:
                return 0
        return left

    def _load(self, generation: int) -> None:
        ring = self._file.generations.view(generation)
        self._ring, self._mm, self._base = ring.words, ring.mm, ring.base
        self._capacity = ring.capacity
        self._tail = -1
        self._room = self._left = 0
        self._generation = generation

    def _grow(self, length: int) -> None:
        """Begin a new generation in a larger ring."""
        if length > _MOST_WORDS:
            # Else one ring after the other would be made, and none be large enough.
            raise SharedMemoryExhausted(
                f"this queue and its getters keep too many big items: one of {length << 3} bytes gets no "
                f"memory of its own, and among the small ones there is room for {_MOST_WORDS << 3} at most"
            )
        generation = self._generation + 1
        if generation - self._words[GET_GENERATION] >= GENERATION_SLOTS:
            raise SharedMemoryExhausted(
                f"this queue fills {GENERATION_SLOTS} rings of {LARGEST_RING} bytes already; bound it by "
                "maxsize or max_bytes",
            )
        now = self._capacity << 3
        grown = now * (GROWTH if now < SLOWER_GROWTH else 2)
        size = max(min(grown, LARGEST_RING), (length << 3) * 2, now)
        size = min(size, _MOST_WORDS << 3)
        region = self._file.regions.claim(
            size + ((RING_RECORDS + 1) << 3), RING, generation, self._look_at_uses
        )
        if region < 0:
            raise SharedMemoryExhausted(
                "the table of regions of this queue is full: it and its getters keep too many big items"
            )
        self._begin(region, self._ring[RING_TAIL])

    def _begin(self, region: int, tail: int) -> None:
        generation = self._generation + 1
        self._file.generations.begin(generation, region, tail >> INDEX_BITS)
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._words[PUT_GENERATION] = generation | (self._words[PUT_GENERATION] & SHUT_DOWN)
        self._load(generation)

    def _refuse_further_puts(self) -> bool:
        self._words[PUT_GENERATION] |= SHUT_DOWN
        return True

    def _trim_locked(self) -> None:
        file, words = self._file, self._words
        first, last = words[GET_GENERATION], words[PUT_GENERATION] & GENERATION_MASK
        if first == last and file.generations.size() == 0:
            self._load(last)
            if self._base == RING_RECORDS << 3:
                # A grown ring: go on in the first one, whose generation is long over. We have both locks, so
                # getters may be moved, too.
                self._begin(0, self._ring[RING_TAIL])
                words[GET_GENERATION] = self._generation
        with contextlib.suppress(SharedMemoryExhausted):
            # A map that the system refuses can wait; the caller only wanted an item.
            file.regions.drop_free(self._look_at_uses)

    def _look_at_uses(self) -> UseIsOver:
        return look_at_uses(self._words, self._file.generations)

    def _check_shut_down(self) -> None:
        if self._words[PUT_GENERATION] >= SHUT_DOWN:
            raise QueueShutDown("put into a queue that has been shut down")

    # -- waiting ---------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether `maxsize` lets more in; False with `max_bytes`, where everybody is woken anyway."""
        file = self._file
        return not file.max_bytes and (not file.maxsize or file.generations.size() < file.maxsize)

    def _spin_for_room(self) -> None:
        """Look for a getter's progress for a moment."""
        words, ring = self._words, self._ring
        head, generation = ring[RING_HEAD], words[GET_GENERATION]
        for _ in range(self._spin.looks):
            if ring[RING_HEAD] != head or words[GET_GENERATION] != generation:
                self._spin.paid()
                return
        self._spin.failed()


def lock_deadline(block: bool, deadline: float | None) -> float | None:
    """Until when to wait for the lock of a side, for a call that waits until `deadline` for the queue, if
    `block`.

    The lock is held for microseconds: that another process happens to have it just then must not look as if
    the queue were empty or full.
    """
    if block and deadline is None:
        return None
    soon = time.monotonic() + PATIENCE_SECONDS
    return soon if not block or deadline is None else max(deadline, soon)
