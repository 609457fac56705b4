"""Keeping the handlers of signals out of a fork.

The hooks that Python calls at a fork (those of `logging`, which give its locks back, among them) tell nobody
of what is raised in them: it is printed, and what the hook had still to do is left out. So an exception of a
handler, SystemExit on SIGTERM, say, would be lost there, and a lock perhaps stay taken for ever. SIGINT is
kept away by `interrupts` already, and for longer.
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

__all__ = ["deferred_handlers", "end_deferral_of_handlers"]

_Handler = Callable[[int, FrameType | None], object]

_SIGNALS: Final = tuple(sorted(valid_signals() - {int(signal.SIGINT)}))


class deferred_handlers:  # noqa: N801  a context manager, named as a function is
    """In the main thread, the handlers of all signals but SIGINT wait until the block is over; elsewhere they
    never come.

    A child that is forked inside it by the same thread calls `end_deferral_of_handlers` when it is ready for
    its own signals; one that another thread forks has none to wait for.
    """

    __slots__ = ("_arrived", "_is_over", "_previous", "_thread")

    def __init__(self) -> None:
        self._previous: dict[int, _Handler] = {}
        # With the process that each has come to: a fork copies what is waiting in its parent.
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
                # The main thread of a subinterpreter gets no signals.
                self._previous.clear()
            except BaseException:
                # A handler that was not deferred yet.
                self.end()
                raise
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.end()

    def end(self) -> None:
        """Put all handlers back, and call those that have been waited for, each once."""
        # First: should a handler that is back already raise, the others hold nothing up.
        self._is_over = True
        for signum in self._previous:
            self._put_back(signum)
        here = os.getpid()
        waiting = [(signum, frame) for signum, (pid, frame) in self._arrived.items() if pid == here]
        # They hold frames, with all that is in them.
        self._arrived = {}
        self._call(waiting)

    def _call(self, waiting: list[tuple[int, FrameType | None]]) -> None:
        if waiting:
            signum, frame = waiting.pop(0)
            try:
                self._previous[signum](signum, frame)
            finally:
                # Whatever that one raises.
                self._call(waiting)

    def _put_back(self, signum: int) -> None:
        # Else the program has set another one meanwhile, which stays.
        if get_signal_handler(signum) == self._note:
            set_signal_handler(signum, self._previous[signum])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over or self._thread != threading.get_ident():
            self._put_back(signum)
            self._previous[signum](signum, frame)
        else:
            self._arrived[signum] = (os.getpid(), frame)


def end_deferral_of_handlers() -> None:
    """In the main thread of a process that was forked inside a block: handlers come again, at once those that
    have waited. Elsewhere it does nothing.
    """
    for signum in _SIGNALS:
        while isinstance(
            deferral := getattr(get_signal_handler(signum), "__self__", None), deferred_handlers
        ):
            deferral.end()
