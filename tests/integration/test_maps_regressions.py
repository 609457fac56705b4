"""Faults of the maps that were found once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from mpkit import TaskPool
from mpkit.pool import TaskHandle, _maps
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE


@pytest.fixture(scope="module")
def pool() -> Iterator[TaskPool]:
    with TaskPool(2) as pool:
        yield pool


class _Gone:
    """A terminal that is gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(32, "nobody reads it")

    def flush(self) -> None:
        raise BrokenPipeError(32, "nobody reads it")


def test_a_progress_bar_without_a_terminal_keeps_nobody_waiting(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", _Gone())
    handle = pool.map_async(tasks.square, range(8), chunksize=1, progress=True)
    assert handle.result(PATIENCE) == [n * n for n in range(8)]
    assert list(pool.imap(tasks.square, range(8), progress=True)) == [n * n for n in range(8)]


def test_threads_that_ask_for_the_result_together_get_the_same(pool: TaskPool) -> None:
    handle = pool.map_async(tasks.square, range(10), chunksize=3)
    handle.wait(PATIENCE)
    real = _maps._decode
    inside = threading.Event()
    go_on = threading.Event()

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:
        # Wherever it is by now, it has the pieces, or is about to look at them.
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


def test_at_no_step_of_asking_does_another_thread_that_asks_hurt(pool: TaskPool) -> None:
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
    """Ask for the result; at that line of it, another thread asks as well and gets its answer."""
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
