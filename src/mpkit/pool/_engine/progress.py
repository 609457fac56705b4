"""Progress bars (tqdm). Nothing else fails if a bar does."""

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
from mpkit.pool._engine.threads import call_aside

_logger = logging.getLogger("mpkit.pool")


class Progress:
    """A progress bar that counts items, or none.

    A bar that fails (because the terminal is gone, say) is dropped: it is updated while outcomes are told,
    where an exception would keep other outcomes from being told.

    Args:
        wanted: Whether to show a bar.
        total: How many items there are; None: unknown.
        what: The description of the bar.

    Raises:
        ImportError: A bar is wanted, and tqdm is not installed.
    """

    def __init__(self, wanted: bool, total: int | None, what: str) -> None:
        self._bar: Any = None
        #: Numbers of items that are done and not shown yet.
        self._steps: deque[int] = deque()
        self._is_over = False
        self._lock = InterruptibleLock()
        if wanted:
            try:
                bar_class = _bar_class()
            except ImportError as error:
                raise ImportError("progress=True needs the package tqdm: install mpkit[progress]") from error
            try:
                # An interrupt in the middle would leave the lock of all bars acquired.
                with deferred_interrupts():
                    self._bar = bar_class(total=total, desc=what)
            except BaseException as error:  # noqa: BLE001  the work is done without a bar
                _bar_stopped(error)

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def step(self, items: int) -> None:
        """So many more items are done."""
        if self._bar is not None:
            self._steps.append(items)
            self._catch_up()

    def close(self) -> None:
        """Close the bar: no more items will be done."""
        self._is_over = True
        self._catch_up()

    def _catch_up(self) -> None:
        # If this is a signal handler in the middle of this thread's `_show`, that shows these steps as well.
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
    """The bars of the lazy maps of one pool: closed with the pool, if they have not been closed before.

    A program may keep a lazy map until it ends. When the interpreter is being finalized, tqdm cannot close a
    bar any more (on Python 3.13.0 it crashes).
    """

    def __init__(self) -> None:
        self._shown: set[weakref.ref[Progress]] = set()

    def add(self, progress: Progress) -> None:
        """Have a bar closed with the pool."""
        if progress.is_shown:
            # Adding it, and removing it when the bar is freed, are single steps: this needs no lock.
            self._shown.add(weakref.ref(progress, self._shown.discard))

    def close(self, seconds: float) -> None:
        """Close the bars that are left, but wait for no more than so many seconds in case one hangs."""
        bars = [bar for shown in list(self._shown) if (bar := shown()) is not None and bar.is_shown]
        if not bars:
            return
        # It may hang because the terminal accepts no output, or because the lock of all bars is held by a
        # thread whose signal handler waits for the end of the pool.
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
    """The bar class of tqdm for this terminal or notebook, made safe against errors.

    Raises:
        ImportError: tqdm is not installed.
    """
    from tqdm.auto import tqdm  # noqa: PLC0415  an extra

    lock_class = _lock_class()
    if not hasattr(lock_class, "mp_lock"):
        # Otherwise tqdm creates the lock with `multiprocessing.RLock`, which fixes the application's start
        # method to the platform's default. (tqdm also works without this lock, if there can be none.)
        with contextlib.suppress(OSError):
            lock_class.mp_lock = resolve_context(None).RLock()

    bar: Any = tqdm

    class Bar(bar):  # type: ignore[misc]  # the base class is known at run time only
        """A bar that raises no error while it is displayed.

        tqdm displays a bar while holding the lock of all bars, and does not release that after an error: then
        the next bar, in any thread, would wait for ever.
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
    """tqdm, or the handler of another signal than SIGINT in the middle of it, has raised an exception.

    Release the lock of all bars, which tqdm has then kept: the pool's own threads draw bars as well, and
    would wait for it for ever. Raises the error again unless it is an `Exception`.
    """
    lock_of_all = _bar_class().get_lock()
    # It consists of two recursive locks, for processes and for threads. Each raises an error when this thread
    # no longer holds it. (A lock that the program has set may be of any other kind, and is left alone.)
    for lock in lock_of_all.locks if isinstance(lock_of_all, _lock_class()) else ():
        with contextlib.suppress(AssertionError, RuntimeError):
            while True:
                lock.release()
    if not isinstance(error, Exception):
        raise error
    _bar_failed(error)


def _bar_failed(error: Exception) -> None:
    # Logged in a new thread, without waiting for it: a log handler may hang, or show bars itself, and the
    # pool may depend on this thread. If no thread can be started, the failure is not logged.
    with contextlib.suppress(RuntimeError):
        call_aside(0, _tell_of_failure, error)


def _tell_of_failure(error: Exception) -> None:
    # A log handler may write to the same terminal that is gone.
    with contextlib.suppress(Exception):
        _logger.warning("the progress bar cannot be shown, and is dropped: %r", error)
