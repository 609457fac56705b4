"""The progress bar. Its failures must not affect the map."""

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import Any, cast

import pytest
from tqdm import tqdm

from mpkit.pool._engine.progress import Progress
from tests.helpers.waiting import PATIENCE, wait_until


class _Terminal(io.StringIO):
    """A terminal that can be closed."""

    is_gone = False

    def write(self, text: str) -> int:
        if self.is_gone:
            raise BrokenPipeError(32, "nobody reads it")
        return super().write(text)


def terminal_of(monkeypatch: pytest.MonkeyPatch, *, is_gone: bool = False) -> _Terminal:
    """Replace standard error by a terminal. (Not in a fixture, because pytest replaces it after those.)"""
    terminal = _Terminal()
    terminal.is_gone = is_gone
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def shown_at_once(progress: Progress) -> None:
    """Make the bar show each step at once."""
    bar = vars(progress)["_bar"]
    bar.mininterval = bar.miniters = 0


def check_that_other_threads_can_show_bars() -> None:
    found: list[bool] = []
    # The type stubs do not declare its type.
    lock = cast("Any", tqdm).get_lock()

    def show() -> None:
        with lock:
            found.append(True)

    # A daemon thread, so that the interpreter can end even if the test fails.
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found


def test_a_progress_bar_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    progress = Progress(True, 3, "work")
    shown_at_once(progress)
    progress.step(1)
    progress.step(2)
    progress.close()
    progress.close()
    progress.step(1)
    assert not progress.is_shown
    assert "3/3" in terminal.getvalue()


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_terminal_that_goes_away_is_reported_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    terminal = terminal_of(monkeypatch, is_gone=when == "before")
    progress = Progress(True, 3, "work")
    if when != "before":
        shown_at_once(progress)
        progress.step(1)
    terminal.is_gone = when != "after"
    progress.step(2)
    terminal.is_gone = True
    progress.close()
    wait_until(lambda: bool(caplog.records), "it is reported")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    check_that_other_threads_can_show_bars()


@pytest.mark.parametrize("name", ["update", "close"])
def test_errors_of_the_bar_are_not_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    terminal_of(monkeypatch)
    progress = Progress(True, 3, "work")
    with monkeypatch.context() as patch:
        patch.setattr(type(vars(progress)["_bar"]), name, fail)
        progress.step(1)
        progress.step(1)
        progress.close()
    assert not progress.is_shown
    wait_until(lambda: bool(caplog.records), "it is reported")
    assert len(caplog.records) == 1


def test_a_log_handler_that_hangs_does_not_hold_up_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the collector thread would hang, and with it everybody who waits for a task."""
    told, go_on, returned = threading.Event(), threading.Event(), threading.Event()

    class Handler(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            told.set()
            go_on.wait(PATIENCE)
            returned.set()

    handler, logger = Handler(), logging.getLogger("mpkit.pool")
    logger.addHandler(handler)
    try:
        terminal_of(monkeypatch, is_gone=True)
        Progress(True, 3, "work").step(1)
        assert told.wait(PATIENCE)
        assert not returned.is_set()
        check_that_other_threads_can_show_bars()
    finally:
        go_on.set()
        logger.removeHandler(handler)
