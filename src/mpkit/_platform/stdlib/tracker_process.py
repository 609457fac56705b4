"""Starts the resource tracker of multiprocessing so that it survives the end of a terminal.

The tracker's object is private. What the tracker is told, and when, is in `tracker`.

The tracker removes the names of an application that has been killed. It belongs to the application's process
group, and ignores Ctrl-C and SIGTERM, but not the signals that a terminal sends to the whole group when its
window is closed or the connection breaks (SIGHUP), or for Ctrl-backslash (SIGQUIT). These would kill it
together with the application, and everything in shared memory would remain. So it is started with these two
signals blocked, and keeps them blocked.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from multiprocessing import process, spawn
from typing import Any


def start_tracker() -> None:
    """Start the resource tracker, unless this process has one. Do nothing on Windows.

    A tracker that the application has started before, by using multiprocessing, is left unchanged.

    Raises:
        RuntimeError: This is a frozen program without `multiprocessing.freeze_support`.
        FileNotFoundError: There is no interpreter to run it.
    """
    if getattr(sys, "frozen", False):
        _refuse_helper_that_does_not_know()
    if sys.platform == "win32":
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    tracker: Any = vars(resource_tracker)["_resource_tracker"]
    if tracker._fd is not None:
        return
    _refuse_missing_interpreter()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGQUIT})
            resource_tracker.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        # Again, in case a signal handler raised in between: this thread, and children that it starts later,
        # must not keep the signals blocked.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _refuse_missing_interpreter() -> None:
    """Raise if the interpreter is missing (embedded, or removed), which would only show as a broken pipe."""
    executable = os.fsdecode(spawn.get_executable() or "")
    if not os.path.exists(executable):
        raise FileNotFoundError(
            errno.ENOENT,
            f"multiprocessing starts processes with the interpreter {executable!r}, which is not there; "
            "name another one with multiprocessing.set_executable()",
        )


def _refuse_helper_that_does_not_know() -> None:
    """Raise in a frozen program that multiprocessing has started as a helper, if that uses mpkit instead.

    (multiprocessing starts the program in place of an interpreter, as its fork server, say. Without
    `freeze_support` it runs the program again, which would start itself without end.)
    """
    arguments = sys.argv
    is_helper = spawn.is_forking(arguments) or (
        arguments[-2:-1] == ["-c"] and arguments[-1].startswith("from multiprocessing.")
    )
    # But the fork server may import the main module.
    if is_helper and not getattr(process.current_process(), "_inheriting", False):
        raise RuntimeError(
            "this frozen program starts itself again for each child; call multiprocessing.freeze_support() "
            'first of all under `if __name__ == "__main__":`'
        )
