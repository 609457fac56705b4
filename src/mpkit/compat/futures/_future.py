"""The future of an executor: the handle of a task that behaves like a future of `concurrent.futures`.

In the standard library, a single thread fetches each outcome, wakes those that wait for it, and calls the
callbacks. A waiting thread hardly ever gets ahead of the callbacks, and programs rely on that: they collect
results in callbacks, or update a progress bar there (tqdm), and expect all of this to be done after `wait` or
the last `result`. In mpkit, callbacks have a thread of their own. So it is this thread that wakes `wait` and
`as_completed`; and `result` and `cancel` wait a little for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from mpkit._platform.hints import override
from mpkit._platform.threads.deadlines import not_negative
from mpkit.compat._errors import executor_error
from mpkit.pool import TaskHandle
from mpkit.pool._handle import is_of_asyncio

R = TypeVar("R")

#: How long `result` and `cancel` wait for callbacks. Not longer, because a callback may need a lock that the
#: waiting thread holds.
_HEAD_START_SECONDS: Final = 0.1


class ExecutorFuture(TaskHandle[R]):
    """The handle of a task, with the timeouts, errors and order of events of `concurrent.futures`."""

    #: Set when its callbacks have returned; None: it has none, or they need not be waited for any more.
    _called: threading.Event | None = None

    @override
    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        if not (self._called or self.done() or is_of_asyncio(fn)):
            self._called = threading.Event()
        super().add_done_callback(fn)

    @override
    def cancel(self) -> bool:
        cancelled = super().cancel()
        self._wait_for_callbacks(None)
        return cancelled

    @override
    def result(self, timeout: float | None = None) -> R:
        timeout = not_negative(timeout)
        try:
            return super().result(timeout)
        finally:
            self._wait_for_callbacks(timeout)

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        timeout = not_negative(timeout)
        try:
            return super().exception(timeout)
        finally:
            self._wait_for_callbacks(timeout)

    def _wait_for_callbacks(self, timeout: float | None) -> None:
        called = self._called
        # Not in a callback, which would wait for itself, or for callbacks that come after it.
        if called is not None and self.done() and not self._engine.collector.is_current_thread():
            called.wait(_HEAD_START_SECONDS if timeout is None else min(timeout, _HEAD_START_SECONDS))
            self._called = None

    @override
    def _tell(self, *, again: bool = False) -> None:
        collector = self._engine.collector
        if self._due is not None and self._due[1]:
            collector.unwatch(self)
            collector.call_back(self._tell_and_call)
        else:
            super()._tell(again=again)

    def _tell_and_call(self) -> None:
        assert self._due is not None  # it is set before `_tell` is called
        of_asyncio, others = self._due
        self._due = of_asyncio, []
        super()._tell(again=True)
        self._call_all(others)
        if self._called is not None:
            self._called.set()

    @override
    def _outcome(self) -> tuple[R | None, BaseException | None]:
        value, error = super()._outcome()
        return value, executor_error(error)
