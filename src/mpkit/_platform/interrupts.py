"""Keeping Ctrl-C away from what must not be left half done, for a moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import cast

__all__ = ["deferred_interrupts", "without_interrupts"]


@contextlib.contextmanager
def deferred_interrupts() -> Generator[Callable[[], bool]]:
    """In the main thread, an interrupt (SIGINT) waits until the block is over; elsewhere it never comes.

    A mask would not do: the kernel gives the signal to any thread, and Python then calls the handler in the
    main thread all the same.

    Yields:
        A function that tells whether one has arrived.
    """
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    arrived: list[tuple[int, FrameType | None]] = []

    def note(signum: int, frame: FrameType | None) -> None:
        arrived.append((signum, frame))

    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:
        # The main thread of a subinterpreter gets no signals.
        yield lambda: False
        return
    try:
        yield lambda: bool(arrived)
    finally:
        signal.signal(signal.SIGINT, previous)
        if arrived:
            cast("Callable[[int, FrameType | None], object]", previous)(*arrived[-1])


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
