"""Counts the start-ups of workers that fail, and decides when to give up.

A pool whose workers cannot be started must say so instead of trying for ever. It is broken after
`MOST_FAILURES` start-ups that end with an exit code (usually because of an exception in ``__main__``), or
`MOST_KILLED` that die of a signal or for which there is no process (for lack of descriptors, say), if none
succeeds in between. There is a pause before each further attempt, and it grows.
"""

from __future__ import annotations

import errno
from enum import Enum, auto

from mpkit._platform.processes import identity
from mpkit._platform.threads.clock import CLOCK
from mpkit._wire import failure
from mpkit.errors import PoolBroken
from mpkit.pool._engine.function_table import name_of
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.roster import Roster

#: So many start-ups in a row that fail with an exit code or an error break the pool, ...
MOST_FAILURES = 3
#: ... or so many that are killed or refused.
MOST_KILLED = 10
# Seconds; each pause is twice as long as the one before.
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0

# The system refuses a process or shared memory. Like the errors of `identity.is_lack_of_means`, this may
# pass.
_REFUSED = frozenset({errno.EAGAIN, errno.ENOSPC})

GUARD = (
    "the main module creates the pool when it is imported, which every worker does; put that under "
    '`if __name__ == "__main__":`'
)
NOT_IMPORTABLE = (
    "the main module cannot be imported again (an interactive session, code read from standard input); save "
    "the program to a file, and put the functions into that or into a module of their own"
)


class Failure(Enum):
    """How a start-up has failed."""

    EXITED = auto()
    """The worker ended with an exit code, and has printed the reason to its standard error."""
    KILLED = auto()
    """The worker was killed by a signal."""
    RAISED = auto()
    """No worker was started, because of an error that will probably come again."""
    REFUSED = auto()
    """No worker was started, for a reason that may be over in a moment (a lack of resources, say)."""


class StartUps:
    """Counts the start-ups of one pool (in the supervisor's thread)."""

    def __init__(self, options: PoolOptions, roster: Roster) -> None:
        self._options = options
        self._roster = roster
        self._failed = 0
        self._killed = 0
        self._hellos_seen = 0
        #: No worker is started before this moment (monotonic).
        self.not_before: float = 0.0

    def note_error(self, error: Exception) -> PoolBroken | None:
        """Count an error of `Crew.start`; returns the error for the pool, once too many have failed."""
        how = f"starting a process raised {failure.in_words(error)}"
        refused = isinstance(error, MemoryError) or (
            isinstance(error, OSError) and (identity.is_lack_of_means(error) or error.errno in _REFUSED)
        )
        if refused:
            how += (
                "; the system has none left of what a worker needs (descriptors, processes, memory): raise "
                "the limit, or give back what is not needed"
            )
        # A `PoolBroken` says that the fork server has died. It is replaced as soon as this is noticed.
        may_pass = refused or isinstance(error, PoolBroken)
        broken = self.note_failure(how, Failure.REFUSED if may_pass else Failure.RAISED)
        if broken is not None:
            broken.__cause__ = error
        return broken

    def note_failure(self, how: str, kind: Failure, *, initializing: bool = False) -> PoolBroken | None:
        """Count a failed start-up.

        Args:
            how: What has happened, in words.
            kind: What kind of failure it was.
            initializing: Whether the worker was running the pool's initializer.

        Returns:
            The error for the pool, once too many start-ups have failed.
        """
        if self._hellos_seen != self._roster.hellos:
            # A worker has become ready since the last failure: begin to count anew.
            self._hellos_seen = self._roster.hellos
            self._failed = self._killed = 0
        if kind in (Failure.KILLED, Failure.REFUSED):
            self._killed += 1
        else:
            self._failed += 1
        tries = self._failed + self._killed
        self.not_before = CLOCK.monotonic() + min(
            _FIRST_PAUSE_SECONDS * 2 ** (tries - 1), _LONGEST_PAUSE_SECONDS
        )
        if self._failed < MOST_FAILURES and self._killed < MOST_KILLED:
            return None
        method = self._options.context.get_start_method()
        text = (
            f"the workers of {self._options.name} cannot be started (start method {method!r}): "
            f"{tries} start-ups in a row failed. The last one: {how}."
        )
        if initializing:
            # It had imported the main module, so that was not the cause.
            text += (
                f" It was running the initializer {name_of(self._options.initializer)}, which may be what "
                "ended it (os._exit, os.abort, a crash in C code)."
            )
        elif kind is Failure.EXITED and method != "fork":
            text += (
                f" The error itself was printed by the worker (standard error). A frequent cause: {GUARD}."
                f" Another: {NOT_IMPORTABLE}."
            )
        if kind is Failure.KILLED:
            text += (
                f" {'Otherwise something' if initializing else 'Something'} kills them: the out-of-memory "
                "killer, a limit of the system, or another program."
            )
        return PoolBroken(text)
