"""What a lazy map knows about outcomes that have not reached it yet."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest

from mpkit.pool import _imap_sink
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.ledger import Chunk, Task
from mpkit.pool._engine.progress import Progress
from mpkit.pool._imap_sink import ImapSink
from mpkit.pool._lazy_map import LazyMap
from mpkit.pool._protocol.channel import PART, VALUE
from tests.helpers.conditions import Alarm, InterruptedCondition
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE


def chunk_of(sink: ImapSink, start: int, stop: int) -> Chunk:
    return Chunk(10 * start + stop, sink, b"", Function("f", b""), None, 0, None, start, stop)


def task_of(sink: ImapSink, start: int, _stop: int) -> Task:
    return Task(start, sink, b"", Function("f", b""), None, 0, None)


def a_part(first: int, length: int) -> tuple[int, int, bytes, int]:
    return first, VALUE, b"", length


@pytest.fixture(params=[True, False], ids=["ordered", "unordered"])
def sink(request: pytest.FixtureRequest) -> ImapSink:
    return ImapSink(Mock(), Progress(False, None, ""), None, ordered=request.param)


def test_a_part_that_another_thread_is_bringing_is_waited_for(sink: ImapSink) -> None:
    chunk = chunk_of(sink, 0, 4)
    sink._sent(chunk)
    # Two threads bring parts with the first items. One of them is slow, so the end comes before its part.
    chunk.done = 3
    sink._settle(chunk, VALUE, b"")
    sink._settle(chunk, PART, a_part(0, 2))
    while sink.has_next():
        sink.take()
    assert not sink.is_idle()
    sink._settle(chunk, PART, a_part(2, 1))
    while sink.has_next():
        sink.take()
    assert sink.is_idle()


def test_it_is_waited_for_even_if_the_worker_has_died_meanwhile(sink: ImapSink) -> None:
    chunk = chunk_of(sink, 0, 4)
    sink._sent(chunk)
    chunk.done = 2
    piece = chunk_of(sink, 2, 4)
    sink.split(chunk, [piece])
    sink._settle(piece, VALUE, b"")
    assert not sink.is_idle()
    sink._settle(chunk, PART, a_part(0, 2))
    while sink.has_next():
        sink.take()
    assert sink.is_idle()


def test_all_parts_may_be_there_when_the_worker_dies(sink: ImapSink) -> None:
    chunk = chunk_of(sink, 0, 4)
    sink._sent(chunk)
    chunk.done = 2
    sink._settle(chunk, PART, a_part(0, 2))
    piece = chunk_of(sink, 2, 4)
    sink.split(chunk, [piece])
    sink._settle(piece, VALUE, b"")
    while sink.has_next():
        sink.take()
    assert sink.is_idle()


def test_pieces_of_a_chunk_whose_map_has_been_closed_are_cancelled(sink: ImapSink) -> None:
    """Nobody will ask for their results."""
    chunk = chunk_of(sink, 0, 4)
    sink._sent(chunk)
    pieces = [chunk_of(sink, 0, 1), chunk_of(sink, 1, 4)]
    sink.close()
    sink.split(chunk, pieces)
    cancelled: Any = vars(sink)["_engine"].submission.cancel_later
    assert cancelled.call_args.args == (pieces,)
    for piece in pieces:
        sink._settle(piece, VALUE, b"")
    assert not sink.has_next()
    assert sink.is_idle()


def test_nothing_is_taken_twice(sink: ImapSink) -> None:
    chunk = chunk_of(sink, 0, 2)
    sink._sent(chunk)
    for _ in range(2):
        sink._settle(chunk, PART, a_part(0, 1))
    chunk.done = 1
    for _ in range(2):
        sink._settle(chunk, VALUE, b"")
    taken = 0
    while sink.has_next():
        taken += sink.take()[0]
    assert taken == 2
    assert sink.is_idle()


def test_the_map_is_settled_only_after_the_last_outcome_was_brought(
    sink: ImapSink,
) -> None:
    chunk = chunk_of(sink, 0, 2)
    sink._sent(chunk)
    seen: list[tuple[bool, bool]] = []
    arrive = sink._arrive

    def arrive_and_be_taken(*outcome: Any, **of_chunk: bool) -> None:
        arrive(*outcome, **of_chunk)
        # Like another thread that takes the outcome at once, and asks for the next one.
        sink.take()
        seen.append((sink.is_idle(), sink._is_settled()))

    sink._arrive = arrive_and_be_taken  # type: ignore[method-assign, assignment]
    sink._settle(chunk, VALUE, b"")
    assert seen == [(False, False)]
    assert sink._is_settled()


def test_an_interrupt_while_waiters_are_notified_leaves_the_condition_free(sink: ImapSink) -> None:
    """Otherwise the collector thread would wait for the condition for ever."""
    condition = sink._made_condition = InterruptedCondition()
    chunk = chunk_of(sink, 0, 2)
    sink._sent(chunk)
    with pytest.raises(Alarm):
        sink._settle(chunk, VALUE, b"")
    assert condition.is_free()


@needs_a_trace_that_raises
@pytest.mark.skipif(sys.platform == "win32", reason="the signal")
@pytest.mark.parametrize("made", [chunk_of, task_of])
def test_an_exception_of_a_signal_handler_leaves_nothing_to_wait_for(
    sink: ImapSink, made: Callable[[ImapSink, int, int], Task]
) -> None:
    """Otherwise the map would wait for ever for an outcome that does not come."""

    def on_signal(_signum: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        for step in itertools.count():
            task = made(sink, 0, 1)
            sink._sent(task)
            interrupted = interrupt_at(
                step,
                partial(sink._settle, task, VALUE, b""),
                traced=("_imap_sink.py",),
                signum=signal.SIGUSR1,
                raises=Alarm,
            )
            # The collector thread delivers the outcome.
            sink._settle(task, VALUE, b"")
            while sink.has_next():
                sink.take()
            # The item itself may be lost.
            sink.next = sink.sent_items
            assert sink.is_idle(), f"interrupted at step {step}"
            if not interrupted:
                break
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_all_threads_that_wait_for_a_lazy_map_are_notified(sink: ImapSink) -> None:
    task = task_of(sink, 0, 1)
    sink._sent(task)
    waiting, notified = threading.Semaphore(0), threading.Semaphore(0)

    def wait() -> None:
        condition = sink._ensure_condition()
        with condition:
            waiting.release()
            if condition.wait(PATIENCE):
                notified.release()

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert waiting.acquire(timeout=PATIENCE)
    # They hold the condition until they wait.
    with sink._ensure_condition():
        pass
    sink._settle(task, VALUE, b"")
    for _ in threads:
        assert notified.acquire(timeout=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)


def test_delivering_an_outcome_does_not_wait_for_ever_for_the_condition(
    sink: ImapSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_imap_sink, "CONDITION_SECONDS", 0.05)
    chunk = chunk_of(sink, 0, 2)
    sink._sent(chunk)
    with sink._ensure_condition():
        thread = threading.Thread(target=sink._settle, args=(chunk, VALUE, b""), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert sink.has_next()


def test_at_the_end_of_the_interpreter_a_lazy_map_touches_nothing() -> None:
    # At that time, the globals that it would need are gone.
    lazy: LazyMap[int] = LazyMap.__new__(LazyMap)
    sink = Mock()
    lazy.sink = sink
    lazy.__del__(lambda: True)
    assert not sink.mock_calls
    del lazy
    sink.close.assert_called_once_with()
