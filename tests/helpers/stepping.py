"""Ending a process, or interrupting a thread, at any step of an operation, without luck of timing.

To end a process a child is forked, traces its own execution of mpkit's code and kills itself when the n-th
step is reached. A step is a line, or an opcode: between two opcodes lies everything that Python code can
observe. (Opcodes on Python 3.10 and 3.11: from 3.12 on the first call of a function under trace shows none.)
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

#: For tests with `interrupt_at`. On Python 3.11, and on no other one, an exception that a trace function
#: raises now and then leaves the stack of the interpreter in disorder: it calls frames ("'frame' object is
#: not callable" at the first line of a function), or crashes. One run in three of
#: tests/unit/shm/test_interrupts.py did so on 3.11.7.
needs_a_trace_that_raises = pytest.mark.skipif(
    sys.version_info[:2] == (3, 11), reason="exceptions of trace functions upset Python 3.11 itself"
)

_TRACED = tuple(
    os.sep + os.path.join("mpkit", *part)
    for part in (
        ("_shm", ""),
        ("pool", ""),
        ("_platform", "stdlib", "sem_lock.py"),
        ("_platform", "stdlib", "tracker.py"),
        ("sync.py",),
    )
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


def die_at(step: int, operation: Callable[[], object], *, opcodes: bool = False) -> bool:
    """Run `operation` in a forked child that is killed (SIGKILL) at step number `step`, from 0.

    Returns:
        Whether the child was killed; False when the operation has fewer steps and the child has left in good
        order.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _trace(step, opcodes, lambda: os.kill(os.getpid(), signal.SIGKILL))
            operation()
            sys.settrace(None)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the operation failed in the child at step {step}"
    return False


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """For a test whose one signal has a handler that raises: a collection would call destructors of what
    earlier tests have left (and what Hypothesis has asked for), and Python drops what is raised in those.
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
    traced: tuple[str, ...] = _TRACED,
    times: int = 1,
    signum: signal.Signals = signal.SIGINT,
    raises: type[BaseException] = KeyboardInterrupt,
) -> bool:
    """Run `operation` and send Ctrl-C to this process, in the main thread, at step number `step`, from 0.

    Args:
        step: A line is one.
        operation: What to run. A fork that it makes gets none.
        opcodes: An opcode is a step, not a line.
        traced: Only code in files whose paths have one of these in them is counted.
        times: At so many steps, one after the other. (If one raises at its step it is the last.)
        signum: Another signal than that of Ctrl-C.
        raises: What its handler raises.

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
            _trace(step, opcodes, interrupt, traced, times)
            operation()
        except raises:
            assert reached
        finally:
            sys.settrace(before)
    # An exception in a `__del__` goes no further, so that the outcome does not tell.
    return reached


def _trace(
    step: int,
    opcodes: bool,
    act: Callable[[], object],
    traced: tuple[str, ...] = _TRACED,
    times: int = 1,
) -> None:
    kind = "opcode" if opcodes else "line"
    left = step

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if event == kind:
            if -times < left <= 0:
                act()
            left -= 1
        return local

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in traced):
            return None
        if opcodes:
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        return local

    sys.settrace(enter)
