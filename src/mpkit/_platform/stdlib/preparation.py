"""What a child of spawn or forkserver is told about the program that starts it: the start method of that, and
which file its main module is.

Private is ``spawn.get_start_method``, the name by which `multiprocessing.spawn` asks what to tell a child:
asking settles the application's start method.
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

__all__ = ["chosen_start_method", "starting_by"]


# The interpreter takes the name of its file away from the main module when that has run to its end. Threads
# and exit handlers go on, and a child that is started by them has to find the functions of the main module.
# It is held weakly: when the program ends, its objects go first, and find the other modules whole.
_main = weakref.ref(sys.modules.get("__main__", sys))  # sys, which has no file, stands for none
_main_file: str | None = getattr(_main(), "__file__", None)
_main_is_file = _main_file is not None and os.path.isfile(_main_file)


def chosen_start_method() -> str | None:
    """What the application has set as its start method, or settled by using it; None while it has not."""
    # What typeshed does not know: None as long as nobody has set or used a start method.
    return cast("str | None", multiprocessing.get_start_method(allow_none=True))


class _BeingStarted(threading.local):
    """The start method of the child that this thread is just starting."""

    method: str | None = None


_being_started = _BeingStarted()


@contextlib.contextmanager
def starting_by(method: str) -> Generator[None]:
    """What is started in this block, in this thread, settles nothing for the application.

    Starting a process by spawn or forkserver tells it the application's start method, and asking for that
    settles it (before 3.14) on the default of the running Python. So where the application has none, the
    child is told its own: with that, importing a main module that starts processes without
    `if __name__ == "__main__"` is an error in the child, as it should be, and does not do everything twice.

    Raises:
        FileNotFoundError: The working directory is gone, in which the child would begin.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        # multiprocessing asks for it, too, and only says that there is no such file or directory.
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
    """After the end of the main module, tell children again which file it is."""
    # A program that has taken it away itself, while it ran, does not want it imported again; standard input
    # cannot be.
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
    """In the place of `multiprocessing.get_start_method`, where it is made up what a child is told."""
    method = _being_started.method
    if method is None:
        return multiprocessing.get_start_method(allow_none=allow_none)
    return chosen_start_method() or method
