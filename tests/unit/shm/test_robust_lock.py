"""The robust lock: between threads, and between this process and others that are stopped or die."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mpkit import BoundedQueue, LockedCounter
from mpkit._platform.files.filelock import FileLock
from mpkit._shm.locks import robust_lock
from mpkit._shm.locks.counter_file import CounterFile
from mpkit._shm.locks.robust_lock import ATTEMPTS, COMPLETED, INSIDE, RobustLock
from mpkit._shm.locks.shared_file import RECOVERIES
from mpkit.errors import ClosedError, QueueShutDown
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until
from tests.unit.shm.others import Call, Holder, dead_process, living_stranger, permits


@pytest.fixture
def shared() -> Iterator[CounterFile]:
    shared = CounterFile.create(initial=0)
    yield shared
    shared.close()


@pytest.fixture
def lock(shared: CounterFile) -> RobustLock:
    return shared.lock


def word(lock: RobustLock) -> int:
    return lock.words[lock.at]


def test_the_word_shows_what_a_process_is_doing(lock: RobustLock) -> None:
    assert lock.acquire(None)
    assert word(lock) == INSIDE
    lock.release()
    assert word(lock) == COMPLETED
    assert lock.try_acquire()
    assert word(lock) == COMPLETED + INSIDE
    lock.unwind()
    assert word(lock) == 2 * COMPLETED


def test_a_failed_try_is_an_attempt_and_not_a_completion(shared: CounterFile, lock: RobustLock) -> None:
    lock.acquire(None)
    lock.release()
    other = Holder(shared, 0, living_stranger())
    assert not lock.try_acquire()
    assert word(lock) == COMPLETED
    assert lock.words[lock.at + ATTEMPTS] == 1
    other.release()
    assert lock.try_acquire()
    lock.release()


def test_one_thread_at_a_time(lock: RobustLock) -> None:
    inside = 0
    together = []
    total = 0

    def work() -> None:
        nonlocal inside, total
        for _ in range(300):
            assert lock.acquire(time.monotonic() + PATIENCE)
            inside += 1
            together.append(inside)
            total += 1
            inside -= 1
            lock.release()

    calls = [Call(work) for _ in range(4)]
    for call in calls:
        call.join()
        assert call.error is None
    assert total == 1200
    assert set(together) == {1}


def test_acquiring_a_lock_that_this_thread_holds_is_refused(lock: RobustLock) -> None:
    with pytest.raises(RuntimeError, match="already inside"):
        try:
            assert lock.acquire(None)
            assert lock.held_here()
            lock.acquire(None)
        finally:
            lock.unwind()
    assert not lock.held_here()
    assert lock.try_acquire()
    with pytest.raises(RuntimeError, match="already inside"):
        lock.refuse_reentry()
    assert not lock.try_acquire(), "`try_acquire` just returns False"
    lock.release()
    lock.refuse_reentry()


def test_run_releases_the_lock_whatever_the_function_does(shared: CounterFile, lock: RobustLock) -> None:
    assert lock.run(None, lock.held_here)
    with pytest.raises(ZeroDivisionError):
        lock.run(None, lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="already inside"):
        lock.run(None, lambda: lock.run(None, bool))
    assert not lock.held_here()
    other = Holder(shared, 0, living_stranger())
    assert lock.run(time.monotonic(), lambda: True) is None
    other.release()
    assert lock.run(time.monotonic(), lambda: True)


def shut_down_queue() -> BoundedQueue[int]:
    queue = BoundedQueue[int]()
    queue.shutdown()
    return queue


@needs_a_trace_that_raises
@pytest.mark.parametrize(
    "make, use, error",
    [
        pytest.param(shut_down_queue, lambda queue: queue.get(), QueueShutDown, id="get"),
        pytest.param(shut_down_queue, lambda queue: queue.put(1), QueueShutDown, id="put"),
        pytest.param(
            lambda: LockedCounter(2**63 - 1), lambda counter: counter.add(), OverflowError, id="counter"
        ),
    ],
)
def test_an_interrupt_while_an_error_is_raised_leaves_nothing_locked(
    make: Callable[[], BoundedQueue[int] | LockedCounter],
    use: Callable[[object], object],
    error: type[Exception],
) -> None:
    """Python 3.10 may run a signal handler where an `except` begins: just before the lock is released."""
    with contextlib.closing(make()) as shared:
        locks = shared._opened().locks

        def fail() -> None:
            with contextlib.suppress(error):
                use(shared)

        fail()
        for step in itertools.count():
            interrupted = interrupt_at(step, fail)
            assert not [lock for lock in locks if lock.held_here()], f"at step {step}"
            if not interrupted:
                break
        assert step > 20


@needs_a_trace_that_raises
def test_an_interrupt_when_a_compound_update_begins_leaves_nothing_locked() -> None:
    with contextlib.closing(LockedCounter()) as counter:
        counter.add()
        for step in itertools.count():
            interrupted = interrupt_at(step, counter.__enter__)
            assert counter._opened().lock.held_here() is not interrupted, f"at step {step}"
            if not interrupted:
                break
        counter.__exit__(None, None, None)
        assert step > 10


def test_another_thread_is_not_refused_but_waits(lock: RobustLock) -> None:
    lock.acquire(None)
    call = Call(lambda: lock.acquire(time.monotonic() + 0.01))
    call.join()
    assert call.value is False
    lock.release()


def test_unwind_gives_back_whatever_has_been_acquired(shared: CounterFile, lock: RobustLock) -> None:
    lock.unwind()  # nothing yet
    lock.acquire(None)
    lock.release()
    # Only the lock between threads has been acquired:
    assert lock.local_acquire(False)
    lock.unwind()
    # ... and the word has been stored:
    assert lock.local_acquire(False)
    lock.words[lock.at] = lock.value + INSIDE
    lock.unwind()
    assert not word(lock) & INSIDE
    # ... and the permit has been taken:
    assert lock.local_acquire(False)
    lock.words[lock.at] = lock.value + INSIDE
    assert lock.permit_acquire(False)
    lock.unwind()
    lock.unwind()
    assert not word(lock) & INSIDE
    other = Holder(shared, 0, living_stranger())
    other.release()


def test_what_another_thread_holds_is_not_unwound(lock: RobustLock) -> None:
    lock.acquire(None)
    call = Call(lock.unwind)
    call.join()
    assert lock.held_here()
    lock.release()


def test_a_dead_holder_is_found(shared: CounterFile, lock: RobustLock) -> None:
    repaired = []
    lock.repair = lambda: repaired.append(shared.semaphores[0].raw._is_zero())
    lock.acquire(None)
    lock.release()
    other = Holder(shared, 0, dead_process())
    assert lock.acquire(time.monotonic() + PATIENCE)
    assert shared.words[RECOVERIES] == 1
    assert repaired == [True], "the repair must be done before the permit is given back"
    assert other.row not in dict(shared.rows.taken())
    lock.release()
    assert permits(shared.semaphores[0]) == 1
    assert lock.acquire(time.monotonic() + PATIENCE)
    lock.unwind()
    assert permits(shared.semaphores[0]) == 1


def test_several_short_timeouts_together_find_a_dead_holder(shared: CounterFile, lock: RobustLock) -> None:
    lock.acquire(None)
    lock.release()
    Holder(shared, 0, dead_process())
    wait_until(lambda: lock.acquire(time.monotonic() + 0.005), "one of them is lucky")
    lock.release()
    assert shared.words[RECOVERIES] == 1


def test_nothing_is_taken_from_a_living_holder(
    shared: CounterFile, lock: RobustLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust_lock, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(robust_lock, "SLICE_SECONDS", 0.001)
    monkeypatch.setattr(robust_lock, "INVESTIGATION_SECONDS", 0.005)
    lock.acquire(None)
    lock.release()
    other = Holder(shared, 0, living_stranger())
    looks = []
    recover = RobustLock._recover

    def counted(self: RobustLock, give_up: float) -> None:
        recover(self, give_up)
        looks.append(1)

    monkeypatch.setattr(RobustLock, "_recover", counted)

    def take() -> bool:
        try:
            return lock.acquire(None)
        finally:
            lock.unwind()

    call = Call(take)
    wait_until(lambda: len(looks) >= 5, "it has looked for dead holders five times")
    assert call.running()
    assert shared.words[RECOVERIES] == 0
    other.release()
    call.join()
    assert call.value is True
    assert shared.words[RECOVERIES] == 0


def test_an_investigation_that_gets_the_permit_gives_it_back(shared: CounterFile, lock: RobustLock) -> None:
    lock.acquire(None)
    lock.release()
    assert lock.local_acquire(False)
    lock._investigate(None)
    lock.local_release()
    assert not word(lock) & INSIDE
    assert shared.words[RECOVERIES] == 0
    assert lock.try_acquire()
    lock.release()


def test_a_lost_permit_is_not_given_back_while_another_process_takes_over(
    shared: CounterFile, lock: RobustLock
) -> None:
    """Otherwise both would give it back, and then two processes could hold the lock."""
    lock.acquire(None)
    lock.release()
    Holder(shared, 0, dead_process())
    assert lock.local_acquire(False)
    another = FileLock.try_acquire(shared.segment.fd)
    assert another is not None
    lock._investigate(None)
    assert permits(shared.semaphores[0]) == 0
    another.release()
    lock._investigate(None)
    lock.local_release()
    assert permits(shared.semaphores[0]) == 1
    assert shared.words[RECOVERIES] == 1


def test_a_lock_is_not_taken_over_if_its_holder_releases_it_meanwhile(
    shared: CounterFile, lock: RobustLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permit is taken at every look, but by a living process that releases it and acquires it again."""
    lock.acquire(None)
    lock.release()
    other = Holder(shared, 0, living_stranger())
    moved = []

    def pause(_seconds: float) -> None:
        # The holder has released the lock once and acquired it again, so this look proves nothing.
        moved.append(1)
        lock.words[other.row + 2] = COMPLETED + INSIDE

    monkeypatch.setattr("mpkit._shm.locks.robust_lock.time.sleep", pause)
    assert lock.local_acquire(False)
    lock._recover(time.monotonic() + PATIENCE)
    lock.local_release()
    assert moved
    assert shared.words[RECOVERIES] == 0
    assert shared.semaphores[0].raw._is_zero()


def test_closing_ends_the_waiting(
    shared: CounterFile, lock: RobustLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust_lock, "SHUT_SECONDS", 0.01)
    lock.acquire(None)
    lock.release()
    other = Holder(shared, 0, living_stranger())
    entered = threading.Event()

    def wait() -> bool | None:
        entered.set()
        return lock.run(None, lock.held_here)

    first, second = Call(wait), Call(wait)
    entered.wait(PATIENCE)
    wait_until(lambda: other._words[lock.at] & INSIDE, "one of them waits for the permit")
    shared.close()
    for call in (first, second):
        call.join()
        assert isinstance(call.error, ClosedError)
    other.release()
