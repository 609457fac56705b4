"""The getters' side of a queue, in one process: who takes what when, who waits and who is woken.

`BoundedQueue.get` and its like call it; it returns records, which the queue unpickles outside the lock.
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
    """Takes records; every thread of the process uses this one object."""

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
        # The pack that this process has met last: whoever takes one item after the other unpickles it once.
        self._pack: Pack | None = None
        # How many items had been put when this process found the queue empty last, when it did so first with
        # that count, and whether the queue has been trimmed since.
        self._last_count = -1
        self._last_time = 0.0
        self._is_trimmed = False
        # The value of ROOM_SLEPT at which nobody is known to sleep.
        self._quiet = -1

    def try_get(self) -> Record | None:
        """Take the oldest record now; None when that needs more than the fast path (waiting, the next ring)
        or is impossible.

        The body of `RobustLock.try_acquire` and `release` stands in line here: a call costs as much as the
        copy.
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
        """Take the oldest record, waiting for one if `block`; None when there was none in time.

        Raises:
            QueueShutDown: the queue is shut down and empty.
            ClosedError: this process has closed the queue.
        """
        if block and self._spin_for_items():
            # Somebody has just put an item: the short way is the quickest to it.
            data = self.try_get()
            if data is not None:
                return data
        found = self._wait(1, deadline) if block else self._take_now(1, False, deadline)
        return found[0] if found else None

    def get_many(self, limit: int, block: bool, deadline: float | None) -> list[Record]:
        """Take up to `limit` of the oldest records, waiting for the first if `block`; an empty list when
        there was none in time.

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
        """Throw away everything that is queued, counting it as done."""
        finished = self._lock.run(None, self._discard_all_locked)
        assert finished is not None  # it was waited for as long as it took
        self._file.done.post(finished)

    def repair(self) -> None:
        """Count as done what has been thrown away so far; whoever calls has the lock, or takes it over.

        Nobody else takes items or counts them as done meanwhile, so this may be done again. Nor does anybody
        put any: the queue is shut down. Some may have been counted as done before they were taken, but never
        are more done than were put: `join` would not end.
        """
        words = self._words
        if words[DISCARD_FROM]:
            gets, puts = self._file.generations.counts()
            done = words[DISCARD_DONE]
            thrown_away = (gets + 1 - words[DISCARD_FROM]) & COUNT_MASK
            words[DONE] = (done + min(thrown_away, (puts - done) & COUNT_MASK)) & COUNT_MASK
            words[DISCARD_FROM] = 0

    def wake_putters(self, number: int = EVERYBODY) -> None:
        """Let sleeping putters look again: up to `number`, by default all."""
        # With a bound on bytes, what one getter has freed may be room for several, or for another than the
        # first.
        self._quiet = self._file.putters.wake(EVERYBODY if self._file.max_bytes else number)

    def _tell_of_room(self, taken: list[Record]) -> None:
        if self._words[ROOM_SLEPT] != self._quiet:
            self.wake_putters(_number_of(taken))

    # -- finished work ---------------------------------------------------------------------------------------

    def task_done(self, number: int) -> bool:
        """Count `number` items as finished; False when that is more than were put."""
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

    # -- for those who wait without taking -------------------------------------------------------------------

    def has_item(self) -> bool:
        """Whether `get` would not wait: there is an item, or the queue is shut down."""
        return self.number_to_try() > 0

    def number_to_try(self) -> int:
        """How many that take one item each would not wait now."""
        size = self._file.generations.size()
        return size or (EVERYBODY if self._puts.ring.is_shut_down else 0)

    def progress(self) -> int:
        """A number that changes when something is put or the queue is shut down."""
        _, puts = self._file.generations.counts()
        return -1 if self._puts.ring.is_shut_down else puts

    def wait_for_item(self, deadline: float) -> bool:
        """Wait until `has_item`; False when the deadline passed first."""

        def woken() -> None:
            # Whoever is told of it takes one of them.
            if self._file.generations.size() > 1:
                self._file.getters.pass_on()

        return self._file.items.wait_until(self._lock, self.has_item, deadline, woken)

    # -- waiting ---------------------------------------------------------------------------------------------

    def _take_now(self, limit: int, block: bool, deadline: float | None) -> list[Record] | None:
        """Take what is there, possibly nothing; None when the lock could not be had (see `lock_deadline`)."""
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
                # Not before it is about to sleep: with many getters that comes often enough.
                if self._is_idle() and ticket.expired:
                    # Nobody misses what is given back now.
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
        """Look for an item for a moment; True when there may be one."""
        words, ring, generation = self._words, self._ring, self._generation
        for _ in range(self._spin.looks):
            if ring[RING_TAIL] != ring[RING_HEAD] or words[PUT_GENERATION] != generation:
                self._spin.paid()
                return True
        self._spin.failed()
        return False

    # -- under the lock --------------------------------------------------------------------------------------

    def _discard_all_locked(self) -> int:
        """How many tokens are due to those who wait until all is done; likewise `_task_done_locked`."""
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
            # Left undone by an interrupt, what others take later would count as thrown away.
            self.repair()
        return self._file.done.due(EVERYBODY)

    def _task_done_locked(self, number: int) -> int | None:
        _, puts = self._file.generations.counts()
        done = self._words[DONE]
        if number > (puts - done) & COUNT_MASK:
            return None
        self._words[DONE] = done = (done + number) & COUNT_MASK
        return self._file.done.due(EVERYBODY) if done == puts else 0

    def _is_idle(self) -> bool:
        """Whether the queue, found empty now, has been so for a whole slice, and not been trimmed since.

        Told by the count of puts, over calls: many short timeouts make a slice, a short one alone does not.
        """
        count, now = self._ring[RING_TAIL] >> INDEX_BITS, CLOCK.monotonic()
        if count != self._last_count:
            self._last_count, self._last_time, self._is_trimmed = count, now, False
        return not self._is_trimmed and now - self._last_time >= sleepers.SLICE_SECONDS

    def _take(self, limit: int) -> list[Record]:
        """Take up to `limit` records from where the oldest are; an empty list when the queue is empty.

        Raises:
            QueueShutDown: it is empty, and was shut down before that look.
        """
        words = self._words
        while True:
            generation = words[GET_GENERATION]
            if generation != self._generation:
                self._load(generation)
            ring = self._ring
            # The putters' generation before the tail: once it is a later one, this tail is final.
            # The same word tells of a shutdown: what was put before it lies before the tail that is read
            # next.
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
                    # The head stays at the pack, and counts what has been taken of it.
                    head = passed + number * ONE + index
                    break
            elif found:
                # A big item is taken alone.
                break
            elif size >= PACKED:
                size -= PACKED
                # A copy that may be written to.
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
            # Only now may the region be given back: until the head has moved on, the item is the first of the
            # queue.
            held.is_taken()
        except BaseException:
            # An interrupt came in between. (Nobody else moves the head: this thread has the lock.)
            if ring[RING_HEAD] == head:
                held.is_taken()
            raise
        return [held]

    def _hold(self, record: bytes) -> HeldItem:
        """The big item that a record describes, which is about to be taken."""
        regions, number = self._file.regions, big_region(record)
        # Before the item is taken: a map that the system refuses leaves it where it is.
        mapped = regions.map(number)
        return HeldItem(regions, mapped, number, regions.mark_held(number), big_places(record))

    def _open_pack(self, count: int, index: int, size: int, limit: int) -> tuple[PackSlice, int]:
        """Up to `limit` items of the pack that lies at `index`, the next of which is number `count` of the
        queue; and how many are left.
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
        ring = self._file.generations.view(generation)
        self._ring, self._mm, self._base = ring.words, ring.mm, ring.base
        self._generation = generation


def _number_of(records: list[Record]) -> int:
    """How many items these are."""
    return sum(len(one) if type(one) is PackSlice else 1 for one in records)
