"""Back-pressure: threads wait in `submit` while too many tasks are queued (`max_pending`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.ledger import Task

#: How long a waiting thread sleeps before it checks for room without having been notified.
_SLICE_SECONDS = 1.0


Place = NamedTuple("Place", [("thread", int), ("condition", threading.Condition)])
"""The place in the line of one task that cannot be submitted yet; its thread sleeps on the condition."""


class _OfThread(threading.local):
    """The condition that a thread sleeps on: only one, even if a signal handler interrupts its wait and
    waits, too.
    """

    condition: threading.Condition | None = None


class Room:
    """The room for queued tasks, and the line of threads that wait for it: first come, first served.

    Only the first thread in the line is notified of room, and it notifies the next one when it leaves. If all
    of them were notified each time, a thousand threads would wake up for every task.

    Args:
        dispatcher: the owner of the queue. Its lock has to be held in all methods but `leave`.
        most: how many tasks may be queued.
    """

    def __init__(self, dispatcher: Dispatcher, most: int) -> None:
        self._dispatcher = dispatcher
        self._most = most
        self._mine = _OfThread()
        #: The line of waiting threads, by the task that each wants to submit.
        self.waiting: dict[Task, Place] = {}
        dispatcher.on_room = self.notify

    def is_short(self) -> bool:
        """Whether a thread that wants to submit a task now has to wait."""
        return bool(self.waiting) or self._dispatcher.ledger.queued >= self._most

    def wait(self, task: Task, check: Callable[[], object]) -> None:
        """Wait for room for a task.

        Args:
            task: the task to be submitted.
            check: raises an exception once there will never be room again. Called after each wake-up.
        """
        condition = self._mine.condition
        if condition is None:
            condition = self._mine.condition = threading.Condition(self._dispatcher.lock.raw)
        me = threading.get_ident()
        self.waiting[task] = Place(me, condition)
        while self._first().thread != me or self._dispatcher.ledger.queued >= self._most:
            condition.wait(_SLICE_SECONDS)
            check()
        self.leave(task)

    def leave(self, task: Task) -> None:
        """Remove a task from the line, if it is there. May be called without the lock."""
        if self.waiting.pop(task, None) is not None and self._dispatcher.lock.is_owned():
            self.notify()

    def notify(self) -> None:
        """If there is room, wake the first thread in the line."""
        if self.waiting and self._dispatcher.ledger.queued < self._most:
            self._first().condition.notify_all()

    def notify_all(self) -> None:
        """Wake all waiting threads, whether there is room or not, to have them call `check`."""
        for place in self.waiting.values():
            place.condition.notify_all()

    def _first(self) -> Place:
        return next(iter(self.waiting.values()))
