"""More to print about a test that has run out of time: what each process below it does.

pytest-timeout prints the stacks of this process's threads, and ends the process. But usually these wait for
another process, which is gone a moment later, so it has to be looked at first. Or an exception in another
thread or in a destructor has kept the message from being sent: pytest would print that exception at the end
of the test, which is never reached.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_descendants", "record", "record_exceptions", "with_descendants"]

#: How many seconds each command may take: printing all this must not keep the tests from ending.
_PATIENCE = 20.0

#: The latest exceptions in destructors and threads, which nothing but a hook gets to see; and failed tests,
#: whose teardown may be what runs out of time: pytest would print the failure only at the end of all tests.
_exceptions: deque[str] = deque(maxlen=10)


def record_exceptions() -> None:
    """From now on, record exceptions that are raised in destructors or that end a thread."""
    unraisable_hook, thread_hook = sys.unraisablehook, threading.excepthook

    def record_unraisable(report: Any) -> None:
        unraisable_hook(report)
        _note(f"{report.err_msg or 'Exception ignored in'} {report.object!r}", report)

    def record_thread(report: Any) -> None:
        thread_hook(report)
        _note(f"{report.thread!r} was ended by", report)

    sys.unraisablehook, threading.excepthook = record_unraisable, record_thread


def record(what: str, text: str) -> None:
    """Record something else that is to be printed with these exceptions."""
    _exceptions.append(f"{time.monotonic():.1f}: {what}\n{text}")


def _note(what: str, report: Any) -> None:
    # As text: the exception itself would keep its frames alive, and what they refer to.
    record(what, "".join(traceback.format_exception(report.exc_type, report.exc_value, report.exc_traceback)))


def with_descendants(dump_stacks: Callable[..., None]) -> Callable[..., None]:
    """Return a `pytest_timeout.dump_stacks` that prints what the descendants do before the stacks."""

    def dump_all(terminal: Any, *more: Any) -> None:
        terminal.sep("~", title="Processes below the tests")
        terminal.write(describe_descendants() + "\n")
        terminal.sep(
            "~",
            title=f"Latest failures, and exceptions in destructors and threads (now: {time.monotonic():.1f})",
        )
        terminal.write("\n".join(_exceptions) + "\n")
        dump_stacks(terminal, *more)

    return dump_all


def describe_descendants() -> str:
    """The state, command line and kernel function of each descendant; then `mpkit ps` and `mpkit stacks`."""
    lines = []
    for process in psutil.Process().children(recursive=True):
        try:
            with process.oneshot():
                lines.append(
                    f"{process.pid}, child of {process.ppid()}: {process.status()} in "
                    f"{_read(process.pid, 'wchan')} ({_read(process.pid, 'syscall')}), "
                    f"{' '.join(process.cmdline())[:200]}"
                )
        except psutil.Error as error:
            lines.append(str(error))
    for command in ("ps", "stacks"):
        lines.append(f"-- mpkit {command}")
        try:
            told = subprocess.run(
                [sys.executable, "-m", "mpkit", command, str(os.getpid())],
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
            lines.append(told.stdout + told.stderr)
        except (OSError, subprocess.TimeoutExpired) as error:
            lines.append(str(error))
    return "\n".join(lines)


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="ascii").strip()
    except OSError as error:
        return type(error).__name__
