"""The states of a process, as `WorkerProcess.state` and `mpkit.introspect` tell them."""

from __future__ import annotations

from enum import Enum

from mpkit._platform.hints import override

__all__ = ["ProcessState"]


class ProcessState(Enum):
    """What a process is doing: the three classic states, and those before and after them.

    `READY`, `RUNNING` and `WAITING` come from the operating system. It says "runnable", but not whether the
    process is on a core at this moment, so `RUNNING` means either; a `READY` process is just being woken up.
    """

    NEW = "new"
    """Created, not started yet."""
    READY = "ready"
    """Could run, and is about to be given a core."""
    RUNNING = "running"
    """Runs, or could run."""
    WAITING = "waiting"
    """Waits for something: input, a lock, a child, a timer."""
    STOPPED = "stopped"
    """Stopped by a signal (SIGSTOP, Ctrl-Z) or a debugger; SIGCONT continues it."""
    ZOMBIE = "zombie"
    """Has ended, but its parent has not asked for the exit code yet."""
    EXITED = "exited"
    """Has ended."""

    @override
    def __str__(self) -> str:
        return self.value
