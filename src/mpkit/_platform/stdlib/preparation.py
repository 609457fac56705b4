"""What a child of spawn or forkserver is told about the program: the start method and the main module's file.

Private is ``spawn.get_start_method``, the name by which `multiprocessing.spawn` calls the function that tells
the start method: calling the original function fixes the application's start method.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import weakref
from collections.abc import Generator
from multiprocessing import spawn
from typing import Any, cast

# When the main module has run to its end, the interpreter removes its `__file__`. But threads and exit
# handlers go on, and a child that they start must find the functions of the main module. The reference is
# weak, so that at the end of the program the objects of the main module are destroyed first, while the other
# modules are intact.
_main = weakref.ref(sys.modules.get("__main__", sys))  # sys, which has no `__file__`, stands for "none"
_main_file: str | None = getattr(_main(), "__file__", None)
_main_is_file = _main_file is not None and os.path.isfile(_main_file)


def chosen_start_method() -> str | None:
    """The start method that the application has set, or fixed by using multiprocessing; else None."""
    # typeshed does not know that this can be None.
    return cast("str | None", multiprocessing.get_start_method(allow_none=True))


class _BeingStarted(threading.local):
    """The start method of the child that this thread is starting."""

    method: str | None = None


_being_started = _BeingStarted()


@contextlib.contextmanager
def starting_by(method: str) -> Generator[None]:
    """A block in which this thread can start a process without fixing the application's start method.

    A child that is started by spawn or forkserver is told the application's start method. Asking for that
    fixes it (before 3.14) to the default of the running Python. So if the application has not chosen any, the
    child is told the method by which it is started. With that, a main module that starts processes without
    `if __name__ == "__main__"` causes an error in the child, as it should, instead of doing everything twice.

    Raises:
        FileNotFoundError: The working directory, in which the child would start, has been removed.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        # multiprocessing would fail in the same way, but without saying what is missing.
        raise FileNotFoundError(
            error.errno,
            "the working directory of this program has been removed, and a process that is started by "
            f"{method!r} begins in it; change to another one (os.chdir)",
        ) from error
    asking: Any = spawn
    if asking.get_start_method is not _told_start_method:
        asking.get_start_method = _told_start_method
    _give_back_main_file()
    before, _being_started.method = _being_started.method, method
    try:
        yield
    finally:
        _being_started.method = before


def _give_back_main_file() -> None:
    """After the end of the main module, restore its `__file__`, so that children can import it."""
    # Not if the program itself has removed `__file__` while it ran, so that children do not import the main
    # module; and not if the main module is no file (standard input).
    main = sys.modules.get("__main__")
    if (
        _main_is_file
        and main is not None
        and main is _main()
        and getattr(main, "__file__", None) is None
        and not threading.main_thread().is_alive()
    ):
        vars(main)["__file__"] = _main_file


def _told_start_method(allow_none: bool = False) -> str | None:
    """Replaces `multiprocessing.get_start_method` in `multiprocessing.spawn`, which tells the child."""
    method = _being_started.method
    if method is None:
        return multiprocessing.get_start_method(allow_none=allow_none)
    return chosen_start_method() or method
