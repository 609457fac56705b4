"""`Lock` and `LockedCounter` inside one process: arguments, semantics, threads."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, SupportsIndex

import pytest

from mpkit import Lock, LockedCounter
from mpkit._shm.locks import lock_file
from mpkit._shm.locks.lock_rows import ATTEMPTS, OUT
from mpkit._shm.memory.names import owned_names
from mpkit.errors import ClosedError
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until

LOWEST, HIGHEST = -(2**63), 2**63 - 1


def in_thread(function: Callable[..., object], *args: object) -> Any:
    """Call `function` in another thread and return its result."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(function(*args)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "did not return"
    return found[0]


# --- Lock ---------------------------------------------------------------------------------------------------


def test_a_lock_knows_its_owner(lock: Lock) -> None:
    assert (lock.locked(), lock.owner(), lock.abandoned_by) == (False, None, None)
    assert lock.acquire() is True
    assert (lock.locked(), lock.owner(), lock.abandoned_by) == (True, os.getpid(), None)
    lock.release()
    assert (lock.locked(), lock.owner()) == (False, None)
    with lock as taken:
        assert taken is True
        assert lock.locked()
    assert not lock.locked()


def test_a_lock_is_not_recursive(lock: Lock) -> None:
    lock.acquire()
    assert lock.acquire(False) is False
    assert lock.acquire(block=False) is False
    assert lock.acquire(timeout=0) is False
    assert lock.acquire(True, 0.02) is False
    assert in_thread(lock.acquire, False) is False
    lock.release()
    assert lock.acquire(timeout=math.inf) is True
    lock.release()


def test_another_thread_may_release(lock: Lock) -> None:
    lock.acquire()
    in_thread(lock.release)
    assert not lock.locked()


def test_releasing_a_free_lock_is_an_error(lock: Lock) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="nobody has acquired"):
            lock.release()
    assert lock.acquire(False)
    lock.release()
    with pytest.raises(ValueError, match="nobody has acquired"):
        lock.release()


def test_the_block_releases_after_an_exception(lock: Lock) -> None:
    with pytest.raises(LookupError), lock:
        raise LookupError
    assert not lock.locked()


@pytest.mark.parametrize(
    "acquire", [lambda lock: lock.acquire(timeout=PATIENCE), Lock.acquire, Lock.__enter__]
)
def test_a_waiting_thread_gets_the_lock(lock: Lock, acquire: Callable[[Lock], bool]) -> None:
    lock.acquire()
    got = threading.Event()

    def wait() -> None:
        if acquire(lock):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    shared = lock._opened()
    wait_until(
        lambda: any(shared.words[place + ATTEMPTS] for place, _ in shared._lock_rows.places()),
        "the thread has tried in vain",
    )
    assert not got.is_set()
    lock.release()
    assert got.wait(PATIENCE)
    thread.join()
    lock.release()


def test_threads_exclude_one_another(lock: Lock) -> None:
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(300):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (inside, most) == (0, 1)


@pytest.mark.parametrize("timeout", [-1, -0.5, math.nan])
def test_a_bad_timeout_is_refused(lock: Lock, counter: LockedCounter, timeout: float) -> None:
    for block in (True, False):
        with pytest.raises(ValueError, match=r"timeout.*(nan|-)"):
            lock.acquire(block, timeout)
    assert not lock.locked()
    with pytest.raises(ValueError, match=r"timeout.*(nan|-)"):
        counter.wait_for(0, timeout)
    with pytest.raises(TypeError, match="timeout"):
        lock.acquire(timeout="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout"):
        counter.wait_for(0, "1")  # type: ignore[arg-type]


def test_a_lock_takes_no_arguments() -> None:
    before = owned_names()
    with pytest.raises(TypeError):
        Lock(1)  # type: ignore[call-arg]
    assert not set(owned_names()).difference(before)  # names of earlier tests may disappear meanwhile


def test_a_closed_lock() -> None:
    lock = Lock()
    lock.acquire()
    lock.close()
    lock.close()
    for use in (
        lock.acquire,
        lock.release,
        lock.locked,
        lock.owner,
        lambda: lock.abandoned_by,
        lambda: pickle.dumps(lock),
    ):
        with pytest.raises(ClosedError):
            use()
    assert repr(lock) == "<Lock closed>"


