"""The states of a pool, and the errors that a pool raises in each of them."""

from __future__ import annotations

import os
from typing import NoReturn

from mpkit.errors import ClosedError, MpkitError

#: It accepts tasks.
RUNNING = "running"
#: It accepts no more tasks; those it has go on.
CLOSED = "closed"
#: Ended by its owner, by being dropped, or at exit; pending tasks have been cancelled.
TERMINATED = "terminated"
#: It cannot go on (its workers cannot be started, say); pending tasks have failed with the reason.
BROKEN = "broken"

_FORKED = (
    "{} belongs to the process that created it; this process is a fork of that one and cannot use it. "
    "Create a pool here, or send the work to the parent through a queue"
)


class Status:
    """The state of a pool, and the errors for callers that want what it does not do in that state."""

    def __init__(self, name: str) -> None:
        self.name: str = name
        self._pid = os.getpid()
        self.state: str = RUNNING
        self.why_broken: MpkitError | None = None

    def has_ended(self) -> bool:
        """Whether it has been terminated or is broken: all of its tasks end, and no new ones are accepted."""
        return self.state in (TERMINATED, BROKEN)

    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that the pool belongs to."""
        return os.getpid() != self._pid

    def forked_message(self) -> str:
        """The message of the error that such a fork gets."""
        return _FORKED.format(self.name)

    def check_process(self) -> None:
        """Raise ClosedError if this process is a fork of the one that the pool belongs to."""
        if self.is_forked():
            raise ClosedError(self.forked_message())

    def check_usable(self) -> None:
        """Raise what `submit` raises if the pool accepts no tasks."""
        if self.state is not RUNNING or self.is_forked():
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the error that says why the pool accepts no tasks."""
        self.check_process()
        if self.why_broken is not None:
            raise copy_of(self.why_broken)
        raise ClosedError(f"{self.name} is {self.state}; create a new pool for more tasks")


def copy_of(error: MpkitError) -> MpkitError:
    """A copy for one caller: an exception that several threads raise collects all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
