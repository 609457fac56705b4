"""The states of a pool, in the order of its life."""

from __future__ import annotations

import os
from typing import NoReturn

from mpkit.errors import ClosedError, MpkitError

__all__ = ["BROKEN", "CLOSED", "RUNNING", "TERMINATED", "Status", "copy_of"]

#: Takes tasks.
RUNNING = "running"
#: Takes none any more; those there are go on.
CLOSED = "closed"
#: Ended by its owner; tasks that were pending have been cancelled.
TERMINATED = "terminated"
#: Its workers cannot be started; tasks that were pending have got the reason.
BROKEN = "broken"

_FORKED = (
    "{} belongs to the process that created it; this process is a fork of that one and cannot use it. "
    "Create a pool here, or send the work to the parent through a queue"
)


class Status:
    """Which state a pool is in, and what those are told who want something of it that it does not do."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self.state: str = RUNNING
        self.why_broken: MpkitError | None = None

    def has_ended(self) -> bool:
        """Whether it has ended, with all its tasks."""
        return self.state in (TERMINATED, BROKEN)

    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that the pool belongs to."""
        return os.getpid() != self._pid

    def forked_message(self) -> str:
        """What to tell such a fork."""
        return _FORKED.format(self._name)

    def check_process(self) -> None:
        """Raise ClosedError in such a fork."""
        if self.is_forked():
            raise ClosedError(self.forked_message())

    def check_usable(self) -> None:
        """Raise what `submit` would raise."""
        if self.state is not RUNNING or self.is_forked():
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise what tells why the pool takes no tasks."""
        self.check_process()
        if self.why_broken is not None:
            raise copy_of(self.why_broken)
        raise ClosedError(f"{self._name} is {self.state}; create a new pool for more tasks")


def copy_of(error: MpkitError) -> MpkitError:
    """One exception object raised in several threads would collect all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
