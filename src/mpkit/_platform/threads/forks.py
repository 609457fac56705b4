"""Hooks that Python calls at forks. On Windows, where there are no forks, registering one does nothing.

If a hook raises an exception, that is only printed, and the fork goes on. So if a signal handler raises an
exception (Ctrl-C) during a hook, the rest of that hook is skipped (all of it, if it comes before the first
step). One signal can do this only once. Therefore what must not be skipped is done by C functions, in which
no handler runs, or is registered twice.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from mpkit._platform.threads.interruptible_lock import is_free

F = TypeVar("F", bound=Callable[[], object])


def in_forked_children(function: F) -> F:
    """Decorator: the function is called in each forked child, in the order of registration.

    If an exception ends it, it is called once more.
    """
    if hasattr(os, "register_at_fork"):
        hook = _ChildHook(function)
        os.register_at_fork(after_in_child=hook)
        os.register_at_fork(after_in_child=hook)
    return function


def in_forking_parents(function: F) -> F:
    """Decorator: the function is called in the parent after each fork, even if the fork has failed."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_parent=function)
    return function


def before_forks(function: F) -> F:
    """Decorator: the function is called before each fork, the one that was registered last first."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=function)
    return function


def held_across_forks(lock: object) -> None:
    """Have an RLock acquired before each fork, and released after it in both processes."""
    if hasattr(os, "register_at_fork"):
        raw = cast("Any", lock)
        os.register_at_fork(before=raw.acquire, after_in_parent=raw.release, after_in_child=raw.release)
        in_forked_children(functools.partial(_free_if_lost, raw))


def _free_if_lost(lock: Any) -> None:  # noqa: ANN401  the stubs do not know what it has
    """In the child: reset the lock if it is held by a thread that exists only in the parent.

    (That is so if an exception ended the hook before the fork, which was waiting for the lock.)
    """
    if not is_free(lock):
        lock._at_fork_reinit()


class _ChildHook:
    """Calls a function successfully once in each child, however often it is called itself."""

    __slots__ = ("_done_in", "_function")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._done_in = 0

    def __call__(self) -> None:
        me = os.getpid()
        if self._done_in != me:
            self._function()
            self._done_in = me
