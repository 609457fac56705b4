"""The putters' side of a queue, in one process: who puts when, who waits and who is woken.

What is done under the lock is done by `put_ring`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.locks.robust_lock import COMPLETED, PATIENCE_SECONDS
from mpkit._shm.locks.sleepers import EVERYBODY, Ticket
from mpkit._shm.locks.spin import SpinBudget
from mpkit._shm.queues import records
from mpkit._shm.queues.layout import (
    GET_GENERATION,
    ITEMS_SLEPT,
    PUT_GENERATION,
    RING_HEAD,
    RING_RECORDS,
    RING_TAIL,
)
from mpkit._shm.queues.put_ring import FULL, PutRing
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.records import BIG, PACKED
from mpkit._shm.queues.region_uses import Writing
from mpkit._shm.queues.ring import INDEX_MASK, ONE
from mpkit._wire import frame
from mpkit.errors import ClosedError, QueueShutDown, SharedMemoryExhausted

WrittenItem = NamedTuple(
    "WrittenItem", [("record", bytes), ("flag", int), ("region", int), ("writing", Writing | None)]
)
"""A big item that lies in its region and has not been put yet.

The flag is `BIG` if the record describes the region; `PACKED` if it holds everything, because there was no
region. The last one is what keeps the region from being taken for one that was given up.
"""


class PutSide:
    """Puts records; every thread of the process uses this one object."""

    __slots__ = ("_file", "_lock", "_quiet", "_spin", "_words", "ring")

    def __init__(self, file: QueueFile) -> None:
        self._file = file
        self._lock = file.put_lock
        self._words = file.words
        self._spin = SpinBudget()
        # The value of ITEMS_SLEPT at which nobody is known to sleep.
        self._quiet = -1
        self.ring: PutRing = PutRing(file)

    def try_put(self, data: bytes) -> bool:
        """Put one record now; False when that needs more than the fast path: waiting, growing, or an error to
        raise.

        The body of `RobustLock.try_acquire` and `release` stands in line here: a call costs as much as the
        copy.
        """
        lock = self._lock
        try:
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
                ring = self.ring
                if words[PUT_GENERATION] == ring.generation:
                    ring_words = ring.words
                    size = len(data)
                    length = (size + 15) >> 3
                    tail = ring_words[RING_TAIL]
                    if tail != ring.tail or length > ring.room or ring.left <= 0:
                        tail = ring.tail_for(tail, length, length << 3)
                        if ring.left <= 0:
                            tail = FULL
                    if tail >= 0:
                        index = tail & INDEX_MASK
                        ring_words[RING_RECORDS + index] = size
                        at = ring.base + (index << 3) + 8
                        ring.mm[at : at + size] = data
                        tail += ONE + length
                        ring.room -= length
                        ring.left -= 1
                        ring.tail = tail
                        if not TOTAL_STORE_ORDER:
                            full_fence()
                        ring_words[RING_TAIL] = tail
                        done = True
                lock.permit_release()
                lock.value = words[lock.at] = value + COMPLETED
                lock.local_release()
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
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
        done = self._lock.run(lock_deadline(block, deadline), self.ring.put, data, flag)
        if done:
            self.wake_getters(1)
        if done is not False or not block or has_passed(deadline):
            return bool(done)
        self._spin_for_room()
        ticket = Ticket(self._file.room, self._spin)

        def put_or_take_ticket() -> bool:
            done = self.ring.put(data, flag)
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

    def put_now(self, data: bytes, flag: int) -> bool | None:
        """`put` that waits neither for room nor for a process that was stopped in the middle of an operation:
        False when there is no room, None when the lock could not be had.
        """
        done = self._lock.run(lock_deadline(False, None), self.ring.put, data, flag)
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
                went = self._lock.run(lock_deadline(block, deadline), self.ring.put_run, items, done)
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
            RuntimeError, QueueShutDown, ClosedError: as `put`.
        """
        done = self._lock.run(lock_deadline(block, deadline), self.ring.put_pack, data, number)
        if done:
            self.wake_getters(number)
        return done

    def shut_down(self) -> None:
        """Let nobody put any more."""
        self._lock.run(None, self.ring.refuse_further_puts)
        # Only now: the release was the barrier between our word and the look at who sleeps.
        self.wake_getters(EVERYBODY)

    def wake_getters(self, number: int) -> None:
        """Let up to `number` sleeping getters look again."""
        if self._words[ITEMS_SLEPT] != self._quiet:
            self._quiet = self._file.getters.wake(number)

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
        needed = sum(length for _, length in places) if if_room else None
        region = self._lock.run(
            lock_deadline(block, deadline), self.ring.claim, size, serial, if_room_for=needed
        )
        if region is None:
            return None
        if region < 0:
            # Getters and the queue itself keep so many items that regions run short: this one goes into the
            # ring.
            return WrittenItem(frame.in_one_piece(head, buffers), PACKED, 0, None)
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
            self._lock.run(CLOCK.monotonic() + PATIENCE_SECONDS, self.ring.repair)

    # -- for those who wait without putting ------------------------------------------------------------------

    def progress(self) -> int:
        """A number that changes when room is made or the queue is shut down."""
        gets, _ = self._file.generations.counts()
        return -1 if self.ring.is_shut_down else gets

    def room_to_try(self) -> tuple[int, int]:
        """How many that put one item each had better try now, and what their items may weigh together."""
        file = self._file
        number, weight = EVERYBODY, sys.maxsize
        if not self.ring.is_shut_down:
            if file.maxsize:
                number = file.maxsize - file.generations.size()
            if file.max_bytes:
                weight = file.max_bytes - self.ring.used_bytes()
        return number, weight

    def wait_for_progress(self, seen: int, deadline: float) -> bool:
        """Wait until `progress` is no longer `seen`; False when the deadline passed first."""

        def has_changed() -> bool:
            return self.progress() != seen

        def woken() -> None:
            # Whoever is told of it takes one place, for which others are not woken as well: threads would be
            # quicker each time. (Passed on without any progress, a token too many would go round for ever.)
            if has_changed() and self.room_to_try()[0] > 1:
                self.pass_on()

        return self._file.room.wait_until(self._lock, has_changed, deadline, woken)

    def pass_on(self) -> None:
        """Wake one more who waits for room, if there is some."""
        if self._has_room():
            self._file.putters.pass_on()

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
                self.ring.trim()
            return taken
        finally:
            try:
                lock.unwind()
            finally:
                lock.unwind()

    # -- waiting ---------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether `maxsize` lets more in; False with `max_bytes`, where everybody is woken anyway."""
        file = self._file
        return not file.max_bytes and (not file.maxsize or file.generations.size() < file.maxsize)

    def _spin_for_room(self) -> None:
        """Look for a getter's progress for a moment."""
        words, ring = self._words, self.ring.words
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
    soon = CLOCK.monotonic() + PATIENCE_SECONDS
    return soon if not block or deadline is None else max(deadline, soon)
