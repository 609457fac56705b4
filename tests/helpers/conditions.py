"""A condition variable whose acquisition is interrupted at the worst possible moment."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mpkit._platform.hints import override

__all__ = ["Alarm", "InterruptedCondition"]


class Alarm(BaseException):
    """Stands for the exception that a signal handler raises."""


class InterruptedCondition(threading.Condition):
    """Raises `Alarm` right after it has been acquired, like a signal handler in the main thread.

    From Python 3.14 on, a handler may also run between the ``__enter__`` of a ``with`` statement and its
    block. Then ``__exit__`` is not called, and nothing releases the condition.
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
        """Whether another thread can acquire it."""
        found: list[bool] = []

        def look() -> None:
            found.append(self._take(False))
            if found[0]:
                self.release()

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]
