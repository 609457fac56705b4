"""Deferring Ctrl-C (*interrupts*) for a moment, while something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import cast

from mpkit._platform.hints import Self
from mpkit._platform.signals.signal_handlers import get_signal_handler, set_signal_handler
from mpkit._platform.threads.forks import in_forked_children

_Handler = Callable[[int, FrameType | None], object]

_SIGINT = int(signal.SIGINT)


class deferred_interrupts:  # noqa: N801  a context manager, named as a function is
    """In the main thread, defer an interrupt (SIGINT) until the end of the block.

    (In other threads Python runs no handlers.) Blocking the signal would not be enough: the kernel would
    deliver it to another thread, and Python would then call the handler in the main thread nevertheless.

    If the handler of another signal raises an exception just when the block begins or ends, the code at the
    end of the block may never run. In that case the next interrupt finds that the function with the block has
    returned, and is handled in the ordinary way.

    Code in the block may ask whether an interrupt has arrived, and hand it on early. A process that is forked
    inside the block, and never reaches its end, calls `end_deferral`.

    Args:
        unless: While this function returns true, interrupts are not deferred: for foreign code within the
            block.
    """

    __slots__ = ("_arrived", "_frame", "_previous", "_thread", "_unless")

    def __init__(self, unless: Callable[[], bool] | None = None) -> None:
        self._arrived: list[tuple[int, FrameType | None]] = []
        self._previous: object = None
        self._thread = threading.get_ident()
        self._unless = unless
        self._frame: FrameType | None = None

    def __enter__(self) -> Self:
        previous = get_signal_handler(_SIGINT)
        if callable(previous) and self._thread == threading.main_thread().ident:
            self._previous = previous
            self._frame = sys._getframe(1)
            try:
                set_signal_handler(_SIGINT, self._note)
            except ValueError:
                # This is a subinterpreter, whose main thread gets no signals.
                self._previous = None
        return self

    def __exit__(self, *_exc_info: object) -> None:
        previous = self._previous
        if previous is not None:
            in_force = getattr(get_signal_handler(_SIGINT), "__self__", None)
            # Unless the program has set another handler meanwhile.
            if in_force is self or self in _in_force():
                set_signal_handler(_SIGINT, previous)
            self._frame = None
            if self._arrived:
                self.hand_on()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._is_over():
            if get_signal_handler(_SIGINT) == self._note:
                set_signal_handler(_SIGINT, self._previous)
            cast("_Handler", self._previous)(signum, frame)
        elif self._unless is not None and self._unless():
            cast("_Handler", self._previous)(signum, frame)
        else:
            self._arrived.append((signum, frame))

    def _is_over(self) -> bool:
        """Whether the function that contains the block is no longer being executed."""
        # Looked for from here on and not from the frame that was interrupted: an inner block may hand on an
        # interrupt that arrived earlier.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is None

    def has_arrived(self) -> bool:
        """Whether an interrupt is waiting."""
        return bool(self._arrived)

    def hand_on(self) -> None:
        """Inside the block: if an interrupt is waiting, call the handler now, and raise its exceptions."""
        if self._arrived:
            latest = self._arrived[-1]
            # Dropped, because the frames keep all their variables alive.
            self._arrived.clear()
            cast("_Handler", self._previous)(*latest)


def end_deferral() -> None:
    """In the main thread of a process that was forked inside `deferred_interrupts`: end the deferral.

    If an interrupt is waiting, the handler is called at once. Outside such blocks this does nothing.
    """
    deferrals = _in_force()
    if deferrals:
        handler = cast("_Handler", deferrals[-1]._previous)
        set_signal_handler(_SIGINT, handler)
        arrived = [interrupt for deferral in deferrals for interrupt in deferral._arrived]
        if arrived:
            handler(*arrived[-1])


@in_forked_children
def _end_deferral_of_another_thread() -> None:
    # If the main thread of the parent was inside a block, and another thread has forked: the main thread here
    # is the one that has forked, which will never leave that block.
    deferrals = _in_force()
    if deferrals and deferrals[-1]._thread != threading.get_ident():
        set_signal_handler(_SIGINT, deferrals[-1]._previous)


def _in_force() -> list[deferred_interrupts]:
    """The blocks that are deferring interrupts now, the innermost first."""
    found: list[deferred_interrupts] = []
    handler = get_signal_handler(_SIGINT)
    while isinstance(deferral := getattr(handler, "__self__", None), deferred_interrupts):
        found.append(deferral)
        handler = deferral._previous
    return found


@contextlib.contextmanager
def without_interrupts() -> Generator[None]:
    """Threads and processes that are started in this block begin with SIGINT blocked.

    A thread should never get the signal, because it has to wake the main thread. A process of mpkit would die
    of it, with a traceback, before it has set its own handler.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
