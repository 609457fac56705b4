"""The start method: the default, and checks of one that a caller gives."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import BaseContext

from mpkit._platform.messages import shown
from mpkit._platform.stdlib.preparation import chosen_start_method


def start_methods() -> list[str]:
    """The start methods that can be used, the default of the running Python first.

    If a program has set the `reducer` of a context, that is the reducer of all contexts. It usually lacks
    what the fork server needs, and a constant for which multiprocessing looks in it.
    """
    if sys.platform == "win32" or hasattr(multiprocessing.get_context("spawn").reducer, "HAVE_SEND_HANDLE"):
        return multiprocessing.get_all_start_methods()
    return ["fork", "spawn"] if sys.platform != "darwin" and sys.version_info < (3, 14) else ["spawn", "fork"]


def resolve_context(context: str | BaseContext | None, *, name: str = "start_method") -> BaseContext:
    """The context with which to start processes.

    This does not fix the application's start method: `multiprocessing.set_start_method` can still be called.

    Args:
        context: The name of a start method, a context of `multiprocessing`, or None for the default: the
            start method that the application has set, otherwise forkserver where it exists, otherwise spawn.
        name: The caller's name for this argument, for the error message.

    Raises:
        ValueError: If this system has no start method of that name.
        TypeError: If it is neither a name nor a context.
    """
    if context is None:
        chosen = chosen_start_method()
        if chosen is None:
            chosen = "forkserver" if "forkserver" in start_methods() else "spawn"
        return multiprocessing.get_context(chosen)
    if isinstance(context, str):
        if context not in start_methods():
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, start_methods()))}, or None for the default; "
                f"got {shown(context)}"
            )
        return multiprocessing.get_context(context)
    if isinstance(context, BaseContext):
        # Not returned unchanged: the default context (which a bare `multiprocessing.Process` uses) stands for
        # whatever the application has set, and using it would fix that.
        return resolve_context(context.get_start_method(allow_none=True), name=name)
    raise TypeError(
        f"{name} must be the name of a start method ({', '.join(map(repr, start_methods()))}), a context of "
        f"multiprocessing, or None for the default; got {shown(context)} ({type(context).__name__})"
    )
