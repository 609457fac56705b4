"""Keeping Ctrl-C away from what must not be left half done, for a moment."""

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

__all__ = ["deferred_interrupts", "end_deferral", "without_interrupts"]


_Handler = Callable[[int, FrameType | None], object]

_SIGINT = int(signal.SIGINT)


class deferred_interrupts:  # noqa: N801  a context manager, named as a function is
    """In the main thread, an interrupt (SIGINT) waits until the block is over; elsewhere it never comes.

    A mask would not do: the kernel gives the signal to any thread, and Python then calls the handler in the
    main thread all the same.

    Where the handler of another signal raises an exception just when the block begins or ends, it may never
    come to its end. Then the next interrupt finds that the function with the block is over, and goes where it
    should.

    The block may ask whether one has arrived, and hand it on early. A process forked inside it, which never
    comes to its end, calls `end_deferral`.

    Args:
        unless: An interrupt does not wait while this says so: for foreign code within the block.
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
                # The main thread of a subinterpreter gets no signals.
                self._previous = None
        return self

    def __exit__(self, *_exc_info: object) -> None:
        previous = self._previous
        if previous is not None:
            in_force = getattr(get_signal_handler(_SIGINT), "__self__", None)
            # Else the program has set another one meanwhile, in its handler, say, which stays.
            if in_force is self or self in _in_force():
                set_signal_handler(_SIGINT, previous)
            self._frame = None
            if self._arrived:
                # Taken out: it holds frames with all that is in them, and somebody may keep this object.
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
        """Whether the function that has the block is no longer being executed."""
        # Not from the frame that was interrupted: an inner block hands on what came a while ago.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is None

    def has_arrived(self) -> bool:
        """Whether one is waiting."""
        return bool(self._arrived)

    def hand_on(self) -> None:
        """Inside the block: call the handler now, if one is waiting; what it raises comes from here."""
        if self._arrived:
            latest = self._arrived[-1]
            self._arrived.clear()
            cast("_Handler", self._previous)(*latest)


def end_deferral() -> None:
    """In the main thread: interrupts come again, at once those that have waited.

    For a process that was forked inside a block of `deferred_interrupts`. Elsewhere it does nothing.
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
    # The main thread, which was inside a block, is not here: the thread that has forked is the main one now.
    deferrals = _in_force()
    if deferrals and deferrals[-1]._thread != threading.get_ident():
        set_signal_handler(_SIGINT, deferrals[-1]._previous)


def _in_force() -> list[deferred_interrupts]:
    """The blocks that keep interrupts away now, the innermost first."""
    found: list[deferred_interrupts] = []
    handler = get_signal_handler(_SIGINT)
    while isinstance(deferral := getattr(handler, "__self__", None), deferred_interrupts):
        found.append(deferral)
        handler = deferral._previous
    return found


@contextlib.contextmanager
def without_interrupts() -> Generator[None]:
    """What is started in the block, a thread or a process, starts with SIGINT blocked.

    A thread should never get it: the signal has to wake the main thread. A process of ours would die of it
    with a traceback before it has its own handler in place.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
