"""Regressions that can be tested without child processes. For others, see
`tests/integration/test_shm_regressions.py`.

A docstring says what would happen if the test failed, unless its name does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import mmap
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._platform.files.file_maps import map_file
from mpkit._platform.files.filelock import FileLock
from mpkit._platform.threads.interruptible_lock import InterruptibleLock, is_free
from mpkit._shm.locks import robust_lock, shared_file, shared_object, sleepers, users
from mpkit._shm.locks.counter_file import VALUE, CounterFile
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit._shm.memory import names
from mpkit._shm.memory.rows import Rows
from mpkit._shm.queues import async_waiters, get_side, held_items, outside, put_side
from mpkit._shm.queues.layout import DISCARD_FROM, REGIONS, RING_HEAD, RING_RECORDS, RING_TAIL
from mpkit._shm.queues.open_queue import OpenQueue
from mpkit._shm.queues.put_side import PutSide
from mpkit._shm.queues.records import BIG
from mpkit._shm.queues.region_supply import RegionSupply
from mpkit._shm.queues.regions import ENTRY_WORDS, FREE, WRITING, Regions
from mpkit._shm.queues.ring import COUNT_LIMIT, ONE
from mpkit.errors import ClosedError, HandleLost, QueueEmpty, QueueFull, QueueShutDown, SharedMemoryExhausted
from tests.helpers.shortage import spare_descriptors
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until
from tests.unit.shm.others import Call, Holder, living_stranger, permits


def opened(handle: BoundedQueue[Any]) -> OpenQueue:
    return handle._opened()


@contextmanager
def waiting_behind_a_stopped_holder(
    monkeypatch: pytest.MonkeyPatch, shared: CounterFile | OpenQueue, number: int, call: Callable[[], object]
) -> Iterator[tuple[Holder, Call[object]]]:
    """Run `call` in a thread until it waits for lock `number`, which a stopped process holds."""
    monkeypatch.setattr(robust_lock, "SHUT_SECONDS", 0.02)
    lock = shared.locks[number]
    lock.acquire(None)
    lock.release()
    holder = Holder(shared, number, living_stranger())
    row = lock.at
    words = shared.words
    thread = Call(call)
    wait_until(lambda: words[row] & robust_lock.INSIDE, "the thread waits for the lock")
    yield holder, thread
    thread.join()
    assert holder.can_acquire(), "the permit is lost"


def test_nothing_is_changed_without_the_lock_when_another_thread_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = LockedCounter(5)
    shared = counter._opened()
    signed = shared.signed
    with waiting_behind_a_stopped_holder(monkeypatch, shared, 0, lambda: counter.reset(1000)) as (
        holder,
        call,
    ):
        counter.close()
        call.join()
        assert isinstance(call.error, ClosedError)
        holder.release()
    assert signed[VALUE] == 5


def test_a_permit_that_comes_after_the_closing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_lock, "SLICE_SECONDS", PATIENCE)
    counter = LockedCounter(5)
    shared = counter._opened()
    signed = shared.signed
    with waiting_behind_a_stopped_holder(monkeypatch, shared, 0, lambda: counter.reset(7)) as (holder, call):
        counter.close()
        holder.release()
        call.join()
        assert isinstance(call.error, ClosedError)
    assert signed[VALUE] == 5


def test_a_process_with_a_thread_inside_keeps_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread may still get the permit. Without a row, nobody would know that it holds it."""
    counter = LockedCounter(5)
    shared = counter._opened()
    words = shared.words
    with waiting_behind_a_stopped_holder(monkeypatch, shared, 0, lambda: counter.reset(7)) as (holder, _):
        row = shared._row
        pid = words[row]
        counter.close()
        assert pid
        assert words[row] == pid
        holder.release()


