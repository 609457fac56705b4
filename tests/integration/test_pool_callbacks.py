"""Callbacks and log handlers, which a pool calls: they may be slow, or wait for the pool itself.

Meanwhile the pool goes on for everybody else.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit.errors import WorkerCrashed
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine import caller as _caller
from mpkit.pool._engine import engine as _engine
from mpkit.pool._protocol.channel import LOGS_LATE
from mpkit.pool._worker import outbox as _worker_outbox
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    with TaskPool(2, context="fork") as pool:
        yield pool


class Slow:
    """A callable that returns only once `go_on` is set."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.patience: float | None = PATIENCE

    def __call__(self, *_args: object) -> None:
        self.begun.set()
        assert self.go_on.wait(self.patience)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()


@pytest.fixture
def hanging(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Like `slow`, but without a deadline, to show that nothing waits for it for ever.

    A terminated pool waits for a running callback only briefly here, not as long as for users.
    """
    monkeypatch.setattr(_engine, "_CALLBACK_SECONDS", 0.1)
    slow.patience = None
    return slow


class SlowHandler(logging.Handler):
    def __init__(self, slow: Slow) -> None:
        super().__init__()
        self._slow = slow

    def emit(self, record: logging.LogRecord) -> None:
        self._slow(record)


@pytest.fixture
def slow_logger(slow: Slow) -> Iterator[str]:
    """The name of a logger with a slow handler."""
    logger = logging.getLogger("mpkit-test-callbacks")
    handler = SlowHandler(slow)
    logger.addHandler(handler)
    yield logger.name
    logger.removeHandler(handler)


def begin_callback(pool: TaskPool, slow: Slow) -> None:
    pool.apply_async(tasks.square, (3,), callback=slow)
    assert slow.begun.wait(PATIENCE)


def begin_handling(pool: TaskPool, slow: Slow, logger: str) -> None:
    pool.apply(tasks.log, (logger, "slowly"))
    assert slow.begun.wait(PATIENCE)


# -- the pool goes on meanwhile ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["callback", "log record"])
def test_tasks_are_sent_and_fetched_during_a_slow_call(
    pool: TaskPool, slow: Slow, slow_logger: str, way: str
) -> None:
    if way == "callback":
        begin_callback(pool, slow)
    else:
        begin_handling(pool, slow, slow_logger)
    # More than are sent at once, so the pool must fetch outcomes meanwhile. No thread of the test does.
    handles = [pool.submit(tasks.square, number) for number in range(1000)]
    done, pending = concurrent.futures.wait(handles, PATIENCE)
    assert (len(done), len(pending)) == (1000, 0)
    assert not slow.go_on.is_set()


def test_coroutines_get_results_during_a_slow_callback(pool: TaskPool, slow: Slow) -> None:
    begin_callback(pool, slow)

    async def ask() -> list[int]:
        handles = [pool.submit(tasks.square, number) for number in range(20)]
        loop = asyncio.get_running_loop()
        other = loop.run_in_executor(pool.executor, tasks.square, 20)
        return [await handle for handle in handles] + [await other]

    assert asyncio.run(asyncio.wait_for(ask(), PATIENCE)) == [number * number for number in range(21)]
    assert not slow.go_on.is_set()


def test_as_completed_gets_results_during_a_slow_callback(pool: TaskPool, slow: Slow) -> None:
    begin_callback(pool, slow)
    handles = [pool.submit(tasks.square, number) for number in range(20)]
    seen = [handle.result() for handle in concurrent.futures.as_completed(handles, PATIENCE)]
    assert sorted(seen) == sorted(number * number for number in range(20))


# -- a callback may wait for the pool ------------------------------------------------------------------------


def wait_for_another(pool: TaskPool) -> Any:
    done, _ = concurrent.futures.wait([pool.submit(tasks.square, 4)], PATIENCE)
    return {handle.result(0) for handle in done}


def shut_an_executor_down(pool: TaskPool) -> Any:
    executor = pool.executor
    handle = executor.submit(tasks.square, 4)
    executor.shutdown(wait=True)
    return {handle.result(0)}


def wait_in_a_coroutine(pool: TaskPool) -> Any:
    async def ask() -> int:
        return await asyncio.wait_for(asyncio.wrap_future(pool.submit(tasks.square, 4)), PATIENCE)

    return {asyncio.run(ask())}


def wait_for_a_map(pool: TaskPool) -> Any:
    return set(pool.map(tasks.square, [4] * 100, chunksize=1))


@pytest.mark.parametrize(
    "wait",
    [wait_for_another, shut_an_executor_down, wait_in_a_coroutine, wait_for_a_map],
    ids=lambda f: f.__name__,
)
def test_a_callback_can_wait_for_other_tasks(pool: TaskPool, wait: Callable[[TaskPool], Any]) -> None:
    """If only the thread that calls back could fetch outcomes, the callback would wait for it for ever."""
    answers: list[Any] = []
    called = threading.Event()

    def ask(_handle: object) -> None:
        try:
            answers.append(wait(pool))
        finally:
            called.set()

    pool.apply_async(tasks.square, (3,), callback=ask)
    assert called.wait(PATIENCE)
    assert answers == [{16}]


def test_joining_the_pool_in_a_log_handler_is_refused(pool: TaskPool) -> None:
    errors: list[BaseException] = []

    class Joining(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            pool.close()
            try:
                pool.join()
            except RuntimeError as error:
                errors.append(error)

    logger = logging.getLogger("mpkit-test-callbacks")
    handler = Joining()
    logger.addHandler(handler)
    try:
        pool.apply(tasks.log, (logger.name, "the end"))
        wait_until(lambda: errors, "it was refused")
    finally:
        logger.removeHandler(handler)
    assert "from a callback" in str(errors[0])
    assert pool.join(PATIENCE)


# -- the thread that calls back ------------------------------------------------------------------------------


def caller_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith("-caller")]


def test_the_caller_thread_starts_with_the_first_call_and_ends_with_the_pool(pool: TaskPool) -> None:
    assert pool.map(tasks.square, range(100)) == [number * number for number in range(100)]
    assert not caller_threads()
    seen: list[threading.Thread] = []
    for number in range(20):
        pool.apply_async(tasks.square, (number,), callback=lambda _: seen.append(threading.current_thread()))
        pool.submit(tasks.square, number).wait(PATIENCE)
    pool.close()
    assert pool.join(PATIENCE)
    assert len(seen) == 20
    assert [thread.name[-7:] for thread in set(seen)] == ["-caller"]
    assert not caller_threads()


def test_callbacks_are_called_in_the_order_of_the_outcomes(tmp_path: Path) -> None:
    """Also if the task ends before its callback is added."""
    called: list[int] = []
    with TaskPool(1, context="fork") as pool:
        gate = tmp_path / "gate"
        pool.submit(tasks.wait_for_file, str(gate))

        def note(handle: TaskHandle[int]) -> None:
            called.append(handle.result())

        handles = [pool.submit(tasks.echo, number) for number in range(200)]
        for handle in handles[:100]:
            handle.add_done_callback(note)  # type: ignore[arg-type]  # it is one of ours
        gate.touch()
        # Wait for all of them together. One by one, two threads would fetch outcomes, and each would pass on
        # its own.
        concurrent.futures.wait(handles, PATIENCE)
        for handle in handles[100:]:
            handle._call_back(note)  # type: ignore[arg-type]  # it is one of ours
    assert called == list(range(200))


def test_callbacks_are_called_even_if_their_thread_cannot_be_started(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("-caller"):
            raise RuntimeError("can't start new thread")
        start(thread)

    called: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.apply_async(tasks.echo, (0,), callback=called.append)
        wait_until(lambda: called, "the first is called")
    for number in range(1, 20):
        pool.apply_async(tasks.echo, (number,), callback=called.append)
    pool.close()
    assert pool.join(PATIENCE)
    assert sorted(called) == list(range(20))
    assert not caller_threads()


def test_a_child_that_a_callback_forks_leaves_the_other_callbacks_to_its_parent(
    pool: TaskPool, tmp_path: Path
) -> None:
    """If the child went on with the callbacks, they would be called twice, and it would never end."""
    calls = tmp_path / "calls"
    begun, ready = threading.Event(), threading.Event()
    children: list[int] = []

    def fork(_result: object) -> None:
        begun.set()
        assert ready.wait(PATIENCE)
        pid = os.fork()
        if pid:
            children.append(pid)

    def note(_result: object) -> None:
        with calls.open("a") as file:
            print(os.getpid(), file=file)

    pool.apply_async(tasks.square, (3,), callback=fork)
    assert begun.wait(PATIENCE)
    handles = [pool.apply_async(tasks.square, (number,), callback=note) for number in range(3)]
    for handle in handles:
        handle.wait(PATIENCE)
    ready.set()
    wait_until(lambda: children, "it has forked")
    try:
        wait_until(lambda: os.waitpid(children[0], os.WNOHANG)[0], "the child has ended")
    except AssertionError:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        raise
    pool.close()
    assert pool.join(PATIENCE)
    assert calls.read_text().split() == [str(os.getpid())] * 3


# -- a callback that hangs -----------------------------------------------------------------------------------


def test_terminate_does_not_wait_for_a_callback_even_if_close_was_waiting_for_it(hanging: Slow) -> None:
    """After `close` the end waits for callbacks. `terminate` must overrule that, or `join` never returns."""
    pool = TaskPool(1, context="fork")
    begin_callback(pool, hanging)
    pool.close()
    # The last thread of the pool now waits for the callback.
    assert not pool.join(0.3)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert not hanging.go_on.is_set()


def test_terminate_does_not_wait_for_a_log_handler_that_hangs(
    hanging: Slow, slow_logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool warns that it does not wait; its logger has the same handler, and must not hang in it."""
    handler = logging.getLogger(slow_logger).handlers[0]
    monkeypatch.setattr(logging.getLogger("mpkit.pool"), "handlers", [handler])
    pool = TaskPool(1, context="fork")
    begin_handling(pool, hanging, slow_logger)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert not hanging.go_on.is_set()


def test_a_lost_worker_is_replaced_although_a_log_handler_hangs(
    hanging: Slow, slow_logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's own message about the worker must not be logged in the thread that replaces the worker."""
    monkeypatch.setattr(_worker_outbox.Outbox, "put_log", lambda self, _record: self.put(b"torn"))
    handler = logging.getLogger(slow_logger).handlers[0]
    monkeypatch.setattr(logging.getLogger("mpkit.pool"), "handlers", [handler])
    with TaskPool(1, context="fork") as pool:
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            pool.submit(tasks.log, slow_logger, "text").result(PATIENCE)
        assert hanging.begun.wait(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert not hanging.go_on.is_set()
        hanging.go_on.set()


# -- log handlers that are slower than the workers -----------------------------------------------------------


def log_much(name: str, times: int) -> None:
    for number in range(times):
        logging.getLogger(name).warning("record %d", number)


class Counting(logging.Handler):
    """Notes, at each record, how many calls are waiting."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        super().__init__()
        self._waiting = waiting
        self.numbers: list[int] = []

    def emit(self, _record: logging.LogRecord) -> None:
        self.numbers.append(self._waiting())


def test_records_that_wait_for_their_handlers_do_not_fill_the_memory(
    slow: Slow, slow_logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that log faster than handlers work must be slowed down."""
    monkeypatch.setattr(_caller, "_MOST_CALLS", 10)
    monkeypatch.setattr(_caller, "_FEW_CALLS", 5)
    # Normally a task goes on logging after a short wait. Here it must wait as long as it takes.
    monkeypatch.setattr(_worker_outbox, "_LATE_SECONDS", PATIENCE)
    with TaskPool(1, context="fork") as pool:
        counting = Counting(pool._engine.collector._caller._calls.qsize)
        logging.getLogger(slow_logger).addHandler(counting)
        handle = pool.submit(log_much, slow_logger, 5000)
        wait_until(lambda: pool._engine.board.words[LOGS_LATE], "the worker is told")
        slow.go_on.set()
        handle.result(PATIENCE)
        pool.close()
        assert pool.join(PATIENCE)
    logging.getLogger(slow_logger).removeHandler(counting)
    assert len(counting.numbers) == 5000
    # Besides `_MOST_CALLS`, there may be as many as the outbox holds.
    assert max(counting.numbers) < 2000


def test_a_task_that_logs_goes_on_although_no_record_is_handled(
    hanging: Slow, slow_logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler may be waiting for this very task, so the task must not wait for the handler for ever."""
    monkeypatch.setattr(_caller, "_MOST_CALLS", 10)
    monkeypatch.setattr(_worker_outbox, "_LATE_SECONDS", 0.01)
    with TaskPool(1, context="fork") as pool:
        begin_handling(pool, hanging, slow_logger)
        pool.submit(log_much, slow_logger, 20).result(PATIENCE)
        assert pool._engine.board.words[LOGS_LATE]
        pool.submit(log_much, slow_logger, 10).result(PATIENCE)
        hanging.go_on.set()
