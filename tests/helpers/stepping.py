"""Interrupt the main thread at a chosen step of an operation, without depending on timing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.dying import TRACED, trace

#: Needed by every test that uses `interrupt_at`. On Python 3.11, and only there, an exception raised by a
#: trace function sometimes corrupts the interpreter's stack: it then tries to call a frame ("'frame' object
#: is not callable" at the first line of a function), or crashes. On 3.11.7 this happened in one of three runs
#: of tests/unit/shm/test_interrupts.py.
needs_a_trace_that_raises = pytest.mark.skipif(
    sys.version_info[:2] == (3, 11), reason="an exception in a trace function can corrupt Python 3.11"
)

#: The code that starts processes.
STARTING = tuple(
    os.sep + os.path.join(*part)
    for part in (
        ("mpkit", "process", ""),
        ("mpkit", "_platform", "stdlib", "child_"),
        ("mpkit", "_platform", "parent_death", ""),
        ("mpkit", "_platform", "files", "anonymous.py"),
        ("mpkit", "_platform", "files", "descriptors.py"),
        ("multiprocessing", "popen_"),
        ("multiprocessing", "process.py"),
        ("multiprocessing", "forkserver.py"),
    )
)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Turn garbage collection off, for a test that sends one signal whose handler raises.

    A collection would call destructors of garbage of earlier tests, and the callbacks of Hypothesis. Python
    drops an exception that is raised in those, so the one signal of the test could be lost.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def interrupt_at(
    step: int,
    operation: Callable[[], object],
    *,
    opcodes: bool = False,
    traced: tuple[str, ...] = TRACED,
    times: int = 1,
    signum: signal.Signals = signal.SIGINT,
    raises: type[BaseException] = KeyboardInterrupt,
) -> bool:
    """Run `operation` in the main thread and interrupt it with a signal (Ctrl-C) at step number `step`.

    Args:
        step: The number of the step, from 0.
        operation: What to run. The signal is never sent to a process that it forks.
        opcodes: Whether each opcode is a step; otherwise each line is.
        traced: Only code in files whose path contains one of these is counted.
        times: At how many consecutive steps to send the signal. One whose handler raises in the step is the
            last: Python ends the tracing.
        signum: The signal to send.
        raises: What the handler of that signal raises.

    Returns:
        Whether that step was reached.
    """
    reached = False
    me = os.getpid()

    def interrupt() -> None:
        nonlocal reached
        if os.getpid() != me:
            return
        reached = True
        # The handler raises here, in the middle of the line, unless it is being deferred.
        signal.raise_signal(signum)

    before = sys.gettrace()
    with without_collections():
        try:
            trace(step, opcodes, interrupt, traced, times)
            operation()
        except raises:
            assert reached
        finally:
            sys.settrace(before)
    # Not "whether `operation` raised": Python drops an exception that is raised in a `__del__`.
    return reached
