"""The states of a process, for `WorkerProcess.state` and `mpkit.introspect`."""

from __future__ import annotations

from enum import Enum

from mpkit._platform.hints import override


class ProcessState(Enum):
    """What a process is doing: the three classic states, and those before and after them.

    `READY`, `RUNNING` and `WAITING` come from the operating system. It reports that a process is runnable,
    but not whether it is on a core at this moment, so `RUNNING` means either. A `READY` process is just being
    woken up.
    """

    NEW = "new"
    """Created, but not started yet."""
    READY = "ready"
    """Being woken up, and about to get a core."""
    RUNNING = "running"
    """Running, or runnable."""
    WAITING = "waiting"
    """Waiting for something: input, a lock, a child, a timer."""
    STOPPED = "stopped"
    """Stopped by a signal (SIGSTOP, Ctrl-Z) or a debugger; SIGCONT continues it."""
    ZOMBIE = "zombie"
    """Ended, but its parent has not asked for the exit code yet."""
    EXITED = "exited"
    """Ended."""

    @override
    def __str__(self) -> str:
        return self.value
