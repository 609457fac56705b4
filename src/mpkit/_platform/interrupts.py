"""Keeping Ctrl-C away from what must not be left half done, for a moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import cast

from mpkit._platform import seam

__all__ = ["deferred_interrupts", "without_interrupts"]


_SIGINT = int(signal.SIGINT)


class deferred_interrupts:  # noqa: N801  a context manager, named as a function is
    """In the main thread, an interrupt (SIGINT) waits until the block is over; elsewhere it never comes.

    A mask would not do: the kernel gives the signal to any thread, and Python then calls the handler in the
    main thread all the same.

    The block gets a function that tells whether one has arrived.
    """

    __slots__ = ("_arrived", "_previous")

    def __init__(self) -> None:
        self._arrived: list[tuple[int, FrameType | None]] = []
        self._previous: object = None

    def __enter__(self) -> Callable[[], bool]:
        previous = seam.get_signal_handler(_SIGINT)
        if callable(previous) and threading.current_thread() is threading.main_thread():
            self._previous = previous
            try:
                seam.set_signal_handler(_SIGINT, self._note)
            except ValueError:
                # The main thread of a subinterpreter gets no signals.
                self._previous = None
        return self._has_arrived

    def __exit__(self, *_exc_info: object) -> None:
        previous = self._previous
        if previous is not None:
            seam.set_signal_handler(_SIGINT, previous)
            if self._arrived:
                cast("Callable[[int, FrameType | None], object]", previous)(*self._arrived[-1])

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._arrived.append((signum, frame))

    def _has_arrived(self) -> bool:
        return bool(self._arrived)


@contextlib.contextmanager
def without_interrupts() -> Generator[None]:
    """What is started in the block, a thread or a process, starts with SIGINT blocked.

    A thread should never get it: the signal has to wake the main thread. A process of ours would die of it
    with a traceback before it has its own handler in place.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
