"""The putters' side of a queue, in one process: putting items, waiting for room, and waking getters.

The steps under the putters' lock are in `put_ring`.
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
"""A big item that has been copied into a region, and has not been put yet.

The flag is `BIG` if the record describes the region; `PACKED` if the record contains everything, because
there was no region. As long as `writing` exists, the region is not reclaimed.
"""


class PutSide:
    """Puts records; all threads of the process share this object."""

    __slots__ = ("_file", "_lock", "_quiet", "_spin", "_words", "ring")

    def __init__(self, file: QueueFile) -> None:
        self._file = file
        self._lock = file.put_lock
        self._words = file.words
        self._spin = SpinBudget()
        # The value of ITEMS_SLEPT at which it is known that nobody sleeps.
        self._quiet = -1
        self.ring: PutRing = PutRing(file)

    def try_put(self, data: bytes) -> bool:
        """Put one record now, on the fast path; False if it needs the slow path (waiting, growing, an error).

        The bodies of `RobustLock.try_acquire` and `release` are repeated in line here, because a call costs
        as much as the copy.
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
        """Put one record; if `block`, wait for room until `deadline`. False if there was none in time.

        Args:
            data: its content.
            flag: 0 for a pickle, else one of the flags in `records`.
            block: whether to wait.
            deadline: until when to wait; None: no limit.

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
        """Put one record, without waiting for room, and only for a moment for the lock.

        Returns:
            False: there is no room. None: the lock was not to be had, because a process is stopped in the
                middle of an operation.

        Raises:
            QueueShutDown, SharedMemoryExhausted, ClosedError: as `put`.
        """
        done = self._lock.run(lock_deadline(False, None), self.ring.put, data, flag)
        if done:
            self.wake_getters(1)
        return done

    def put_many(self, items: Sequence[bytes], block: bool, deadline: float | None) -> int:
        """Put records in order, as room allows; return how many went in.

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
                    # The first one needs more than room in this ring: put it like a single item.
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
        """Put `number` items as one pack, all or none. Never waits for room.

        Args:
            data: their pickle.
            number: how many they are.
            block: `block` and `deadline` concern the lock: see `lock_deadline`.
            deadline: see `block`.

        Returns:
            False: the bounds do not let all of them in, or the ring has no room. None: the lock was not to be
                had in time.

        Raises:
            RuntimeError, QueueShutDown, ClosedError: as `put`.
        """
        done = self._lock.run(lock_deadline(block, deadline), self.ring.put_pack, data, number)
        if done:
            self.wake_getters(number)
        return done

    def shut_down(self) -> None:
        """Shut the queue down. Blocks until the lock is free."""
        self._lock.run(None, self.ring.refuse_further_puts)
        # After the release of the lock, which is the barrier between storing the bit and looking for
        # sleepers.
        self.wake_getters(EVERYBODY)

    def wake_getters(self, number: int) -> None:
        """Wake up to `number` sleeping getters."""
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
        """Copy a big item into a region. It still has to be `put`, or dropped by `drop_big`.

        Args:
            head: the pickle.
            buffers: its out-of-band buffers.
            block: `block` and `deadline` concern the lock: see `lock_deadline`.
            deadline: see `block`.
            if_room: do nothing if the queue is full now: for callers that do not wait for room, so that
                nothing is copied in vain. (When the item is put, the queue may be full nevertheless.)

        Returns:
            The item; None if the lock was not to be had in time, or because of `if_room`.

        Raises:
            QueueShutDown: the queue has been shut down.
            SharedMemoryExhausted: there is no memory for it.
            ClosedError: this process has closed the queue.
        """
        places, size = records.lay_out(head, buffers)
        # Before the region is claimed, so that it is never taken for one that was given up.
        writing = Writing()
        serial = writing.serial
        needed = sum(length for _, length in places) if if_room else None
        region = self._lock.run(
            lock_deadline(block, deadline), self.ring.claim, size, serial, if_room_for=needed
        )
        if region is None:
            return None
        if region < 0:
            # Getters and the queue itself keep so many items that no region is left: put it into the ring.
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
        """Free the region of an item after a `put` that failed, unless the item has been published."""
        # While it is WRITING, only this process changes its state, so this needs no lock.
        if item.writing is not None:
            self._file.regions.free_unpublished(item.region, item.writing.serial)
        with contextlib.suppress(ClosedError):
            self._lock.run(CLOCK.monotonic() + PATIENCE_SECONDS, self.ring.repair)

    # -- for callers that wait without putting ---------------------------------------------------------------

    def progress(self) -> int:
        """A number that changes when room is made or the queue is shut down."""
        gets, _ = self._file.generations.counts()
        return -1 if self.ring.is_shut_down else gets

    def room_to_try(self) -> tuple[int, int]:
        """How many calls of `put` can succeed now, and how much their items may weigh together.

        (If the queue is shut down, all of them should try, and get the error.)
        """
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
            # The coroutine that is told takes one place, and no other sleeper is woken for that one: threads
            # would always be quicker. (If it was passed on without progress, a surplus token would go round
            # for ever.)
            if has_changed() and self.room_to_try()[0] > 1:
                self.pass_on()

        return self._file.room.wait_until(self._lock, has_changed, deadline, woken)

    def pass_on(self) -> None:
        """Wake one more sleeping putter, if there is room for another item."""
        if self._has_room():
            self._file.putters.pass_on()

    def trim(self) -> bool:
        """Give back memory to the system that an empty queue does not need. The caller has the getters' lock.

        Returns:
            Whether the putters' lock was free. It is not waited for, because that would keep other getters
            out, and because a putter that has it shows that the queue is not idle.
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
        """Whether `maxsize` lets another item in; False with `max_bytes`, where a get wakes all sleepers."""
        file = self._file
        return not file.max_bytes and (not file.maxsize or file.generations.size() < file.maxsize)

    def _spin_for_room(self) -> None:
        """Spin until a getter has made progress, or for as long as that pays."""
        words, ring = self._words, self.ring.words
        head, generation = ring[RING_HEAD], words[GET_GENERATION]
        for _ in range(self._spin.looks):
            if ring[RING_HEAD] != head or words[GET_GENERATION] != generation:
                self._spin.paid()
                return
        self._spin.failed()


def lock_deadline(block: bool, deadline: float | None) -> float | None:
    """Until when a call waits for the lock of its side.

    The lock is held for microseconds. If another process happens to have it, this must not look as if the
    queue were empty or full, so even a call that must not block waits for it for `PATIENCE_SECONDS`.

    Args:
        block: whether the call waits for room or for an item.
        deadline: until when it does; None: no limit.
    """
    if block and deadline is None:
        return None
    soon = CLOCK.monotonic() + PATIENCE_SECONDS
    return soon if not block or deadline is None else max(deadline, soon)
