"""The caller, which calls back into the program: in order, in one thread, and without forgetting a call."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from mpkit.pool._engine import caller as _caller
from mpkit.pool._engine.caller import Caller
from mpkit.pool._protocol.channel import LOGS_LATE
from tests.helpers.waiting import PATIENCE, wait_until


class Collecting:
    """Imitates the parts of a pool that a caller needs. The test itself calls `serve`."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.rings = 0
        self.words = memoryview(bytearray(256)).cast("Q")
        self.caller = Caller("mpkit-test", self.records.append, self._wake, self)

    def _wake(self) -> None:
        self.rings += 1


@pytest.fixture
def pool() -> Iterator[Collecting]:
    pool = Collecting()
    yield pool
    pool.caller.stop()
    assert pool.caller.join(PATIENCE)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the types of exceptions that threads reported."""
    kinds: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: kinds.append(args.exc_type.__name__))
    return kinds


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def noting(seen: list[tuple[object, int]], what: object) -> Callable[[], None]:
    return lambda: seen.append((what, threading.get_ident()))


def test_no_thread_is_started_before_there_is_something_to_call(pool: Collecting) -> None:
    before = threading.active_count()
    pool.caller.serve()
    assert threading.active_count() == before
    assert not pool.rings


def test_calls_are_made_in_order_and_in_one_thread(pool: Collecting) -> None:
    seen: list[tuple[object, int]] = []
    pool.caller.call(noting(seen, 0))
    # Nothing else would start the thread.
    assert pool.rings == 1
    pool.caller.serve()
    wait_until(lambda: seen, "the first call is made")
    for number in range(1, 50):
        pool.caller.call(noting(seen, number))
    pool.caller.stop()
    assert pool.caller.join(PATIENCE)
    assert [number for number, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen} - {threading.get_ident()}) == 1
    assert pool.rings == 1


def test_log_records_and_calls_take_turns(pool: Collecting) -> None:
    records: list[list[bytes]] = []
    pool.caller.handle_log(b"1")
    # Nothing else would start the thread.
    assert pool.rings == 1
    pool.caller.call(lambda: records.append(list(pool.records)))
    pool.caller.handle_log(b"2")
    pool.caller.serve()
    pool.caller.stop()
    assert pool.caller.join(PATIENCE)
    assert (records, pool.records) == ([[b"1"]], [b"1", b"2"])


def test_an_exception_of_a_call_is_reported_and_the_next_call_is_made(
    pool: Collecting, reported: list[str]
) -> None:
    def fail() -> None:
        raise SystemExit(3)

    called = threading.Event()
    pool.caller.call(fail)
    pool.caller.call(called.set)
    pool.caller.serve()
    assert called.wait(PATIENCE)
    assert reported == ["SystemExit"]


def test_no_reference_to_a_call_is_kept_after_it_was_made(pool: Collecting) -> None:
    """A callback may refer to its pool, which should end when nobody else refers to it."""

    def nothing() -> None:
        """Do nothing."""

    left = weakref.ref(nothing)
    pool.caller.call(nothing)
    pool.caller.serve()
    del nothing

    def is_gone() -> bool:
        gc.collect()
        return left() is None

    wait_until(is_gone, "it is let go")


def test_a_call_made_at_the_end_may_request_more_calls(pool: Collecting) -> None:
    go_on = threading.Event()
    called: list[int] = []

    def call(number: int) -> None:
        assert go_on.wait(PATIENCE)
        called.append(number)
        if number < 5:
            pool.caller.call(lambda: call(number + 1))

    pool.caller.call(lambda: call(0))
    pool.caller.serve()
    # Made before all calls but the first.
    pool.caller.stop()
    go_on.set()
    assert pool.caller.join(PATIENCE)
    assert called == list(range(6))


def test_after_the_end_a_call_is_made_by_the_thread_that_requests_it(pool: Collecting) -> None:
    pool.caller.stop()
    seen: list[tuple[object, int]] = []
    pool.caller.call(noting(seen, "it"))
    assert seen == [("it", threading.get_ident())]


def test_without_threads_the_thread_that_ends_the_pool_makes_the_calls(pool: Collecting) -> None:
    seen: list[tuple[object, int]] = []
    pool.caller.call(noting(seen, "it"))
    pool.caller.stop()
    assert seen == [("it", threading.get_ident())]


def test_without_a_thread_the_collectors_thread_makes_all_calls(
    pool: Collecting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[object, int]] = []
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        refuse_threads(patch)
        pool.caller.call(noting(seen, 1))
        pool.caller.serve()
    assert "refuses a thread" in caplog.text
    # Even after threads can be started again: all calls are made in one thread.
    rings = pool.rings
    pool.caller.call(noting(seen, 2))
    assert pool.rings == rings + 1
    pool.caller.serve()
    me = threading.get_ident()
    assert seen == [(1, me), (2, me)]


def test_a_thread_knows_whether_it_is_making_a_call(pool: Collecting) -> None:
    answers: list[bool] = []
    pool.caller.call(lambda: answers.append(pool.caller.is_current_thread()))
    pool.caller.serve()
    pool.caller.stop()
    assert pool.caller.join(PATIENCE)
    pool.caller.call(lambda: answers.append(pool.caller.is_current_thread()))
    assert answers == [True, True]
    assert not pool.caller.is_current_thread()


def test_workers_see_whether_log_records_come_too_fast(
    pool: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_caller, "_MOST_CALLS", 10)
    monkeypatch.setattr(_caller, "_FEW_CALLS", 5)
    late: list[int] = []
    for number in range(20):
        pool.caller.handle_log(bytes((number,)))
        late.append(pool.words[LOGS_LATE])
    assert late == [0] * 10 + [1] * 10
    # Called when all of these have been handled, and still ten calls are to be made.
    pool.caller.call(lambda: late.append(pool.words[LOGS_LATE]))
    for number in range(10):
        pool.caller.handle_log(bytes((number,)))
    pool.caller.serve()
    wait_until(lambda: len(pool.records) == 30 and not pool.words[LOGS_LATE], "it has caught up")
    assert late[20:] == [1]
