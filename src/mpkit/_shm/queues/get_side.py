"""The getters' side of a queue, in one process: taking items, waiting for them, and waking putters.

`BoundedQueue.get` and similar methods call it. It returns records, which the queue unpickles outside the
lock.
"""

from __future__ import annotations

import contextlib
import mmap

from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.locks import sleepers
from mpkit._shm.locks.robust_lock import COMPLETED
from mpkit._shm.locks.sleepers import EVERYBODY, Ticket
from mpkit._shm.locks.spin import SpinBudget
from mpkit._shm.queues.held_items import BigRecord, HeldItem
from mpkit._shm.queues.layout import (
    DISCARD_DONE,
    DISCARD_FROM,
    DONE,
    GENERATION_MASK,
    GET_GENERATION,
    PUT_GENERATION,
    RING_HEAD,
    RING_RECORDS,
    RING_TAIL,
    ROOM_SLEPT,
    SHUT_DOWN,
)
from mpkit._shm.queues.packs import Pack, PackSlice
from mpkit._shm.queues.put_side import PutSide, lock_deadline
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.records import BIG, PACK, PACK_BITS, PACKED, big_places, big_region
from mpkit._shm.queues.ring import COUNT_LIMIT, COUNT_MASK, INDEX_BITS, INDEX_MASK, ONE, WRAP
from mpkit._wire import frame
from mpkit.errors import QueueShutDown

Record = bytes | BigRecord | HeldItem | PackSlice