def test_a_getter_that_waits_for_the_lock_learns_of_the_closing(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting_behind_a_stopped_holder(monkeypatch, opened(queue), 1, queue.get) as (holder, call):
        queue.close()
        call.join()
        assert isinstance(call.error, ClosedError)
        holder.release()


@pytest.mark.parametrize(
    "number, use",
    [
        (0, lambda queue: queue.put(2, timeout=PATIENCE)),
        (0, lambda queue: queue.put(bytes(100_000), timeout=PATIENCE)),
        (0, lambda queue: queue.put_many([2, 3], timeout=PATIENCE) or pytest.fail("none went in")),
        (1, lambda queue: queue.get(timeout=PATIENCE)),
        (1, lambda queue: queue.get_many(timeout=PATIENCE)),
    ],
    ids=["put", "put big", "put_many", "get", "get_many"],
)
def test_a_stopped_process_is_waited_for_until_the_timeout(
    queue: BoundedQueue[Any],
    number: int,
    use: Callable[[BoundedQueue[Any]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not just for the moment that a call waits which must not block."""
    queue.put(1)
    monkeypatch.setattr(put_side, "PATIENCE_SECONDS", 0.0)
    with waiting_behind_a_stopped_holder(monkeypatch, opened(queue), number, lambda: use(queue)) as (
        holder,
        call,
    ):
        holder.release()
        call.join()
        assert call.error is None


def test_a_timeout_also_holds_while_another_thread_takes_part_for_the_first_time(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread waits for as long as a process is stopped which is doing the same."""
    monkeypatch.setattr("mpkit._shm.queues.put_side.PATIENCE_SECONDS", 0.0)
    shared = opened(queue)
    stopped = FileLock.try_acquire(shared.segment.fd)
    assert stopped is not None
    call = Call(queue.get)
    wait_until(lambda: not is_free(shared._joining_or_closing.raw), "the other thread is there")
    with pytest.raises(QueueEmpty):
        queue.get(timeout=0.01)
    with pytest.raises(QueueFull):
        queue.put(1, timeout=0.01)
    stopped.release()
    queue.put(1)
    call.join()
    assert call.value == 1


def test_a_run_of_puts_near_the_end_of_the_counts(queue: BoundedQueue[Any]) -> None:
    """Otherwise a getter would read old bytes behind the last record as a record."""
    shared = opened(queue)
    ring = shared.generations.view(0)
    ring.words[RING_TAIL] = ring.words[RING_HEAD] = (COUNT_LIMIT - ONE) | (ring.capacity - 1)
    shared.puts.ring._load(0)
    stale = pickle.dumps("an old item, taken long ago", 5)
    ring.mm[ring.base + 8 : ring.base + 8 + len(stale)] = stale
    ring.words[RING_RECORDS] = len(stale)
    assert shared.put_lock.run(None, shared.puts.ring.put_run, [b"x" * 40] * 5, 0) == 0
    assert queue.qsize() == 0
    assert shared.gets.get(False, None) is None
    assert queue.put_many(range(5)) == 5
    assert queue.get_many() == list(range(5))


def test_an_item_survives_a_map_that_is_refused(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(bytes(100_000))

    def refuse(_self: Regions, _number: int) -> None:
        raise SharedMemoryExhausted("no more maps")

    with monkeypatch.context() as patch:
        patch.setattr(Regions, "map", refuse)
        with pytest.raises(SharedMemoryExhausted):
            queue.get()
    assert queue.qsize() == 1
    assert queue.get() == bytes(100_000)


def test_a_put_that_failed_after_publication_frees_no_region_of_another(queue: BoundedQueue[Any]) -> None:
    """Ctrl-C comes just after the item is published. By the time the put cleans up, the item may have been
    taken and its region claimed by another putter, who must not lose it.
    """
    shared = opened(queue)
    item = shared.puts.write_big(b"head", [memoryview(bytes(100_000))], True, None)
    assert item is not None
    assert item.flag == BIG
    assert shared.puts.put(item.record, BIG, True, None)
    assert shared.gets.get(True, None) is not None
    gc.collect()
    at = REGIONS + item.region * ENTRY_WORDS
    assert shared.words[at] == FREE
    other = living_stranger()
    shared.words[at + 4], shared.words[at + 5], shared.words[at] = other.pid, other.started, WRITING
    shared.puts.drop_big(item)
    assert shared.words[at] == WRITING
    # The same if this process itself claimed the region again, for its next item.
    shared.words[at] = FREE
    again = shared.puts.write_big(b"head", [memoryview(bytes(100_000))], True, None)
    assert again is not None
    assert again.region == item.region
    shared.puts.drop_big(item)
    assert shared.words[at] == WRITING
    shared.puts.drop_big(again)
    assert shared.words[at] == FREE


def test_taking_one_big_item_wakes_all_putters_that_then_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Long slices, so that no putter goes on just because its slice ends.
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", PATIENCE)
    with BoundedQueue[bytes](max_bytes=100_000) as queue:
        queue.put(bytes(88_000))
        calls = [Call(lambda: queue.put(bytes(20_000))) for _ in range(3)]
        wait_until(lambda: queue.statistics().waiting_putters == 3, "three putters wait")
        queue.get()
        started = time.monotonic()
        for call in calls:
            call.join()
        assert time.monotonic() - started < PATIENCE / 2
        assert queue.qsize() == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ctrl_c_as_the_file_lock_is_taken_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FileLock.try_acquire

    def interrupted(fd: int) -> FileLock | None:
        lock = real(fd)
        assert lock is not None
        raise KeyboardInterrupt  # after the system call and before the assignment

    with closing(LockedCounter()) as counter:
        rows = counter._opened().rows
        with monkeypatch.context() as patch:
            patch.setattr(FileLock, "try_acquire", interrupted)
            with pytest.raises(KeyboardInterrupt), rows.exclusive(None):
                pass
        with rows.exclusive(time.monotonic()) as alone:
            assert alone


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, closing any descriptor of the file releases the lock"
)
def test_checking_whether_a_name_is_in_use_does_not_release_the_file_lock() -> None:
    with closing(LockedCounter()) as counter:
        shared = counter._opened()
        rows = Rows(shared.segment, start=0, capacity=0, used_at=0)
        with shared.rows.exclusive(None) as alone:
            assert alone
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(users, "open_here", {})  # as if another program checked
                assert not users.in_use_elsewhere(shared.name)
            with rows.exclusive(time.monotonic()) as also:
                assert not also


def test_what_is_put_before_the_shutdown_is_found(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A getter finds nothing. Then another process puts the last item and shuts the queue down. The getter
    must look again before it says that the queue is shut down and empty.
    """
    queue.put(0)
    queue.get()
    puts = opened(queue).puts
    take = get_side.GetSide._take
    rounds: list[int] = []

    def taken(self: get_side.GetSide, limit: int) -> list[get_side.Record]:
        found = take(self, limit)
        if not rounds:
            rounds.append(1)
            assert puts.try_put(pickle.dumps("the last item"))
            puts.shut_down()
        return found

    monkeypatch.setattr(get_side.GetSide, "_take", taken)
    assert queue.get(timeout=PATIENCE) == "the last item"


def test_the_lock_between_threads_is_published_last_at_the_first_use(queue: BoundedQueue[Any]) -> None:
    """Two threads use an object for the first time at once. If the second one found a half-initialised lock,
    it would write to word 0 of the file.
    """
    shared = opened(queue)
    magic = shared.words[0]
    reached, go_on = threading.Event(), threading.Event()

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        return local if frame.f_code is RobustLock.open.__code__ else None

    def local(frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and frame.f_locals["self"]._local is not None and not reached.is_set():
            reached.set()
            go_on.wait(PATIENCE)
        return local

    def first() -> None:
        sys.settrace(trace)
        try:
            queue.put(1)
        finally:
            sys.settrace(None)

    one = Call(first)
    assert reached.wait(PATIENCE)
    two = Call(lambda: queue.put(2))
    try:
        two.join()
    finally:
        go_on.set()
    one.join()
    assert shared.words[0] == magic
    assert queue.get_many() == [2, 1]


def test_tickets_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each round a waker comes just after a ticket was taken, so that nobody waits for its token."""
    with closing(LockedCounter()) as counter:
        shared = counter._opened()
        group = shared._sleepers
        run = RobustLock.run
        fired = False

        def wake_after(self: RobustLock, *args: Any) -> object:
            nonlocal fired
            result = run(self, *args)
            if not fired:
                fired = True
                counter.add()
            return result

        monkeypatch.setattr(RobustLock, "run", wake_after)
        for target in range(1, 21):
            fired = False
            assert counter.wait_for(target)
        surplus = permits(group.tokens) + group.words[group.slept_at] - group.words[group.posted_at]
        assert surplus <= 1


def test_what_a_woken_getter_has_taken_is_not_lost(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Call(queue.get)
    items = opened(queue).items
    wait_until(lambda: items.waiting() == 1, "the getter sleeps")
    here = threading.current_thread()
    real = get_side.GetSide.has_item

    def has_item(self: get_side.GetSide) -> bool:
        if threading.current_thread() is not here:
            raise SharedMemoryExhausted("the next ring cannot be mapped")
        return real(self)

    monkeypatch.setattr(get_side.GetSide, "has_item", has_item)
    queue.put("the only item")
    waiting.join()
    assert (waiting.value, waiting.error) == ("the only item", None)


def test_a_handle_in_transit_counts_even_if_another_was_unpickled_many_times() -> None:
    counter = LockedCounter(5)
    name = counter._name
    everybody = pickle.dumps(counter)
    for _ in range(3):
        pickle.loads(everybody)
    under_way = pickle.dumps(counter)
    counter.close()
    assert name in names.owned_names(), "a handle is still in transit"
    arrived = pickle.loads(under_way)
    assert arrived.value == 5
    arrived.close()


def test_a_handle_that_has_arrived_is_no_longer_in_transit() -> None:
    counter = arrived = LockedCounter()
    for _ in range(shared_file.NUMBERS + 2):
        arrived = pickle.loads(pickle.dumps(counter))
    assert not counter._opened()._may_be_in_use()
    kept = [pickle.dumps(counter) for _ in range(2)]
    assert counter._opened()._may_be_in_use()
    for handle in kept:
        pickle.loads(handle)
    assert not counter._opened()._may_be_in_use()
    arrived.close()


def test_unpickling_a_handle_twice_does_not_count_as_the_arrival_of_another_one() -> None:
    counter = LockedCounter()
    first = pickle.dumps(counter)
    pickle.loads(first)
    for _ in range(shared_file.NUMBERS - 1):
        pickle.loads(pickle.dumps(counter))
    under_way = pickle.dumps(counter)
    pickle.loads(first)
    assert counter._opened()._may_be_in_use()
    pickle.loads(under_way)
    assert not counter._opened()._may_be_in_use()
    counter.close()


@needs_a_trace_that_raises
def test_ctrl_c_at_the_end_of_a_compound_update_leaves_nothing_locked() -> None:
    # From step 1: step 0 is the call of `__exit__` itself, where no `try` has begun yet.
    for step in itertools.count(1):
        with closing(LockedCounter(1)) as counter:
            counter.__enter__().value = 2
            interrupted = interrupt_at(step, lambda: counter.__exit__(None, None, None))
            Call(lambda: counter.add(1)).join()
            assert counter.add(1) == 4
        if not interrupted:
            break
    assert step > 3


def test_an_item_that_has_been_taken_is_not_lost_when_another_thread_closes_the_queue() -> None:
    with BoundedQueue[bytes]() as queue:
        queue.put(b"x" * 100_000)
        queue.qsize()
        record = queue._gets.get(True, None)
        assert isinstance(record, held_items.HeldItem)
        queue.close()
        assert bytes(record.open().head)[-200:-100] == b"x" * 100
        with pytest.raises(ClosedError):
            queue._shared.regions.map(9)  # type: ignore[union-attr]


def assert_no_region_is_held(queue: BoundedQueue[bytearray]) -> None:
    # If a destructor was interrupted, the destructor of the next item cleans up.
    queue.put(bytearray(100_000))
    assert queue.get() == bytearray(100_000)
    assert queue._opened().regions.with_getters() == 0


@needs_a_trace_that_raises
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_short_collections")
def test_ctrl_c_while_a_big_item_is_opened_frees_its_memory_once() -> None:
    with BoundedQueue[bytearray]() as queue:
        for step in itertools.count():
            queue.put(bytearray(100_000))
            item = queue._gets.get(True, None)
            assert isinstance(item, held_items.HeldItem)
            interrupted = interrupt_at(step, item.open)
            del item
            gc.collect()
            assert_no_region_is_held(queue)
            if not interrupted:
                break
        assert step > 10


@needs_a_trace_that_raises
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_short_collections")
def test_ctrl_c_just_when_a_big_item_has_been_taken_frees_its_memory() -> None:
    with BoundedQueue[bytearray]() as queue:
        for step in itertools.count():
            queue.put(bytearray(100_000))
            interrupted = interrupt_at(step, queue.get)
            gc.collect()
            while not queue.empty():
                assert queue.get() == bytearray(100_000)
            assert_no_region_is_held(queue)
            if not interrupted:
                break
        assert step > 50


def test_an_item_is_given_back_once() -> None:
    with BoundedQueue[bytearray]() as queue:
        regions = queue._opened().regions
        for _ in range(2):
            queue.put(bytearray(100_000))
        first = queue._gets.get(True, None)
        assert isinstance(first, held_items.HeldItem)
        number = first._number
        words = queue._opened().words
        at = REGIONS + number * ENTRY_WORDS
        first._give_back()
        assert words[at] == FREE
        # By now another process may use it.
        words[at] = WRITING
        first._number = number
        first._give_back()
        assert words[at] == WRITING
        words[at] = FREE
        assert regions.with_getters() == 0


def test_a_thread_that_cannot_be_started_fails_one_aget_and_blocks_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> int:
        with closing(BoundedQueue[int]()) as queue:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="start new thread"):
                    await queue.aget()
            later = asyncio.create_task(queue.aget())
            await asyncio.sleep(0)
            queue.put(7)
            return await asyncio.wait_for(later, PATIENCE)

    assert asyncio.run(main()) == 7


def test_an_error_of_the_waiting_thread_is_raised_by_the_coroutine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: object) -> None:
        raise OSError("broken")

    async def main() -> int:
        with closing(BoundedQueue[int]()) as queue:
            with monkeypatch.context() as patch:
                patch.setattr(get_side.GetSide, "wait_for_item", fail)
                with pytest.raises(OSError, match="broken"):
                    await asyncio.wait_for(queue.aget(), PATIENCE)
            queue.put(7)
            return await asyncio.wait_for(queue.aget(), PATIENCE)

    assert asyncio.run(main()) == 7


@pytest.mark.parametrize("side", [get_side.GetSide, put_side.PutSide])
def test_an_operation_succeeds_even_if_another_thread_then_closes_the_queue(
    side: type[get_side.GetSide | put_side.PutSide], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The close comes after the operation and before the look for sleepers, which can map no ring any
    more.
    """
    asleep = threading.Event()
    sleep = sleepers.Sleepers.sleep

    def seen(self: sleepers.Sleepers, deadline: float | None) -> bool:
        asleep.set()
        return sleep(self, deadline)

    monkeypatch.setattr(sleepers.Sleepers, "sleep", seen)
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", PATIENCE)
    putting = side is put_side.PutSide
    number = 5000
    with BoundedQueue[Any](number if putting else 0) as queue:
        shared = opened(queue)
        for item in range(number):
            queue.put(str(item) * 10)
        assert shared.generations.view(0).capacity < number
        if not putting:
            for _ in range(number):
                queue.get()
        call = Call((lambda: queue.put("one more")) if putting else queue.get)
        assert asleep.wait(PATIENCE)
        look = "_has_room" if putting else "has_item"
        real = getattr(side, look)
        closed: list[bool] = []

        def has_more(self: Any) -> Any:
            Call(queue.close).join()
            closed.append(shared.closed)
            return real(self)

        monkeypatch.setattr(side, look, has_more)
        if putting:
            queue.get()
        else:
            queue.put("precious")
        call.join()
        assert closed == [True]
        assert call.error is None
        assert call.value == (None if putting else "precious")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_a_name_counts_as_in_use_if_that_cannot_be_checked(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process without free descriptors would remove names of queues that others have open."""

    def refuse(path: str, *_args: object) -> int:
        raise OSError(code, os.strerror(code), path)

    with closing(LockedCounter()) as counter:
        name = counter._name
        monkeypatch.setattr(users, "open_here", {})
        assert not users.in_use_elsewhere(name)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            assert users.in_use_elsewhere(name)
    assert not users.in_use_elsewhere(name), "the counter is closed"


def is_taken(lock: InterruptibleLock) -> bool:
    if lock.acquire(False):
        lock.release()
        return False
    return True


@pytest.mark.parametrize("make", [BoundedQueue[int], LockedCounter, Lock])
def test_closing_does_not_wait_for_a_thread_that_a_stopped_process_holds_up(
    make: Callable[[], BoundedQueue[int] | LockedCounter | Lock],
) -> None:
    with closing(make()) as handle:
        shared = handle._opened()
        use = handle.get if isinstance(handle, BoundedQueue) else getattr(handle, "add", None)
        stopped = FileLock.try_acquire(shared.segment.fd)
        assert stopped is not None
        try:
            joining = Call(use or handle.acquire)  # type: ignore[union-attr]
            wait_until(lambda: is_taken(shared._joining_or_closing), "the thread joins")
            shut = Call(handle.close)
            shut.join()
            assert shut.error is None
            joining.join()
            assert isinstance(joining.error, ClosedError)
        finally:
            stopped.release()


def test_closing_has_one_time_limit_for_all_threads_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def begin_to_shut(_lock: RobustLock, deadline: float) -> bool:
        asked.append(deadline)
        return True

    monkeypatch.setattr(RobustLock, "begin_to_shut", begin_to_shut)
    queue = BoundedQueue[int]()
    queue.close()
    assert len(asked) == 2
    assert len(set(asked)) == 1


def test_ctrl_c_during_an_immediate_shutdown_leaves_the_counts_right(
    queue: BoundedQueue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise discarded items would never count as done, and `join` would wait for ever."""
    real = get_side.GetSide.repair
    rounds: list[int] = []

    def repair(self: get_side.GetSide) -> None:
        rounds.append(1)
        if len(rounds) == 1:
            raise KeyboardInterrupt
        real(self)

    for number in range(5):
        queue.put(number)
    queue.get()
    with monkeypatch.context() as patch:
        patch.setattr(get_side.GetSide, "repair", repair)
        with pytest.raises(KeyboardInterrupt):
            queue.shutdown(immediate=True)
    assert rounds
    assert not opened(queue).words[DISCARD_FROM]
    assert queue.qsize() == 0
    assert not queue.join(0)
    queue.task_done()
    assert queue.join(0)


def test_a_lost_handle_raises_a_new_exception_each_time() -> None:
    counter = LockedCounter()
    data = pickle.dumps(counter)
    counter.close()
    names.remove(counter._name)
    lost: LockedCounter = pickle.loads(data)
    seen: set[tuple[str, str, int]] = set()
    for _ in range(3):
        with pytest.raises(HandleLost) as caught:
            lost.add()
        error = caught.value
        seen.add((str(error), repr(error.__cause__), len(traceback.extract_tb(error.__traceback__))))
    assert len(seen) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors (Linux)")
def test_a_handle_that_could_not_be_opened_says_why_without_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be what was lacking when it arrived. Importing the module `copy` then failed here."""
    lost = LockedCounter.__new__(LockedCounter)
    lost._bind_nothing("name", SharedMemoryExhausted("no descriptors"))
    monkeypatch.delitem(sys.modules, "copy", raising=False)
    with spare_descriptors(0), pytest.raises(SharedMemoryExhausted, match="no descriptors"):
        lost.add()


def test_a_wake_up_for_a_loop_that_is_closed_is_passed_on() -> None:
    """A coroutine of that loop cannot be told any more, so another sleeper must be woken instead."""
    woken, passed_on = threading.Event(), threading.Event()
    watch = async_waiters._Watch(
        "watch",
        lambda _seen, _deadline: woken.wait(PATIENCE),
        progress=lambda: 1,
        room=lambda: (1, 0),
        pass_on=passed_on.set,
    )
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)  # the task is dropped while it waits
    task = loop.create_task(watch.wait(0))
    while not watch._waiters:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    try:
        woken.set()
        assert passed_on.wait(PATIENCE)
        assert not watch._waiters
    finally:
        watch.stop(lambda: None)
        del task


# -- memory that an idle getter gives back -------------------------------------------------------------------


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records the result of each attempt to trim a queue."""
    found: list[bool] = []
    real = PutSide.trim

    def trim(self: PutSide) -> bool:
        found.append(real(self))
        return found[-1]

    monkeypatch.setattr(PutSide, "trim", trim)
    return found


def poll(queue: BoundedQueue[Any]) -> None:
    with pytest.raises(QueueEmpty):
        queue.get(timeout=0.01)


def poll_until(queue: BoundedQueue[Any], condition: Callable[[], object]) -> None:
    """Poll until `condition` is true. (On a busy machine, a poll may end before its first slice does.)"""

    def is_so() -> object:
        poll(queue)
        return condition()

    wait_until(is_so, "the getter has looked after a slice")


def test_a_short_timeout_gives_no_memory_back(
    queue: BoundedQueue[Any], trims: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each poll would give away the memory that the next item needs."""
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", PATIENCE)
    for _ in range(3):
        with pytest.raises(QueueEmpty):
            queue.get(timeout=0.001)
    assert not trims


def test_short_timeouts_that_make_a_slice_together_give_it_back_once(
    queue: BoundedQueue[Any], trims: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", 0.0)
    for rounds in (1, 2):
        poll_until(queue, lambda: len(trims) == rounds)  # noqa: B023  called at once
        for _ in range(2):
            poll(queue)
        assert trims == [True] * rounds
        queue.put(None)
        queue.get()


class _KeepsItsPages:
    def madvise(self, *_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_memory_that_cannot_be_given_back_stays(
    queue: BoundedQueue[Any], trims: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`get` must not raise if `madvise` fails, as on some file systems or if all memory is locked."""
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", 0.0)
    queue.put(bytes(100_000))
    assert queue.get() == bytes(100_000)
    with monkeypatch.context() as patch:
        patch.setattr(Regions, "map", lambda _self, _number: _KeepsItsPages())
        poll_until(queue, lambda: trims)
        for _ in range(2):
            poll(queue)
    assert trims == [True]
    queue.put(bytes(200_000))
    assert queue.get() == bytes(200_000)


def test_a_getter_does_not_wait_for_a_putter_to_give_memory_back(
    queue: BoundedQueue[Any], trims: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waited, it would keep all other getters out: for a second, if a putter is stopped."""
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", 0.0)
    shared = opened(queue)
    real = RobustLock.acquire

    def acquire(self: RobustLock, deadline: float | None = None) -> bool:
        assert self is not shared.put_lock, "it waits for the lock of the putters"
        return real(self, deadline)

    holder = Holder(shared, 0, living_stranger())
    with monkeypatch.context() as patch:
        patch.setattr(RobustLock, "acquire", acquire)
        poll_until(queue, lambda: trims)
    assert not any(trims)
    holder.release()
    tries = len(trims)
    poll_until(queue, lambda: len(trims) > tries)
    assert trims[tries], "it has been given back as soon as it could be"


# -- a full queue says so at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{"maxsize": 1}, {"max_bytes": 100_000}])
def test_a_big_item_for_which_there_is_no_room_is_not_copied(
    bounds: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with BoundedQueue[Any](**bounds) as queue:
        queue.put(bytes(50_000))
        with monkeypatch.context() as patch:
            patch.delattr(RegionSupply, "claim")
            with pytest.raises(QueueFull):
                queue.put_nowait(bytes(60_000))
            assert queue.put_many([bytes(60_000)], block=False) == 0
        assert queue.get() == bytes(50_000)
        queue.put_nowait(bytes(60_000))
        assert queue.get() == bytes(60_000)


class _Noted:
    pickled = 0

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        _Noted.pickled += 1
        return bytes, (bytes(50_000),)


def test_nothing_is_pickled_for_a_queue_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Noted, "pickled", 0)
    with BoundedQueue[Any](2) as queue:
        queue.put_many([1, 2])
        for item in (_Noted(), b"small"):
            # As if another process had filled it: this one still believes that there is room.
            queue._puts.ring.tail, queue._puts.ring.left = -1, 2
            with pytest.raises(QueueFull):
                queue.put_nowait(item)
            pickled = _Noted.pickled
            with pytest.raises(QueueFull):
                queue.put_nowait(_Noted())
            assert _Noted.pickled == pickled
        assert queue.get() == 1
        queue.put_nowait(_Noted())
        queue.shutdown()
        with pytest.raises(QueueShutDown):
            queue.put_nowait(3)
        assert [*queue] == [2, bytes(50_000)]
    with pytest.raises(ClosedError):
        queue.put_nowait(3)
    full = BoundedQueue[Any](1)
    full.put(1)
    full.close()
    with pytest.raises(ClosedError):
        full.put_nowait(2)


# -- a big item that cannot be viewed in place ---------------------------------------------------------------


def test_without_ctypes_a_big_item_is_copied(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views need ctypes. Otherwise the item would be lost: it has been taken already."""
    queue.put(bytes(range(250)) * 400)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ctypes", None)
        assert queue.get() == bytes(range(250)) * 400
    assert opened(queue).regions.with_getters() == 0


def test_without_a_descriptor_to_load_ctypes_a_big_item_is_copied(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    queue.put(bytes(range(250)) * 400)
    with monkeypatch.context() as patch:
        patch.setattr(held_items, "open_views", refuse)
        assert queue.get() == bytes(range(250)) * 400
    assert opened(queue).regions.with_getters() == 0


def test_a_region_that_was_claimed_just_before_an_exception_is_used_again(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception comes before the number is stored. The region must not be lost until the process ends."""
    regions = opened(queue).regions
    real = RegionSupply.claim

    def claim(self: RegionSupply, size: int, state: int, serial: int) -> int:
        real(self, size, state, serial)
        raise KeyboardInterrupt

    def written() -> int:
        table = [REGIONS + number * ENTRY_WORDS for number in range(1, 10)]
        return sum(regions.words[at] == WRITING for at in table)

    with monkeypatch.context() as patch:
        patch.setattr(RegionSupply, "claim", claim)
        # Not pytest.raises: that keeps the traceback, and with it what the put was working on.
        with contextlib.suppress(KeyboardInterrupt):
            queue.put(bytes(100_000))
    assert written() == 1
    with ThreadPoolExecutor(1) as threads:
        # A region that another thread is just writing is left alone.
        patched = threading.Event()
        going_on = threading.Event()
        real_map = Regions.map

        def map_slowly(self: Regions, number: int) -> mmap.mmap:
            patched.set()
            assert going_on.wait(PATIENCE)
            return real_map(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(Regions, "map", map_slowly)
            slow = threads.submit(queue.put, bytes(100_000))
            assert patched.wait(PATIENCE)
        try:
            assert written() == 1, "the one that was lost is used again"
            queue.put(bytes(200_000))
            assert written() == 1
        finally:
            going_on.set()
        slow.result(PATIENCE)
    assert [len(queue.get()), len(queue.get())] == [200_000, 100_000]


# -- what another thread closes ------------------------------------------------------------------------------


@pytest.mark.parametrize("number_is_used_again", [False, True])
def test_a_queue_that_is_closed_as_its_file_is_mapped_maps_no_other_file(
    number_is_used_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error must be ClosedError, not SharedMemoryExhausted (for EBADF). And if another file has got the
    descriptor's number, the item must not be written into that file.
    """
    queue = BoundedQueue[Any]()
    queue.put(1)
    assert queue.get() == 1
    fd = opened(queue).segment.fd
    path = tmp_path / "another"
    path.write_bytes(bytes(1 << 20))

    def map_late(number: int, size: int, offset: int = 0) -> mmap.mmap:
        Call(queue.close).join()
        if number_is_used_again:
            os.dup2(another.fileno(), fd)
        return map_file(number, size, offset)

    monkeypatch.setattr("mpkit._shm.queues.regions.map_file", map_late)
    with path.open("r+b") as another:
        with pytest.raises(ClosedError):
            queue.put(b"?" * 100_000)
        if number_is_used_again:
            os.close(fd)
    assert not path.read_bytes().strip(b"\0")


@pytest.mark.parametrize("method", ["permit_acquire", "permit_release"])
def test_a_lock_that_is_closed_in_the_middle_of_an_operation_is_closed(method: str) -> None:
    """Otherwise another operation would reuse the row of that one, and never learn of the closing."""
    lock = Lock()
    lock.acquire()
    if method == "permit_acquire":
        lock.release()
    shared = lock._opened()
    real = getattr(shared, method)

    def operate(*args: Any) -> Any:
        done = real(*args)
        Call(lock.close).join()
        return done

    setattr(shared, method, operate)
    if method == "permit_acquire":
        assert lock.acquire()
        setattr(shared, method, real)
    lock.release()
    with pytest.raises(ClosedError):
        lock.acquire()
    assert shared._lock_rows.places() == [], "its row has not been given back"


# -- an interrupt just after a lock between threads has been acquired ----------------------------------------


class _InterruptedLock(InterruptibleLock):
    """Raises after each `acquire`, as a signal handler may from Python 3.14 on."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        take = self.acquire

        def acquire(*args: Any, **options: Any) -> bool:
            take(*args, **options)
            raise KeyboardInterrupt

        self.acquire = acquire


def test_an_interrupted_look_from_outside_leaves_nothing_locked(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = opened(queue).name
    lock = _InterruptedLock()
    with monkeypatch.context() as patch:
        patch.setattr(shared_object, "_opening", lock)
        with pytest.raises(KeyboardInterrupt):
            outside.read_queue(name, name)
    assert not lock.is_owned()
    assert outside.read_queue(name, name) is not None


def test_an_interrupted_wait_in_an_event_loop_leaves_nothing_locked(queue: BoundedQueue[Any]) -> None:
    file = opened(queue)
    waiters = async_waiters.AsyncWaiters(file, file.puts, file.gets)
    lock = waiters._items._lock = _InterruptedLock()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(waiters.item())
    with pytest.raises(KeyboardInterrupt):
        waiters.stop()
    assert not lock.is_owned()


def test_a_fork_is_prepared_while_another_thread_opens_objects() -> None:
    there = [LockedCounter() for _ in range(3)]
    opened: list[LockedCounter] = []

    def trace(frame: FrameType, _event: str, _value: object) -> Any:
        # Do what another thread may do between any two lines.
        if frame.f_code.co_filename.endswith("weakref.py") and len(opened) < 5:
            opened.append(LockedCounter())
        return trace

    sys.settrace(trace)
    try:
        shared_object._prepare_fork()
    finally:
        sys.settrace(None)
    # Every object must know that a forked child needs its names, too.
    assert opened
    assert all(counter._opened()._marks.forked for counter in there)
