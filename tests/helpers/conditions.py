"""A condition whose taking is interrupted, at the worst of moments."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mpkit._platform.hints import override

__all__ = ["Alarm", "InterruptedCondition"]


class Alarm(BaseException):
    """What the handler of a signal raises."""


class InterruptedCondition(threading.Condition):
    """As in the main thread: a signal's handler raises when it has just been taken.

    From Python 3.14 on that may also come between the taking of a ``with`` statement and its block, which
    then gives nothing back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._take: Callable[..., bool] = self.acquire
        self.acquire = self._take_and_raise  # type: ignore[method-assign]

    def _take_and_raise(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._take(blocking, timeout):
            raise Alarm
        return False

    @override
    def __enter__(self) -> bool:
        return self._take_and_raise()

    def is_free(self) -> bool:
        """Whether another thread can have it."""
        found: list[bool] = []

        def look() -> None:
            found.append(self._take(False))
            if found[0]:
                self.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]