def test_close_ends_waiting_threads() -> None:
    lock = Lock()
    lock.acquire()
    errors: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        try:
            lock.acquire()
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    begun.wait(PATIENCE)
    lock.close()
    thread.join(PATIENCE)
    assert len(errors) == 1


def test_repr_of_a_lock(lock: Lock) -> None:
    assert repr(lock) == "<Lock free>"
    with lock:
        assert repr(lock) == f"<Lock owned by pid {os.getpid()}>"


def test_a_handle_that_is_unpickled_in_the_same_process_is_the_same_lock(lock: Lock) -> None:
    again: Lock = pickle.loads(pickle.dumps(lock))
    with again:
        assert lock.locked()
        assert not lock.acquire(False)


class Interrupt(Exception):
    """Stands for the exception that a signal handler raises."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["permit_acquire", "permit_release"])
def test_an_interrupted_call_leaves_the_lock_in_order(lock: Lock, name: str, when: str) -> None:
    """If a signal handler raises between system calls, an `acquire` has not happened, and a `release` has."""
    shared = lock._shared
    assert shared is not None
    real = getattr(shared, name)

    def interrupt(*args: Any) -> Any:
        setattr(shared, name, real)
        if when == "before":
            raise Interrupt
        real(*args)
        raise Interrupt

    with lock:
        pass
    if name == "permit_release":
        lock.acquire()
    setattr(shared, name, interrupt)
    with pytest.raises(Interrupt):
        lock.acquire() if name == "permit_acquire" else lock.release()
    assert not lock.locked()
    assert in_thread(lock.acquire, True, PATIENCE)
    lock.release()
    with pytest.raises(ValueError, match="nobody"):
        lock.release()
    assert [lock.acquire(False), lock.acquire(False)] == [True, False]
    lock.release()


def test_an_interrupt_at_the_first_step_of_a_release_completes_it(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(list[int]):
        def pop(self, _index: SupportsIndex = -1, /) -> int:
            super().pop()
            raise Interrupt  # after the call and before the assignment

    lock.acquire()
    shared = lock._opened()
    with monkeypatch.context() as patch:
        patch.setattr(shared, "_held", Interrupted(shared._held))
        with pytest.raises(Interrupt):
            lock.release()
    shared._held.clear()
    assert not lock.locked()
    assert lock.acquire(False)
    lock.release()


def test_a_second_interrupt_leaves_the_lock_in_order_too(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is left in the middle would prevent for ever that a lost permit is found."""

    def interrupt_release() -> None:
        shared.permit_release = real
        raise Interrupt

    def interrupt_again() -> None:
        monkeypatch.undo()
        raise Interrupt

    lock.acquire()
    shared = lock._opened()
    real, shared.permit_release = shared.permit_release, interrupt_release
    monkeypatch.setattr(lock_file, "full_fence", interrupt_again)
    with pytest.raises(Interrupt):
        lock.release()
    assert [shared.words[place] for place, _ in shared._lock_rows.places()] == [OUT]
    assert lock.acquire(timeout=PATIENCE)
    lock.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file lock that closes itself
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interval timers")
def test_interrupts_at_any_moment_leave_the_lock_in_order(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If an interrupt prevents a release, the lock is recovered after these times: shorten them.
    monkeypatch.setattr(lock_file, "SLICE_SECONDS", 0.01)
    monkeypatch.setattr(lock_file, "STUCK_SECONDS", 0.02)
    taken = 0
    dice = random.Random(7)

    def interrupt(_number: int, _frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            with contextlib.suppress(Interrupt):
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 3e-4))
                try:
                    for _ in range(10_000):
                        lock.acquire()
                        lock.release()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            if lock.locked():
                # The interrupt came between `acquire` and `release`.
                lock.release()
            assert lock.acquire(timeout=PATIENCE)
            lock.release()
            assert not lock.locked()
            taken += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert taken == 300
    with pytest.raises(ValueError, match="nobody"):
        lock.release()


# --- LockedCounter ------------------------------------------------------------------------------------------


