"""A process that a task forks is no worker: nothing that it does may reach the pool.

It has the worker's rings, of which each end belongs to one process; its log handler, its fault handler and
its handler of SIGINT; and, after a bare `os.fork`, its stack, with the worker's loop at the bottom.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from typing import NoReturn

from mpkit.pool._stack_signal import STACK_SIGNAL


def end_fork(error: BaseException | None) -> NoReturn:
    """End this process as the interpreter would if the task were its program, except for the exit handlers,
    which are the worker's.

    Args:
        error: what the task raised here; None: it has returned.
    """
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = _exit_code(error.code)
        elif error is not None:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            # None, closed, or a pipe that nobody reads.
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()
    finally:
        os._exit(code)


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    if sys.stderr is not None:
        sys.stderr.write(f"{code}\n")
    return 1


def give_up_stack_pipe(*, reports_to_stderr: bool) -> None:
    """Write no stack into the pipe any more, which is the worker's.

    Args:
        reports_to_stderr: the program had the fault handler on before the worker took it.
    """
    if STACK_SIGNAL is not None and hasattr(faulthandler, "unregister"):
        faulthandler.unregister(STACK_SIGNAL)
    faulthandler.disable()
    if reports_to_stderr:
        # There may be none.
        with contextlib.suppress(AttributeError, RuntimeError, ValueError, OSError):
            faulthandler.enable()
