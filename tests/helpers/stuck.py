"""What to tell of a test that has run out of time: what each process below it does.

pytest-timeout prints the stacks of the threads of the tests, and ends them. Whom they wait for is usually
another process, and gone a moment later.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

__all__ = ["describe_descendants", "tell_before"]

#: How long each look may take, in seconds: nothing of this may keep the tests from ending.
_PATIENCE = 20.0


def tell_before(dump_stacks: Callable[..., None]) -> Callable[..., None]:
    """`pytest_timeout.dump_stacks`, after what the descendants do."""

    def tell(terminal: Any, *more: Any) -> None:
        terminal.sep("~", title="Processes below the tests")
        terminal.write(describe_descendants() + "\n")
        dump_stacks(terminal, *more)

    return tell


def describe_descendants() -> str:
    """For each descendant: state, command, where it is in the kernel; then the stacks of those of pools."""
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