class GetSide:
    """Takes records; all threads of the process share this object."""

    __slots__ = (
        "_base",
        "_file",
        "_generation",
        "_is_trimmed",
        "_last_count",
        "_last_time",
        "_lock",
        "_mm",
        "_pack",
        "_puts",
        "_quiet",
        "_ring",
        "_spin",
        "_words",
    )

    def __init__(self, file: QueueFile, puts: PutSide) -> None:
        self._file = file
        self._puts = puts
        self._lock = file.get_lock
        self._words = file.words
        self._spin = SpinBudget()
        self._generation = -1
        self._ring: memoryview[int] = file.words
        self._mm: mmap.mmap = file.segment.mm
        self._base = 0
        # The pack from which this process took an item last, so that taking its items one by one unpickles it
        # only once.
        self._pack: Pack | None = None
        # When this process last found the queue empty: how many items had been put, since when it has been
        # empty with that count, and whether the queue has been trimmed since.
        self._last_count = -1
        self._last_time = 0.0
        self._is_trimmed = False
        # The value of ROOM_SLEPT at which it is known that nobody sleeps.
        self._quiet = -1

    def try_get(self) -> Record | None:
        """Take the oldest record now, on the fast path.

        The bodies of `RobustLock.try_acquire` and `release` are repeated in line here, because a call costs
        as much as the copy.

        Returns:
            The record. None: there is none, or taking it needs the slow path (waiting, or the next ring).
        """
        lock = self._lock
        data: Record | None = None
        try:
            try:
                if not lock.local_acquire(False):
                    return None
                words = self._words
                value = lock.value
                words[lock.at] = value + 1
                if not lock.permit_acquire(False) and not lock.try_some_more():
                    lock.step_out(value)
                    lock.local_release()
                    return None
                if words[GET_GENERATION] == self._generation:
                    ring = self._ring
                    head, tail = ring[RING_HEAD], ring[RING_TAIL]
                    if head != tail:
                        if not TOTAL_STORE_ORDER:
                            full_fence()
                        index = head & INDEX_MASK
                        size = ring[RING_RECORDS + index]
                        if size < BIG:
                            at = self._base + (index << 3) + 8
                            data = self._mm[at : at + size]
                            head += ONE + ((size + 15) >> 3)
                            if not TOTAL_STORE_ORDER:
                                full_fence()
                            ring[RING_HEAD] = head if head < COUNT_LIMIT else head - COUNT_LIMIT
                        else:
                            data = self._take_from(head, tail, 1)[0]
                lock.permit_release()
                lock.value = words[lock.at] = value + COMPLETED
                lock.local_release()
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
            lock.unwind()
            raise
        # The release above was the barrier between our head and this look (see sleepers).
        if data is not None and words[ROOM_SLEPT] != self._quiet:
            self.wake_putters(1)
        return data

    def get(self, block: bool, deadline: float | None) -> Record | None:
        """Take the oldest record; if `block`, wait for one until `deadline`. None if there was none in time.

        Raises:
            QueueShutDown: the queue is shut down and empty.
            ClosedError: this process has closed the queue.
        """
        if block and self._spin_for_items():
            # An item has just been put; the fast path is the quickest way to it.
            data = self.try_get()
            if data is not None:
                return data
        found = self._wait(1, deadline) if block else self._take_now(1, False, deadline)
        return found[0] if found else None

    def get_many(self, limit: int, block: bool, deadline: float | None) -> list[Record]:
        """Take up to `limit` of the oldest records; if `block`, wait for the first one until `deadline`.

        Returns:
            The records; an empty list if there was none in time.

        Raises:
            QueueShutDown: the queue is shut down and empty.
            ClosedError: this process has closed the queue.
        """
        found = self._take_now(limit, block, deadline)
        if found is None or found or not block or has_passed(deadline):
            return found or []
        self._spin_for_items()
        return self._wait(limit, deadline)

    def discard_all(self) -> None:
        """Discard everything that is queued, and count it as done. Blocks until the lock is free."""
        finished = self._lock.run(None, self._discard_all_locked)
        assert finished is not None  # without a deadline, it always gets the lock
        self._file.done.post(finished)

    def repair(self) -> None:
        """Count as done what has been discarded so far. The caller has the lock, or is taking it over.

        This may be repeated: nobody else takes items or counts them as done meanwhile, and nobody puts any,
        because the queue is shut down. A user may have counted some items as done before they were taken, so
        the number is limited: if more were done than were put, `join` would not end.
        """
        words = self._words
        if words[DISCARD_FROM]:
            gets, puts = self._file.generations.counts()
            done = words[DISCARD_DONE]
            thrown_away = (gets + 1 - words[DISCARD_FROM]) & COUNT_MASK
            words[DONE] = (done + min(thrown_away, (puts - done) & COUNT_MASK)) & COUNT_MASK
            words[DISCARD_FROM] = 0

    def wake_putters(self, number: int = EVERYBODY) -> None:
        """Wake up to `number` sleeping putters, by default all."""
        # With a bound on bytes, the room that one getter has made may be enough for several putters, or for
        # another one than the first.
        self._quiet = self._file.putters.wake(EVERYBODY if self._file.max_bytes else number)

    def _tell_of_room(self, taken: list[Record]) -> None:
        if self._words[ROOM_SLEPT] != self._quiet:
            self.wake_putters(_number_of(taken))

    # -- finished work ---------------------------------------------------------------------------------------

    def task_done(self, number: int) -> bool:
        """Count `number` items as finished; False if that is more than were put."""
        finished = self._lock.run(None, self._task_done_locked, number)
        if finished is None:
            return False
        self._file.done.post(finished)
        return True

    def unfinished(self) -> int:
        """How many items have been put and not been counted as finished."""
        _, puts = self._file.generations.counts()
        return (puts - self._words[DONE]) & COUNT_MASK

    def wait_until_done(self, deadline: float | None) -> bool:
        """Wait until nothing is unfinished; False when the deadline passed first."""
        return self._file.done.wait_until(self._lock, lambda: not self.unfinished(), deadline)

    # -- for callers that wait without taking ----------------------------------------------------------------

    def has_item(self) -> bool:
        """Whether `get` would not wait: there is an item, or the queue is shut down."""
        return self.number_to_try() > 0

    def number_to_try(self) -> int:
        """How many calls of `get` would not wait now."""
        size = self._file.generations.size()
        return size or (EVERYBODY if self._puts.ring.is_shut_down else 0)

    def progress(self) -> int:
        """A number that changes when something is put or the queue is shut down."""
        _, puts = self._file.generations.counts()
        return -1 if self._puts.ring.is_shut_down else puts

    def wait_for_item(self, deadline: float) -> bool:
        """Wait until `has_item`; False when the deadline passed first."""

        def woken() -> None:
            # The caller's coroutine takes one item; the others are for other sleepers.
            if self._file.generations.size() > 1:
                self._file.getters.pass_on()

        return self._file.items.wait_until(self._lock, self.has_item, deadline, woken)

    # -- waiting ---------------------------------------------------------------------------------------------

    def _take_now(self, limit: int, block: bool, deadline: float | None) -> list[Record] | None:
        """Take what is there, possibly nothing; None if the lock was not to be had (see `lock_deadline`)."""
        found = self._lock.run(lock_deadline(block, deadline), self._take, limit)
        if found:
            self._tell_of_room(found)
        return found

    def _wait(self, limit: int, deadline: float | None) -> list[Record]:
        ticket = Ticket(self._file.items, self._spin)

        def take_or_take_ticket() -> list[Record]:
            found = self._take(limit)
            if found:
                ticket.hand_back()
            else:
                ticket.take()
                # Only if the last sleep has ended without a token, so that the memory is not needed at once.
                if self._is_idle() and ticket.expired:
                    self._is_trimmed = self._puts.trim()
            return found

        try:
            while True:
                found = self._lock.run(lock_deadline(True, deadline), take_or_take_ticket)
                if found:
                    self._tell_of_room(found)
                if found is None or found or has_passed(deadline):
                    return found or []
                ticket.sleep(deadline)
        finally:
            ticket.give_up(self._lock)
            ticket.pass_on(self.has_item, self._file.getters)

    def _spin_for_items(self) -> bool:
        """Spin until there may be an item (True), or for as long as that pays (False)."""
        words, ring, generation = self._words, self._ring, self._generation
        for _ in range(self._spin.looks):
            if ring[RING_TAIL] != ring[RING_HEAD] or words[PUT_GENERATION] != generation:
                self._spin.paid()
                return True
        self._spin.failed()
        return False

    # -- under the lock --------------------------------------------------------------------------------------

    def _discard_all_locked(self) -> int:
        """Discard everything, and return how many tokens to post to those that wait until all is done."""
        self._words[DISCARD_DONE] = self._words[DONE]
        gets, _ = self._file.generations.counts()
        try:
            try:
                self._words[DISCARD_FROM] = gets + 1
                with contextlib.suppress(QueueShutDown):
                    while self._take(1 << 16):
                        pass
            finally:
                self.repair()
        finally:
            # Again, in case an interrupt came: otherwise what others take later would count as discarded.
            self.repair()
        return self._file.done.due(EVERYBODY)

    def _task_done_locked(self, number: int) -> int | None:
        """Count items as done, and return how many tokens to post; None if that is more than were put."""
        _, puts = self._file.generations.counts()
        done = self._words[DONE]
        if number > (puts - done) & COUNT_MASK:
            return None
        self._words[DONE] = done = (done + number) & COUNT_MASK
        return self._file.done.due(EVERYBODY) if done == puts else 0

    def _is_idle(self) -> bool:
        """Whether the queue, which is empty now, has been empty for a whole slice and not been trimmed since.

        This is told by the count of puts, across calls, so that it is also noticed by calls with short
        timeouts.
        """
        count, now = self._ring[RING_TAIL] >> INDEX_BITS, CLOCK.monotonic()
        if count != self._last_count:
            self._last_count, self._last_time, self._is_trimmed = count, now, False
        return not self._is_trimmed and now - self._last_time >= sleepers.SLICE_SECONDS

    def _take(self, limit: int) -> list[Record]:
        """Take up to `limit` of the oldest records; an empty list if the queue is empty.

        Raises:
            QueueShutDown: it is empty, and was shut down before that look.
        """
        words = self._words
        while True:
            generation = words[GET_GENERATION]
            if generation != self._generation:
                self._load(generation)
            ring = self._ring
            # The putters' generation is read before the tail: if it is a later one, this tail is final. The
            # same word tells of a shutdown: what was put before that is before the tail that is read next.
            last = words[PUT_GENERATION]
            is_last = last & GENERATION_MASK == generation
            if not TOTAL_STORE_ORDER:
                full_fence()
            head, tail = ring[RING_HEAD], ring[RING_TAIL]
            if head != tail:
                return self._take_from(head, tail, limit)
            if is_last:
                if last >= SHUT_DOWN:
                    raise QueueShutDown("the queue has been shut down and everything in it has been taken")
                return []
            words[GET_GENERATION] = generation + 1

    def _take_from(self, head: int, tail: int, limit: int) -> list[Record]:
        """Take up to `limit` items from the current ring, which is not empty; a big item is taken alone."""
        ring, mm, base = self._ring, self._mm, self._base
        found: list[Record] = []
        taken = 0
        held: HeldItem | None = None
        if not TOTAL_STORE_ORDER:
            full_fence()
        while head != tail and taken < limit and held is None:
            index = head & INDEX_MASK
            passed = head - index
            size = ring[RING_RECORDS + index]
            if size == WRAP:
                index = 0
                size = ring[RING_RECORDS]
            at = base + (index << 3) + 8
            number = 1
            if size < BIG:
                found.append(mm[at : at + size])
            elif size >= PACK:
                size -= PACK
                some, left = self._open_pack(passed >> INDEX_BITS, index, size, limit - taken)
                found.append(some)
                number = len(some)
                if left:
                    # The head keeps pointing at the pack, and only counts what has been taken of it.
                    head = passed + number * ONE + index
                    break
            elif found:
                # A big item is taken alone.
                break
            elif size >= PACKED:
                size -= PACKED
                # A bytearray, so that the buffers can be written to.
                head_part, *buffers = frame.take_apart(memoryview(bytearray(mm[at : at + size])))
                found.append(BigRecord(head_part, buffers))
                limit = 1
            else:
                size -= BIG
                held = self._hold(mm[at : at + size])
            head = passed + number * ONE + index + ((size + 15) >> 3)
            if head >= COUNT_LIMIT:
                head -= COUNT_LIMIT
            taken += number
        if not TOTAL_STORE_ORDER:
            full_fence()
        if held is None:
            ring[RING_HEAD] = head
            return found
        try:
            ring[RING_HEAD] = head
            # Only now may the region be given back: before the head has moved on, the item is still queued.
            held.taken()
        except BaseException:
            # If an interrupt came after the head was stored. (Nobody else moves it: this thread has the
            # lock.)
            if ring[RING_HEAD] == head:
                held.taken()
            raise
        return [held]

    def _hold(self, record: bytes) -> HeldItem:
        """The big item that a record describes, and that is about to be taken: mark its region as held."""
        regions, number = self._file.regions, big_region(record)
        # Mapped before the item is taken: if the system refuses that, the item stays in the queue.
        mapped = regions.map(number)
        return HeldItem(regions, mapped, number, regions.mark_held(number), big_places(record))

    def _open_pack(self, count: int, index: int, size: int, limit: int) -> tuple[PackSlice, int]:
        """Take up to `limit` items of a pack.

        Args:
            count: the number in the queue of its next item.
            index: where it is in the ring.
            size: its length in bytes.
            limit: how many items to take at most.

        Returns:
            The items, and how many are left in the pack.
        """
        described = self._ring[RING_RECORDS + index + 1]
        first, number = described >> PACK_BITS, described & ((1 << PACK_BITS) - 1)
        pack = self._pack
        if pack is None or pack.first != first:
            at = self._base + (index << 3) + 16
            pack = Pack(first, self._mm[at : at + size - 8])
        start = count - first
        stop = min(start + limit, number)
        self._pack = pack if stop < number else None
        return PackSlice(pack, start, stop), number - stop

    def _load(self, generation: int) -> None:
        """Make the ring of a generation the current one of this process."""
        ring = self._file.generations.view(generation)
        self._ring, self._mm, self._base = ring.words, ring.mm, ring.base
        self._generation = generation


def _number_of(records: list[Record]) -> int:
    """How many items some records contain."""
    return sum(len(one) if type(one) is PackSlice else 1 for one in records)
