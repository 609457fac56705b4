"""The states of a process."""

from __future__ import annotations

from enum import Enum

from mpkit._platform.hints import override

__all__ = ["ProcessState"]


class ProcessState(Enum):
    """What a process is doing: the classic three states, and those around them.

    `READY`, `RUNNING` and `WAITING` are told by the operating system. Systems say "runnable" but not whether
    a core is serving the process at this very moment, so `RUNNING` means either; `READY` is one that is just
    being woken up.
    """

    NEW = "new"
    """Created, not started yet."""
    READY = "ready"
    """Could run, and is about to be given a core."""
    RUNNING = "running"
    """Runs, or could run."""
    WAITING = "waiting"
    """Waits for something: input, a lock, a child, a moment in time."""
    STOPPED = "stopped"
    """Stopped by a signal (SIGSTOP, Ctrl-Z) or a debugger; SIGCONT lets it go on."""
    ZOMBIE = "zombie"
    """Has ended; its parent has not asked for the exit code yet."""
    EXITED = "exited"
    """Has ended."""

    @override
    def __str__(self) -> str:
        return self.value
