"""Kill a process at a chosen step of an operation, without depending on timing.

A forked child traces its own execution of mpkit's code and kills itself when it reaches step n. A step is a
line or an opcode. Opcodes are the finest steps at which Python code can be interrupted. (They work on Python
3.10 and 3.11 only: from 3.12 on, the first traced call of a function reports no opcodes.)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["TRACED", "die_at", "trace"]

#: The code whose steps are counted.
TRACED = tuple(
    os.sep + os.path.join("mpkit", *part)
    for part in (
        ("_shm", ""),
        ("pool", ""),
        ("_platform", "stdlib", "sem_lock.py"),
        ("_platform", "stdlib", "tracker.py"),
        ("sync.py",),
    )
)


def die_at(step: int, operation: Callable[[], object], *, opcodes: bool = False) -> bool:
    """Run `operation` in a forked child that is killed (SIGKILL) at step number `step`, from 0.

    Returns:
        Whether the child was killed. False if the operation has fewer steps: the child ended normally.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            trace(step, opcodes, lambda: os.kill(os.getpid(), signal.SIGKILL))
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


def trace(
    step: int,
    opcodes: bool,
    act: Callable[[], object],
    traced: tuple[str, ...] = TRACED,
    times: int = 1,
) -> None:
    """From now on, call `act` at step number `step`, and at each further one up to `times` calls in all.

    Only code in files whose path contains one of `traced` is counted.
    """
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
