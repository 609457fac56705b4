"""Deferring the handlers of signals during a fork.

If an exception is raised in one of the hooks that Python calls at a fork (for example those of `logging`,
which release its locks), it is only printed, and the rest of the hook is skipped. So if a signal handler
raised an exception there (SystemExit for SIGTERM, say), the exception would be lost, and perhaps a lock would
stay locked for ever. SIGINT is not handled here: it is deferred by `interrupts` already, and for longer.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, cast

from mpkit._platform.hints import Self
from mpkit._platform.signals.signal_handlers import get_signal_handler, set_signal_handler, valid_signals

_Handler = Callable[[int, FrameType | None], object]

_SIGNALS: Final = tuple(sorted(valid_signals() - {int(signal.SIGINT)}))


class deferred_handlers:  # noqa: N801  a context manager, named as a function is
    """In the main thread, defer the handlers of all signals except SIGINT until the end of the block.

    (In other threads Python runs no handlers.) A child that the same thread forks inside the block calls
    `end_deferral_of_handlers` when it is ready for signals of its own. A child that another thread forks
    needs nothing.
    """

    __slots__ = ("_arrived", "_is_over", "_previous", "_thread")

    def __init__(self) -> None:
        self._previous: dict[int, _Handler] = {}
        # For each signal that has arrived, the process and the frame: a forked child inherits what waits in
        # its parent.
        self._arrived: dict[int, tuple[int, FrameType | None]] = {}
        self._is_over = False
        self._thread = threading.get_ident()

    def __enter__(self) -> Self:
        if self._thread == threading.main_thread().ident:
            try:
                for signum in _SIGNALS:
                    handler = get_signal_handler(signum)
                    if callable(handler):
                        self._previous[signum] = cast("_Handler", handler)
                        set_signal_handler(signum, self._note)
            except ValueError:
                # This is a subinterpreter, whose main thread gets no signals.
                self._previous.clear()
            except BaseException:
                # Raised by a handler that was not deferred yet.
                self.end()
                raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Restore all handlers, and call those whose signals have arrived, each once."""
        # First: if a handler that is restored already raises an exception, the others are no longer deferred
        # either.
        self._is_over = True
        for signum in self._previous:
            self._put_back(signum)
        here = os.getpid()
        waiting = [(signum, frame) for signum, (pid, frame) in self._arrived.items() if pid == here]
        # Dropped, because the frames keep all their variables alive.
        self._arrived = {}
        self._call(waiting)

    def _call(self, waiting: list[tuple[int, FrameType | None]]) -> None:
        if waiting:
            signum, frame = waiting.pop(0)
            try:
                self._previous[signum](signum, frame)
            finally:
                # The others are called even if that one raises an exception.
                self._call(waiting)

    def _put_back(self, signum: int) -> None:
        # Unless the program has set another handler meanwhile.
        if get_signal_handler(signum) == self._note:
            set_signal_handler(signum, self._previous[signum])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over or self._thread != threading.get_ident():
            self._put_back(signum)
            self._previous[signum](signum, frame)
        else:
            self._arrived[signum] = (os.getpid(), frame)


def end_deferral_of_handlers() -> None:
    """In the main thread of a process that was forked inside a block: end the deferral.

    Handlers whose signals have arrived are called at once. In other threads and processes this does nothing.
    """
    for signum in _SIGNALS:
        while isinstance(
            deferral := getattr(get_signal_handler(signum), "__self__", None), deferred_handlers
        ):
            deferral.end()