def test_the_verbs_of_a_counter(counter: LockedCounter) -> None:
    assert counter.value == 0
    assert counter.add() == 1
    assert counter.add(41) == 42
    assert counter.add(-2) == 40
    assert counter.sub() == 39
    assert counter.sub(40) == -1
    assert counter.compare_and_set(-1, 7) is True
    assert counter.compare_and_set(-1, 8) is False
    assert counter.value == 7
    assert counter.reset() == 7
    assert counter.reset(5) == 0
    assert counter.reset(value=5) == 5


def test_the_value_cannot_be_assigned(counter: LockedCounter) -> None:
    with pytest.raises(AttributeError):
        counter.value = 3  # type: ignore[misc]


@pytest.mark.parametrize("initial", [LOWEST, -1, 0, 1, HIGHEST, True])
def test_an_initial_value(initial: int) -> None:
    counter = LockedCounter(initial)
    assert counter.value == initial
    counter.close()


@pytest.mark.parametrize(
    "initial, error",
    [
        (HIGHEST + 1, OverflowError),
        (LOWEST - 1, OverflowError),
        ("3", TypeError),
        (1.5, TypeError),
        (None, TypeError),
    ],
)
def test_a_bad_initial_value(initial: Any, error: type[Exception]) -> None:
    before = owned_names()
    with pytest.raises(error, match=f"initial .*{initial}"):
        LockedCounter(initial)
    assert not set(owned_names()).difference(before)  # names of earlier tests may disappear meanwhile


def test_overflow_leaves_the_value(counter: LockedCounter) -> None:
    counter.reset(HIGHEST - 1)
    assert counter.add() == HIGHEST
    calls: list[Callable[[], object]] = [
        counter.add,
        lambda: counter.add(1 << 70),
        lambda: counter.sub(-1),
        lambda: counter.reset(HIGHEST + 1),
        lambda: counter.compare_and_set(HIGHEST, HIGHEST + 1),
    ]
    for call in calls:
        with pytest.raises(OverflowError, match="64 bits"):
            call()
        assert counter.value == HIGHEST
    assert counter.reset(LOWEST) == HIGHEST
    with pytest.raises(OverflowError):
        counter.sub()
    with pytest.raises(OverflowError):
        counter.add(-1)
    assert counter.value == LOWEST
    with counter as locked:
        with pytest.raises(OverflowError):
            locked.value = 1 << 64
        assert locked.value == LOWEST
    assert counter.compare_and_set(1 << 80, 0) is False
    # A target beyond the range is never reached.
    assert counter.wait_for(1 << 80, 0) is False
    assert counter.wait_for(-(1 << 80), 0) is True


class _BadMoment(ValueError):
    """Stands for the exception that a signal handler raises."""


@needs_a_trace_that_raises
def test_the_value_error_of_a_signal_handler_stays_itself(counter: LockedCounter) -> None:
    def bad_moment(*_args: object) -> None:
        raise _BadMoment

    before = signal.signal(signal.SIGUSR1, bad_moment)
    try:
        for step in itertools.count():
            # At the upper bound, so that the value afterwards does not show which error it was.
            counter.reset(HIGHEST - 1)
            if not interrupt_at(step, counter.add, signum=signal.SIGUSR1, raises=_BadMoment):
                break
            assert counter.value in (HIGHEST - 1, HIGHEST)
            assert in_thread(counter.add, -1) == counter.value
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert step > 10


@pytest.mark.parametrize("wrong", ["1", 1.0, None])
def test_what_is_no_integer_is_refused(counter: LockedCounter, wrong: Any) -> None:
    for call in (
        counter.add,
        counter.sub,
        counter.reset,
        counter.wait_for,
        lambda value: counter.compare_and_set(value, 0),
        lambda value: counter.compare_and_set(0, value),
    ):
        with pytest.raises(TypeError, match=f"must be an integer, not {wrong!r}"):
            call(wrong)
    with counter as locked, pytest.raises(TypeError, match="value must be an integer"):
        locked.value = wrong
    assert counter.value == 0


