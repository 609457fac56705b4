"""Back-pressure: the threads that wait in `submit` while too many tasks wait (`max_pending`)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from mpkit.pool._dispatcher import Dispatcher


class Room:
    """The room for tasks that wait, and who waits for it: whoever came first goes first.

    Args:
        dispatcher: whose queue it is, and whose lock is held in all methods but `leave`.
        most: tasks that may wait.
    """

    def __init__(self, dispatcher: Dispatcher, most: int) -> None:
        self._dispatcher = dispatcher
        self._most = most
        self.condition: threading.Condition = threading.Condition(dispatcher.lock.raw)
        #: The threads that wait, who came first first.
        self.waiting: deque[int] = deque()
        dispatcher.on_room = self.notify

    def is_short(self) -> bool:
        """Whether whoever comes now has to wait."""
        return bool(self.waiting) or self._dispatcher.ledger.queued >= self._most

    def wait(self, check: Callable[[], object]) -> None:
        """Wait for room.

        Args:
            check: raises when there will be none any more.
        """
        ticket = threading.get_ident()
        self.waiting.append(ticket)
        while self.waiting[0] != ticket or self._dispatcher.ledger.queued >= self._most:
            self.condition.wait(1.0)
            check()
        self.leave()

    def leave(self) -> None:
        """This thread waits for room no more, if it did."""
        if threading.get_ident() in self.waiting:
            self.waiting.remove(threading.get_ident())
            if self._dispatcher.lock.is_owned():
                self.notify()

    def notify(self) -> None:
        """Whoever waits looks again."""
        if self.waiting:
            self.condition.notify_all()
