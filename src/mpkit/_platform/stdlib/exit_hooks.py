"""Functions that are called at the end of a process: first of all, or before or after children are joined.

Private are ``multiprocessing.util.Finalize`` with its priorities, and ``threading._register_atexit``.
`atexit` alone is not enough: whether its functions run before or after multiprocessing joins its children
depends on the order of imports; and those that the program registers later run earlier, while tasks go on and
more can be submitted (`concurrent.futures` also uses the private function).
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import util
from typing import Final

from mpkit._platform.threads.forks import in_forked_children


class _ExitCallbacks:
    """The functions that this process calls at exit after multiprocessing has joined its children."""

    # multiprocessing runs the finalizers with priority 0 and above, then terminates the daemonic children and
    # joins all children, then runs the other finalizers, the highest priority first. It removes its own
    # temporary directory at -100.
    PRIORITY: Final = -10

    def __init__(self) -> None:
        self.forget()
        # A child that multiprocessing starts drops all finalizers (under fork those of the parent; but under
        # forkserver also those registered while its arguments were unpickled), and then calls functions
        # registered in this way.
        util.register_after_fork(self, _ExitCallbacks._arm)

    def add(self, callback: Callable[[], object]) -> Callable[[], None]:
        number = next(self._numbers)
        self._callbacks[number] = callback
        self._arm()

        def cancel() -> None:
            self._callbacks.pop(number, None)

        return cancel

    def forget(self) -> None:
        """Begin anew: a forked child must not call the functions of its parent."""
        self._pid = os.getpid()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._numbers = itertools.count()
        self._finalizer: util.Finalize | None = None

    def _arm(self) -> None:
        if self._pid == os.getpid() and (self._finalizer is None or not self._finalizer.still_active()):
            self._finalizer = util.Finalize(None, self._run, exitpriority=self.PRIORITY)

    def _run(self) -> None:
        # The last one first. If one raises, the others run nevertheless; the error is shown in the way in
        # which multiprocessing shows those of its own finalizers.
        while self._pid == os.getpid() and self._callbacks:
            _, callback = self._callbacks.popitem()
            try:
                callback()
            except Exception as error:  # noqa: BLE001
                sys.excepthook(type(error), error, error.__traceback__)


_exit_callbacks = _ExitCallbacks()
# By a fork hook and not at the first use, which several threads of the child may reach at the same time.
in_forked_children(_exit_callbacks.forget)

#: Finalizers of multiprocessing with a higher priority run earlier.
_FIRST_PRIORITY: Final = 101


def at_exit_after_children_joined(callback: Callable[[], object]) -> Callable[[], None]:
    """Call `callback` at the normal exit of this process, after multiprocessing has joined its children.

    This works in the main process and in children of every start method. The function is never called in a
    process that was forked from the one that registered it. The function that was registered last is called
    first.

    Returns:
        A function that cancels this.
    """
    return _exit_callbacks.add(callback)


def at_exit_first(callback: Callable[[], object]) -> None:
    """Call `callback` at the end of this process, before all other functions.

    In a program that is before `atexit` and before threads are joined; in a child of multiprocessing before
    all other finalizers. It is also called in processes that are forked from this one. It may be called more
    than once.
    """
    register: Callable[[Callable[[], object]], object] = getattr(
        threading, "_register_atexit", atexit.register
    )
    try:
        register(callback)
    except RuntimeError:
        # Threads are being joined already.
        atexit.register(callback)
    # Up to Python 3.12 a child of multiprocessing runs finalizers before the above. It drops all finalizers
    # at its start, and then calls functions that are registered for after the fork.
    util.register_after_fork(callback, _finalize_first)
    _finalize_first(callback)


def _finalize_first(callback: Callable[[], object]) -> None:
    util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY)


def at_exit_before_children_joined(callback: Callable[[], object]) -> Callable[[], object]:
    """Call `callback` at the normal exit of this process, before multiprocessing waits for its children.

    For callers that have to tell their children to end. The function is never called in a process that was
    forked from the one that registered it.

    Returns:
        A function that cancels this.
    """
    # Not by `atexit`, because multiprocessing may have registered its own function there before or after us.
    return util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY - 1).cancel
