"""Faults of the maps that were found once. Each test checks that one of them does not come back."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest

from mpkit import TaskPool
from mpkit.errors import ClosedError, SerializationError, SharedMemoryExhausted, TaskCancelled
from mpkit.pool import ImapIterator, TaskHandle, _lazy_map, _maps
from mpkit.pool._engine import progress as _progress
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import FRONT, SOON, WANTED
from tests.contract import pool_tasks as tasks
from tests.helpers.collecting import collector_held
from tests.helpers.processes import run_python
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until


@pytest.fixture(scope="module")
def pool() -> Iterator[TaskPool]:
    # The initializer makes each worker import the tasks now: cancelling a task in the middle of an import
    # ends its worker.
    with TaskPool(2, initializer=tasks.nothing) as pool:
        yield pool


class _Gone:
    """The stream of a terminal that has been closed."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "nobody reads it")

    def flush(self) -> None:
        raise BrokenPipeError(32, "nobody reads it")


def test_a_progress_bar_whose_terminal_is_gone_does_not_stop_the_map(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", _Gone())
    handle = pool.map_async(tasks.square, range(8), chunksize=1, progress=True)
    assert handle.result(PATIENCE) == [n * n for n in range(8)]
    assert list(pool.imap(tasks.square, range(8), progress=True)) == [n * n for n in range(8)]


class _WithoutLength:
    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize("progress", [False, True])
def test_the_input_of_imap_may_have_a_len_that_raises(pool: TaskPool, progress: bool) -> None:
    assert list(pool.imap(tasks.square, _WithoutLength(), progress=progress)) == [0, 1, 4, 9, 16]


def test_big_results_are_unpickled_while_other_items_still_run(pool: TaskPool, tmp_path: Path) -> None:
    path = str(tmp_path / "unpickled")
    # If no process touched the file, the second item would wait for ever; the test fails instead.
    late = threading.Timer(PATIENCE, lambda: Path(path).write_text("late"))
    late.start()
    try:
        found = pool.starmap(tasks.touch_in_the_parent_or_wait, [(path, 0), (path, 1)], chunksize=1)
        assert [name for name, _ in found] == [path, path]
        assert Path(path).read_text() == ""
    finally:
        late.cancel()


def test_threads_that_call_result_at_the_same_time_get_the_same_object(pool: TaskPool) -> None:
    handle = pool.map_async(tasks.square, range(10), chunksize=3)
    handle.wait(PATIENCE)
    real = _maps._decode
    inside = threading.Event()
    go_on = threading.Event()

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        # At this point the thread has the pieces of the result, or is about to look at them.
        if frame.f_code is real.__code__:
            inside.set()
            assert go_on.wait(PATIENCE)
        return None

    found: list[list[int]] = []

    def ask() -> None:
        sys.settrace(trace)
        found.append(handle.result())

    thread = threading.Thread(target=ask)
    thread.start()
    assert inside.wait(PATIENCE)
    first = handle.result()
    go_on.set()
    thread.join(PATIENCE)
    assert first == [n * n for n in range(10)]
    assert found[0] is first
    assert handle.result() is first


def test_result_is_right_if_another_thread_calls_it_at_any_step(pool: TaskPool) -> None:
    for step in range(50):
        handle = pool.map_async(tasks.square, range(4), chunksize=2)
        handle.wait(PATIENCE)
        found = ask_with_another_at(step, handle)
        assert found == [[0, 1, 4, 9]] * len(found)
        assert all(one is found[0] for one in found)
        if len(found) == 1:
            break
    assert step > 3


def ask_with_another_at(step: int, handle: TaskHandle[list[int]]) -> list[list[int]]:
    """Call `result`; at line number `step` of it, another thread calls it as well, and gets its answer."""
    found: list[list[int]] = []
    left = step

    def local(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal left
        if event == "line":
            if left == 0:
                thread = threading.Thread(target=lambda: found.append(handle.result()))
                thread.start()
                thread.join(PATIENCE)
            left -= 1
        return local

    code = _maps.MapHandle._outcome.__code__
    before = sys.gettrace()
    sys.settrace(lambda frame, _event, _arg: local if frame.f_code is code else None)
    try:
        found.append(handle.result())
    finally:
        sys.settrace(before)
    return found


def outcomes_of(results: Iterator[Any]) -> list[Any]:
    """Return the results, with the class of the error for each item that failed."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except BaseException as error:
            found.append(type(error))


def iterator_of(pool: TaskPool, items: Any, *, ordered: bool = True, **options: Any) -> ImapIterator[Any]:
    return (pool.imap if ordered else pool.imap_unordered)(tasks.echo, items, **options)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_iterator_that_is_dropped_cancels_what_it_has_not_delivered(
    pool: TaskPool, tmp_path: Path, ordered: bool
) -> None:
    gate, never = tmp_path / "gate", tmp_path / "never"
    before = pool.statistics()
    items = map(str, [gate, *[never] * 30])
    results = (pool.imap if ordered else pool.imap_unordered)(tasks.wait_for_file, items)
    # Have the whole input read: by itself, an iterator may stop reading when a result is there.
    results.read_all()
    gate.touch()
    assert next(results) == str(gate)
    del results
    wait_until(lambda: pool.statistics().cancelled == before.cancelled + 30, "they are cancelled")
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_the_progress_bar_of_a_dropped_iterator_is_closed(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()
    monkeypatch.setattr(_progress.Progress, "close", lambda _self: closed.set())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    results = pool.imap(tasks.square, range(8), progress=True)
    assert next(results) == 0
    del results
    assert closed.wait(PATIENCE)


def test_the_progress_bar_of_a_kept_iterator_is_closed_with_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it is drawn again while the interpreter shuts down, which crashes CPython 3.13.0."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with TaskPool(1) as pool:
        results = pool.imap(tasks.hang_unless_zero, ["0", "1", "2"], progress=True)
        assert next(results) == "0"
        pool.terminate()
    assert not results._lazy._progress.is_shown
    with pytest.raises(TaskCancelled):
        next(results)
    # Cancelled items do not count as done.
    assert shown.getvalue().rstrip().rpartition("| ")[2].startswith("1/3 ")
    assert shown.getvalue().endswith("\n")


class Interrupted(BaseException):
    """What a signal handler raises."""


def test_an_exception_while_a_bar_is_drawn_does_not_block_other_bars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the lock shared by all bars stayed taken, the pool's threads would wait for ever to draw theirs."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress: Any = _progress.Progress(True, 3, "one")
    progress._bar.mininterval = progress._bar.miniters = 0
    with monkeypatch.context() as patch:
        patch.setattr(_progress._bar_class(), "display", Mock(side_effect=Interrupted))
        with pytest.raises(Interrupted):
            progress.step(1)
    thread = threading.Thread(target=lambda: _progress.Progress(True, 3, "two").close(), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    progress.close()


def test_the_progress_bar_of_a_map_does_not_count_cancelled_items(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with TaskPool(1) as pool:
        results: Any = pool.map_async(tasks.hang_unless_zero, ["0", "1", "2"], 1, progress=True)
        wait_until(lambda: results.done() or results._progress._bar.n == 1, "the first one is shown")
        pool.terminate()
    with pytest.raises(TaskCancelled):
        results.result(PATIENCE)
    assert shown.getvalue().rstrip().rpartition("| ")[2].startswith("1/3 ")
    assert shown.getvalue().endswith("\n")


def test_closing_an_iterator_again_does_nothing(pool: TaskPool) -> None:
    results = iterator_of(pool, range(600))
    assert next(results) == 0
    for _ in range(2):
        results.close()
        assert list(results) == []
    cancelled = pool.statistics().cancelled
    del results
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert pool.statistics().cancelled >= cancelled


def test_the_end_of_an_iterators_with_block_cancels_what_it_has_not_delivered(pool: TaskPool) -> None:
    with iterator_of(pool, range(600)) as results:
        assert next(results) == 0
    assert list(results) == []
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 2, 4, 100])
@pytest.mark.parametrize("buffersize", [2, None])
def test_an_item_that_cannot_be_pickled_is_the_only_one_that_fails(
    pool: TaskPool, ordered: bool, chunksize: int, buffersize: int | None
) -> None:
    bad = tasks.Unpicklable()
    items = [bad, 1, 2, bad, bad, 5, 6, 7, bad]
    expected = [SerializationError if item is bad else item for item in items]
    for source in (items, iter(items)):
        results = iterator_of(pool, source, ordered=ordered, chunksize=chunksize, buffersize=buffersize)
        found = outcomes_of(results)
        assert found == expected if ordered else Counter(found) == Counter(expected)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_slow_input_delays_a_ready_result_by_at_most_one_chunk(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, ordered: bool, chunksize: int
) -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    # As if reading one item took longer than the time for reading ahead.
    monkeypatch.setattr(_lazy_map, "_READ_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(pool._engine.dispatcher, "has_outcomes", lambda: True)
        results = iterator_of(pool, numbers(), ordered=ordered, chunksize=chunksize)
    assert len(read) == chunksize
    assert pool._engine.lead.wait_for(results._lazy.sink, PATIENCE)
    next(results)
    assert len(read) == 2 * chunksize
    results.close()


def test_a_function_that_cannot_be_pickled_is_refused_in_the_call(pool: TaskPool) -> None:
    with pytest.raises(SerializationError):
        pool.imap(lambda item: item, [1])


@pytest.mark.parametrize("ordered", [True, False])
def test_results_of_sent_items_come_before_the_error_of_a_closed_pool(ordered: bool) -> None:
    with TaskPool(2) as pool:
        results = iterator_of(pool, iter(range(1000)), ordered=ordered, buffersize=100)
        first = next(results)
        sent = pool.statistics().submitted
    found = [first, *outcomes_of(results)]
    assert found[-1] is ClosedError
    assert sorted(found[:-1]) == list(range(sent))
    assert list(results) == []
    with pytest.raises(ClosedError):
        pool.imap(tasks.square, [])


@needs_a_trace_that_raises
@pytest.mark.parametrize("ordered", [True, False])
def test_after_ctrl_c_at_any_step_the_iteration_can_be_finished(
    pool: TaskPool, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If Ctrl-C comes in a destructor (of the iterator before), Python only reports it and goes on.
    monkeypatch.setattr(sys, "unraisablehook", lambda _report: None)
    for step in range(0, 2000, 7):
        results = iterator_of(pool, iter(range(6)), ordered=ordered, buffersize=2)
        found: list[int] = []
        reached = interrupt_at(step, lambda: found.extend(results))  # noqa: B023  called at once
        found.extend(results)
        assert len(set(found)) == len(found)
        if not reached:
            break
    assert step > 20


@pytest.mark.parametrize("function", [tasks.interrupt_itself_if_odd, tasks.interrupts_when_pickled_if_odd])
@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_a_task_that_raises_keyboard_interrupt_fails_only_its_own_item(
    pool: TaskPool, function: Callable[[int], Any], chunksize: int
) -> None:
    # Short items are sent in groups once they are known to be short.
    list(pool.imap(function, [0] * 50))
    found = outcomes_of(pool.imap(function, range(20), chunksize=chunksize))
    assert found == [KeyboardInterrupt if number % 2 else number for number in range(20)]


@pytest.mark.parametrize("function", [tasks.touch_and_wait, tasks.touch_and_fail_when_interrupted])
def test_a_cancelled_chunk_begins_no_further_item(
    pool: TaskPool, tmp_path: Path, function: Callable[[str], None]
) -> None:
    started = pool.statistics().workers_started
    paths = [tmp_path / str(number) for number in range(3)]
    handle = pool.map_async(function, map(str, paths), chunksize=3)
    wait_until(paths[0].exists, "it has begun")
    assert handle.cancel()
    wait_until(lambda: pool.statistics().running == 0, "it is stopped")
    assert not paths[1].exists()
    assert pool.statistics().workers_started == started


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_failed_map_counts_for_wait_first_exception(pool: TaskPool, tmp_path: Path, size: int) -> None:
    gate, never = tmp_path / "gate", tmp_path / "never"
    other = pool.submit(tasks.wait_for_file, str(never))
    works = pool.map_async(tasks.echo, [bytes(size)] * 4, chunksize=2)
    fails = pool.map_async(functools.partial(tasks.fail_after, str(gate)), range(4), chunksize=2)
    timer = threading.Timer(0.05, gate.touch)
    timer.start()
    handles: list[TaskHandle[Any]] = [other, works, fails]
    done, not_done = concurrent.futures.wait(handles, PATIENCE, concurrent.futures.FIRST_EXCEPTION)
    assert fails in done
    assert other in not_done
    timer.join()
    never.touch()
    assert other.result(PATIENCE) == str(never)
    assert works.result(PATIENCE) == [bytes(size)] * 4
    assert "failed" in repr(fails)
    assert "finished" in repr(works)


def test_with_big_results_too_it_is_known_whether_an_item_failed(pool: TaskPool, tmp_path: Path) -> None:
    waiter = Mock()
    for number, function in enumerate((tasks.big_or_fail_if_odd, tasks.echo), 1):
        # Both workers wait, so that the map does not end before a waiter is registered.
        gate = tmp_path / str(number)
        for _ in range(2):
            pool.submit(tasks.wait_for_file, str(gate))
        handle = pool.map_async(function, [0, 1], chunksize=2)
        with handle._condition:
            handle._waiters.append(waiter)
        gate.touch()
        handle.wait(PATIENCE)
        # Another thread may have fetched the outcome. It tells the waiter right afterwards.
        wait_until(lambda: len(waiter.method_calls) == number, "the waiter is told")  # noqa: B023  called at once
    assert [call[0] for call in waiter.method_calls] == ["add_exception", "add_result"]


def test_results_are_not_unpickled_to_tell_that_a_map_has_ended(
    pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.Counted, "times", 0)
    # Both workers wait, so that the map does not end before a waiter is registered.
    gate = tmp_path / "gate"
    for _ in range(2):
        pool.submit(tasks.wait_for_file, str(gate))
    handle = pool.map_async(tasks.counted_or_fail_if_odd, range(4), chunksize=2)
    waiter = Mock()
    with handle._condition:
        handle._waiters.append(waiter)
    gate.touch()
    handle.wait(PATIENCE)
    # Another thread may have fetched the outcome. It tells the waiter right afterwards.
    wait_until(lambda: waiter.method_calls, "the waiter is told")
    assert tasks.Counted.times == 0
    with pytest.raises(ValueError, match="1"):
        handle.result()
    assert tasks.Counted.times == 2


@pytest.mark.parametrize("chunksize", [1, 4, 20])
@pytest.mark.parametrize("size", [1, 20_000])
def test_a_result_that_does_not_unpickle_is_the_only_one_that_fails(
    pool: TaskPool, chunksize: int, size: int
) -> None:
    function = functools.partial(tasks.breaks_or_fails, size=size)
    expected: list[Any] = [(number, bytes(size)) for number in range(10)]
    expected[3] = expected[7] = SerializationError
    expected[5] = ValueError
    assert outcomes_of(pool.imap(function, range(10), chunksize=chunksize)) == expected
    found = outcomes_of(pool.imap_unordered(function, range(10), chunksize=chunksize))
    assert Counter(found) == Counter(expected)
    with pytest.raises(SerializationError, match="cannot come back"):
        pool.map(function, range(10), chunksize=chunksize)
    with pytest.raises(ValueError, match="5"):
        pool.map(function, [0, 1, 5, 3], chunksize=chunksize)


class _PicklesEveryOtherTime:
    tries = 0

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.tries += 1
        if self.tries % 2:
            raise OSError("not now")
        return int, (3,)


def fickle_if_three(number: int) -> object:
    return _PicklesEveryOtherTime() if number == 3 else number


@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_a_result_that_pickles_every_other_time_fails_no_other_item(pool: TaskPool, chunksize: int) -> None:
    # Short items of a list are sent in groups once they are known to be short.
    list(pool.imap(fickle_if_three, [0] * 50))
    found = outcomes_of(pool.imap(fickle_if_three, list(range(20)), chunksize=chunksize))
    assert found.pop(3) in (3, SerializationError)
    assert found == [0, 1, 2, *range(4, 20)]


def zeros_or_fail(size: int) -> bytes:
    if size < 0:
        raise ValueError("x" * -size)
    return bytes(size)


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("chunksize", [1, 4, 20])
def test_without_shared_memory_only_the_results_that_need_it_fail(
    monkeypatch: pytest.MonkeyPatch, chunksize: int
) -> None:
    def refuse(*_: object) -> None:
        raise SharedMemoryExhausted("no room", requested_bytes=1)

    monkeypatch.setattr(payload, "_pack", refuse)
    short, long = payload.INLINE_BYTES // 2, payload.INLINE_BYTES
    sizes = [short] * 10
    expected: list[Any] = [bytes(short)] * 10
    sizes[2] = sizes[9] = long
    expected[2] = expected[9] = SharedMemoryExhausted
    # An error that is too long to be sent without shared memory is replaced by a short one.
    sizes[5], expected[5] = -long, SerializationError
    with TaskPool(1, context="fork") as pool:
        list(pool.imap(zeros_or_fail, [0] * 50))
        assert outcomes_of(pool.imap(zeros_or_fail, sizes, chunksize=chunksize)) == expected
        with pytest.raises(SharedMemoryExhausted):
            pool.map(zeros_or_fail, sizes, chunksize=chunksize)
        with pytest.raises(SerializationError, match="a ValueError, cannot be sent: SharedMemoryExhausted"):
            pool.map(zeros_or_fail, [short, -long], chunksize=chunksize)
        with pytest.raises(SerializationError, match="raised ValueError, which cannot be sent: Shared"):
            pool.apply(zeros_or_fail, (-long,))


@pytest.mark.parametrize("chunksize", [1, 4, 20])
@pytest.mark.parametrize("size", [1, 20_000])
def test_an_item_that_does_not_unpickle_is_the_only_one_that_fails(
    pool: TaskPool, chunksize: int, size: int
) -> None:
    items: list[Any] = [bytes([number]) * size for number in range(10)]
    expected = items[:]
    items[2] = items[9] = tasks.Breaks()
    expected[2] = expected[9] = SerializationError
    assert outcomes_of(pool.imap(tasks.echo, items, chunksize=chunksize)) == expected
    # A function that is too big for a record of its own is sent with the items.
    big = functools.partial(tasks.second, bytes(size))
    assert outcomes_of(pool.imap(big, items, chunksize=chunksize)) == expected
    with pytest.raises(SerializationError, match="cannot come back"):
        pool.starmap(tasks.echo, [(item,) for item in items], chunksize=chunksize)


def test_arguments_that_do_not_unpickle_are_the_only_ones_that_fail(pool: TaskPool) -> None:
    handle = pool.starmap_async(tasks.second, [(1, 2), (3, tasks.Breaks()), (5, 6)], chunksize=3)
    with pytest.raises(SerializationError, match="cannot come back"):
        handle.result(PATIENCE)


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("source", [list, iter])
def test_a_function_that_raises_stop_iteration_does_not_end_the_iteration(
    pool: TaskPool, source: Callable[[Any], Any], ordered: bool, chunksize: int
) -> None:
    call = pool.imap if ordered else pool.imap_unordered
    # Short items of a list are sent in groups once they are known to be short.
    list(call(tasks.stop_iteration, [0] * 50))
    found = outcomes_of(call(tasks.stop_iteration, source([0, 1, 2, 1, 4]), chunksize=chunksize))
    expected = [0, RuntimeError, 2, RuntimeError, 4]
    assert found == expected if ordered else Counter(found) == Counter(expected)


def test_results_that_unpickle_only_at_the_second_try_are_returned(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.FailsToUnpickleOnce, "times", 0)
    found = pool.map(tasks.fails_to_unpickle_once, range(8), chunksize=4)
    assert [result.number for result in found] == list(range(8))


@pytest.mark.parametrize("inside", ["count", "bar"])
def test_a_signal_handler_may_fetch_a_chunk_while_another_one_is_recorded(
    pool: TaskPool, tmp_path: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither chunk may be lost, and the progress bar must count each of them once."""
    handled: list[object] = []
    gate = tmp_path / "gate"

    def interrupt(_count: object = None) -> None:
        if not handled and threading.current_thread() is threading.main_thread():
            gate.touch()
            wait_until(pool._engine.dispatcher.has_outcomes, "the outcome of the other chunk is there")
            signal.raise_signal(signal.SIGUSR1)

    bar = Mock()
    monkeypatch.setattr(_progress, "_bar_class", lambda: bar)
    if inside == "bar":
        bar.return_value.update.side_effect = interrupt
    else:
        real = payload.has_failures

        def has_failures(kind: int, data: object) -> bool:
            interrupt()
            return real(kind, data)

        monkeypatch.setattr(payload, "has_failures", has_failures)
    # The handler fetches the second chunk in the middle of recording the first one.
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.append(pool.statistics()))
    at_once = tmp_path / "at once"
    at_once.touch()
    try:
        # The first chunk must be recorded by the main thread: signal handlers run only there.
        with collector_held(pool):
            found = pool.map(tasks.wait_for_file, [str(at_once), str(gate)], chunksize=1, progress=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled
    assert found == [str(at_once), str(gate)]
    assert sum(call.args[0] for call in bar.return_value.update.call_args_list) == 2
    bar.return_value.close.assert_called_once()


def test_a_progress_bar_does_not_fix_the_start_method() -> None:
    program = """
import multiprocessing
from mpkit import TaskPool
if __name__ == "__main__":
    with TaskPool(1) as pool:
        print(pool.map(abs, range(-2, 1), progress=True))
        print(multiprocessing.get_start_method(allow_none=True))
"""
    assert run_python("-c", program).stdout.splitlines() == ["[2, 1, 0]", "None"]


def test_a_thread_that_waits_for_a_map_is_not_woken_for_every_chunk(pool: TaskPool, tmp_path: Path) -> None:
    """Otherwise each of a million chunks would wake the waiting thread."""
    gate = tmp_path / "gate"
    words = pool._engine.board.words
    handle = pool.map_async(tasks.wait_for_file, [str(gate)] * 10, chunksize=1)
    waiter = threading.Thread(target=handle.wait)
    waiter.start()
    try:
        # The second condition is needed because a thread of the pool may have slept there before.
        wait_until(lambda: words[FRONT] and words[WANTED] == SOON, "it sleeps, and not for a single chunk")
    finally:
        gate.touch()
        waiter.join(PATIENCE)
    assert handle.get() == [str(gate)] * 10


@pytest.mark.parametrize("ordered", [True, False])
def test_an_outcome_that_ctrl_c_has_lost_costs_only_its_own_item(pool: TaskPool, ordered: bool) -> None:
    """The outcome counts as delivered: otherwise the iterator would wait for it for ever."""
    start = pool.imap if ordered else pool.imap_unordered
    results = start(tasks.square, range(5), buffersize=1)
    sink = results._lazy.sink

    def has_come() -> bool:
        pool._engine.collector.work()
        return sink.has_next()

    wait_until(has_come, "the first result is there")
    sink.take()
    assert list(results) == [1, 4, 9, 16]


class _Interrupted:
    """An input that Ctrl-C interrupts once, before its fourth item, and that could go on after that."""

    def __init__(self) -> None:
        self.numbers = iter([0, 1, 2, None, 3, 4, 5])

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        number = next(self.numbers)
        if number is None:
            raise KeyboardInterrupt
        return number


def test_after_ctrl_c_in_its_input_a_lazy_map_ends_and_leaves_no_gap(pool: TaskPool) -> None:
    """The item that had been read just before is lost. So what comes after it is not read, either."""
    results = pool.imap(tasks.square, _Interrupted(), chunksize=2, buffersize=2)
    found = [next(results), next(results)]
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert [*found, *results] == [0, 1]
