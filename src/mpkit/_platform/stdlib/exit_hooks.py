"""What is called at the end of a process: before all else, or before or after its children are joined.

Private are ``multiprocessing.util.Finalize`` with its priorities, and ``threading._register_atexit``.
`atexit` alone runs before multiprocessing has joined its children, or after, as the modules happened to be
imported; and it calls the functions of a program before those that were registered earlier, while tasks go on
and more can be submitted (`concurrent.futures` itself uses the private one).
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

__all__ = ["at_exit_after_children_joined", "at_exit_before_children_joined", "at_exit_first"]


class _ExitCallbacks:
    """What this process has to do once multiprocessing has joined its children at exit."""

    # multiprocessing runs the finalizers with priority 0 and above, then terminates the daemonic children and
    # joins all of them, then runs the others, the highest first. Its own temporary directory goes at -100.
    PRIORITY: Final = -10

    def __init__(self) -> None:
        self.forget()
        # A child that multiprocessing starts drops every finalizer that it finds (those of the parent, under
        # fork; but under forkserver also what was registered while its arguments were unpickled) and then
        # calls these.
        util.register_after_fork(self, _ExitCallbacks._arm)

    def add(self, callback: Callable[[], object]) -> Callable[[], None]:
        number = next(self._numbers)
        self._callbacks[number] = callback
        self._arm()

        def cancel() -> None:
            self._callbacks.pop(number, None)

        return cancel

    def forget(self) -> None:
        """Begin anew: in a fork, what the parent has to do is not for the child."""
        self._pid = os.getpid()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._numbers = itertools.count()
        self._finalizer: util.Finalize | None = None

    def _arm(self) -> None:
        if self._pid == os.getpid() and (self._finalizer is None or not self._finalizer.still_active()):
            self._finalizer = util.Finalize(None, self._run, exitpriority=self.PRIORITY)

    def _run(self) -> None:
        # The last one first. One that raises must not keep the others from running; the error is shown as
        # multiprocessing shows those of its own finalizers.
        while self._pid == os.getpid() and self._callbacks:
            _, callback = self._callbacks.popitem()
            try:
                callback()
            except Exception as error:  # noqa: BLE001
                sys.excepthook(type(error), error, error.__traceback__)


_exit_callbacks = _ExitCallbacks()
# At once, not at the first use: several threads of the child may come to that.
in_forked_children(_exit_callbacks.forget)

#: Finalizers of multiprocessing with a higher priority run earlier.
_FIRST_PRIORITY: Final = 101


def at_exit_after_children_joined(callback: Callable[[], object]) -> Callable[[], None]:
    """Call `callback` at the normal exit of this process, after multiprocessing has joined its children.

    Holds in the main process and in the children of every start method; never runs in a process that was
    forked from the one that asked for it. The last one asked for runs first.

    Returns:
        A function that takes it back.
    """
    return _exit_callbacks.add(callback)


def at_exit_first(callback: Callable[[], object]) -> None:
    """Call `callback` at the end of this process, before all else that is to be called there.

    That is before `atexit` and before threads are waited for in a program, and before all other finalizers in
    a child of multiprocessing; in the forks of this process as well. It may be called more than once.
    """
    register: Callable[[Callable[[], object]], object] = getattr(
        threading, "_register_atexit", atexit.register
    )
    try:
        register(callback)
    except RuntimeError:
        # Threads are being waited for already.
        atexit.register(callback)
    # A child of multiprocessing runs these before the above, up to Python 3.12. It drops those that it finds,
    # then calls what was registered for after the fork.
    util.register_after_fork(callback, _finalize_first)
    _finalize_first(callback)


def _finalize_first(callback: Callable[[], object]) -> None:
    util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY)


def at_exit_before_children_joined(callback: Callable[[], object]) -> Callable[[], object]:
    """Call `callback` at the normal exit of this process, before multiprocessing waits for its children.

    For those who have to tell their children to end. It never runs in a process that was forked from the one
    that asked for it.

    Returns:
        A function that takes it back.
    """
    # `atexit` is no place for it: multiprocessing may have registered before or after us.
    return util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY - 1).cancel
