"""Back-pressure: the threads that wait in `submit` while too many tasks wait (`max_pending`)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.ledger import Task

#: The longest sleep of a thread that waits, before it looks without having been told to.
_SLICE_SECONDS = 1.0


Place = NamedTuple("Place", [("thread", int), ("condition", threading.Condition)])
"""The place in the line of one task that cannot be submitted yet; the thread sleeps at the condition."""


class _OfThread(threading.local):
    """What a thread sleeps at: one condition, also where a signal handler that comes meanwhile waits, too."""

    condition: threading.Condition | None = None


class Room:
    """The room for tasks that wait, and who waits for it: whoever came first goes first.

    Only who is first is told of room, and tells the next one when it goes. Were all of them told each time, a
    thousand threads would wake for every task.

    Args:
        dispatcher: whose queue it is, and whose lock is held in all methods but `leave`.
        most: tasks that may wait.
    """

    def __init__(self, dispatcher: Dispatcher, most: int) -> None:
        self._dispatcher = dispatcher
        self._most = most
        self._mine = _OfThread()
        #: Who waits, by what is to be submitted; who came first first.
        self.waiting: dict[Task, Place] = {}
        dispatcher.on_room = self.notify

    def is_short(self) -> bool:
        """Whether whoever comes now has to wait."""
        return bool(self.waiting) or self._dispatcher.ledger.queued >= self._most

    def wait(self, task: Task, check: Callable[[], object]) -> None:
        """Wait for room for a task.

        Args:
            task: what is to be submitted.
            check: raises when there will be none any more.
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
        """Nobody waits for room for this task any more, if anybody did."""
        if self.waiting.pop(task, None) is not None and self._dispatcher.lock.is_owned():
            self.notify()

    def notify(self) -> None:
        """Whoever is first looks again, if there is room."""
        if self.waiting and self._dispatcher.ledger.queued < self._most:
            self._first().condition.notify_all()

    def notify_all(self) -> None:
        """Whoever waits looks again, whether there is room or not."""
        for place in self.waiting.values():
            place.condition.notify_all()

    def _first(self) -> Place:
        return next(iter(self.waiting.values()))
