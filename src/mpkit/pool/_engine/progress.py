"""Progress bars, which are no reason for anything else to fail."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import weakref
from collections import deque
from typing import Any

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._engine.reports import call_aside

__all__ = ["Bars", "Progress"]

_logger = logging.getLogger("mpkit.pool")


class Progress:
    """A progress bar that counts items (tqdm), or nothing.

    A bar that fails (the terminal is gone, say) is dropped: it is told within the settling of outcomes, where
    an error would keep whoever waits for them waiting.
    """

    def __init__(self, wanted: bool, total: int | None, what: str) -> None:
        self._bar: Any = None
        #: Items that are done and not shown yet.
        self._steps: deque[int] = deque()
        self._is_over = False
        self._lock = InterruptibleLock()
        if wanted:
            try:
                bar_class = _bar_class()
            except ImportError as error:
                raise ImportError("progress=True needs the package tqdm: install mpkit[progress]") from error
            try:
                # Interrupted in the middle, it would keep the lock of all bars.
                with deferred_interrupts():
                    self._bar = bar_class(total=total, desc=what)
            except BaseException as error:  # noqa: BLE001  the work is done without a bar
                _bar_stopped(error)

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def step(self, items: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            self._steps.append(items)
            self._catch_up()

    def close(self) -> None:
        """No more will come."""
        self._is_over = True
        self._catch_up()

    def _catch_up(self) -> None:
        # A signal handler may come here in the middle of `_show`, which then goes on with what it brings.
        while self._bar is not None and (self._steps or self._is_over) and not self._lock.is_owned():
            with deferred_interrupts():
                self._lock.run(self._show)

    def _show(self) -> None:
        bar = self._bar
        if bar is None:
            return
        try:
            while self._steps:
                bar.update(self._steps.popleft())
            if self._is_over:
                self._bar = None
                bar.close()
        except BaseException as error:  # noqa: BLE001  see above
            _bar_stopped(error)
            self._bar = None


class Bars:
    """What is shown of the lazy maps of one pool, which anybody may hold until the end of the program: when
    modules are half gone, tqdm cannot close a bar any more (on Python 3.13.0 it crashes).
    """

    def __init__(self) -> None:
        self._shown: set[weakref.ref[Progress]] = set()

    def add(self, progress: Progress) -> None:
        """Close it with the pool, should nobody have done so before."""
        if progress.is_shown:
            # Added, and taken out again with its bar, in one step each: this needs no lock.
            self._shown.add(weakref.ref(progress, self._shown.discard))

    def close(self, seconds: float) -> None:
        """Close those that are left, but do not wait longer than this for one that hangs."""
        bars = [bar for shown in list(self._shown) if (bar := shown()) is not None and bar.is_shown]
        if not bars:
            return
        # The terminal may take nothing, and the lock of all bars be held by a thread which waits for the end
        # of the pool in a signal's handler.
        try:
            call_aside(seconds, _close_each, bars)
        except RuntimeError:
            # The system refuses a thread, or the interpreter is ending.
            _close_each(bars)


def _close_each(bars: list[Progress]) -> None:
    for bar in bars:
        bar.close()


@functools.cache
def _bar_class() -> type[Any]:
    """The bar of tqdm that fits where it is to be shown, made safe.

    Raises:
        ImportError: tqdm is not installed.
    """
    from tqdm.auto import tqdm  # noqa: PLC0415  an extra

    lock_class = _lock_class()
    if not hasattr(lock_class, "mp_lock"):
        # By itself it makes one by way of `multiprocessing.RLock`, which settles the application's start
        # method on the platform's default. It does without where there can be none.
        with contextlib.suppress(OSError):
            lock_class.mp_lock = resolve_context(None).RLock()

    bar: Any = tqdm

    class Bar(bar):  # type: ignore[misc]  # its kind is known when it is asked for
        """tqdm shows a bar while it holds the lock of all bars, and does not give that back after an error:
        the next bar, of whatever thread, would wait for ever.
        """

        def display(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return bar.display(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  see above
                self.disable = True
                _bar_failed(error)

    return Bar


def _lock_class() -> Any:
    return importlib.import_module("tqdm.std").TqdmDefaultWriteLock


def _bar_stopped(error: BaseException) -> None:
    """Something was raised in the middle of tqdm, by itself or by the handler of another signal than SIGINT.

    Then it keeps the lock of all bars, and the pool's own threads, which draw bars, too, would wait for it.
    """
    lock_of_all = _bar_class().get_lock()
    # Two recursive ones in one, for processes and for threads. Each says by an error that this thread has it
    # no more. One that the program has set may be any.
    for lock in lock_of_all.locks if isinstance(lock_of_all, _lock_class()) else ():
        with contextlib.suppress(AssertionError, RuntimeError):
            while True:
                lock.release()
    if not isinstance(error, Exception):
        raise error
    _bar_failed(error)


def _bar_failed(error: Exception) -> None:
    # In a thread of its own, which is not waited for: a handler may hang, or show bars itself, and everybody
    # may depend on this thread. Where the system refuses one, nobody is told.
    with contextlib.suppress(RuntimeError):
        call_aside(0, _tell_of_failure, error)


def _tell_of_failure(error: Exception) -> None:
    # A handler may write to the very terminal that is gone.
    with contextlib.suppress(Exception):
        _logger.warning("the progress bar cannot be shown, and is dropped: %r", error)