def test_a_compound_update(counter: LockedCounter) -> None:
    with counter as locked:
        locked.value = locked.value * 2 + 10
        assert locked.value == 10
        assert counter.value == 10  # looking is always possible
        for call in (counter.add, counter.reset, lambda: counter.compare_and_set(1, 2), counter.__enter__):
            # The error must not advise to use another thread, as others do: that would wait for ever here.
            with pytest.raises(RuntimeError, match=r"inside `with counter as locked` use `locked\.value`"):
                call()
        assert repr(locked) == "<CompoundUpdate 10>"
    with pytest.raises(RuntimeError, match="over"):
        _ = locked.value
    with pytest.raises(RuntimeError, match="over"):
        locked.value = 3
    assert counter.add() == 11
    with pytest.raises(LookupError), counter as locked:
        locked.value = 0
        raise LookupError
    assert counter.add() == 1


def test_a_block_inside_a_block_is_refused_and_the_outer_one_still_excludes_others(
    counter: LockedCounter,
) -> None:
    with counter as locked:
        with pytest.raises(RuntimeError, match="already inside"):
            counter.__enter__()
        shared = counter._opened()
        assert in_thread(lambda: shared.lock.run(time.monotonic(), lambda: "not excluded")) is None
        locked.value = 5
    assert counter.value == 5


def test_compound_updates_exclude_other_threads(counter: LockedCounter) -> None:
    def work() -> None:
        for _ in range(150):
            with counter as locked:
                before = locked.value
                locked.value = before + 1
            counter.add()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert counter.value == 1200


def set_in_a_block(counter: LockedCounter) -> None:
    with counter as locked:
        locked.value = 5


UPDATES: list[Callable[[LockedCounter], object]] = [
    lambda counter: counter.add(5),
    lambda counter: counter.reset(5),
    lambda counter: counter.compare_and_set(0, 99),
    lambda counter: counter.sub(-5),
    set_in_a_block,
]


@pytest.mark.parametrize("reach", UPDATES)
def test_wait_for(counter: LockedCounter, reach: Callable[[LockedCounter], object]) -> None:
    assert counter.wait_for(0)
    assert not counter.wait_for(5, 0)
    assert not counter.wait_for(5, timeout=0.02)
    found: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda timeout=timeout: found.append(counter.wait_for(5, timeout)), daemon=True
        )
        for timeout in (None, PATIENCE)
    ]
    for thread in threads:
        thread.start()
    reach(counter)
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [True, True]


@pytest.mark.parametrize("update", UPDATES)
def test_each_update_wakes_those_who_wait(
    counter: LockedCounter, update: Callable[[LockedCounter], object]
) -> None:
    """Otherwise they would only notice the update at the end of their slice."""
    shared = counter._opened()
    assert shared.lock.acquire(None)
    shared._sleepers.enter()
    shared.lock.release()
    update(counter)
    assert shared._sleepers.sleep(time.monotonic()), "there is a token for the one who sleeps"


def test_a_closed_counter() -> None:
    counter = LockedCounter(3)
    counter.close()
    counter.close()
    for use in (
        lambda: counter.value,
        counter.add,
        counter.sub,
        counter.reset,
        lambda: counter.compare_and_set(3, 4),
        lambda: counter.wait_for(1),
        counter.__enter__,
        lambda: pickle.dumps(counter),
    ):
        with pytest.raises(ClosedError):
            use()
    assert repr(counter) == "<LockedCounter closed>"


def test_close_ends_calls_that_wait_for_a_value() -> None:
    counter = LockedCounter()
    errors: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        try:
            counter.wait_for(1)
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    begun.wait(PATIENCE)
    counter.close()
    thread.join(PATIENCE)
    assert len(errors) == 1


def test_repr_and_pickle_of_a_counter(counter: LockedCounter) -> None:
    counter.add(7)
    assert repr(counter) == "<LockedCounter 7>"
    again: LockedCounter = pickle.loads(pickle.dumps(counter))
    again.add()
    assert counter.value == 8


class NamedLock(Lock):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def test_the_attributes_of_a_subclass_travel() -> None:
    lock = NamedLock("till")
    with lock:
        again: NamedLock = pickle.loads(pickle.dumps(lock))
        assert (type(again), again.name) == (NamedLock, "till")
        assert again.locked()
