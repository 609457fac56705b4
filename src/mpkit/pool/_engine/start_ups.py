"""How the start-ups of workers have gone lately, and when to give up.

A pool whose workers cannot be started must say so instead of trying for ever: after `MOST_FAILURES` start-ups
in a row that end with an exit code (an exception in ``__main__``, usually), or `MOST_KILLED` that die of a
signal or do not come about (for want of descriptors, say), none succeeding in between, it is broken. Between
two attempts lies a growing pause.
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

MOST_FAILURES = 3
MOST_KILLED = 10
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0

# No process, or no shared memory; like what `identity.is_lack_of_means` tells, it may pass.
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
    """The worker ended with an exit code: it has told on its standard error what was wrong."""
    KILLED = auto()
    """It was killed by a signal."""
    RAISED = auto()
    """There is none: starting it raised an error."""
    REFUSED = auto()
    """There is none, and nothing is wrong with it: it may be over in a moment."""


class StartUps:
    """Those of one pool. In the supervisor's thread."""

    def __init__(self, options: PoolOptions, roster: Roster) -> None:
        self._options = options
        self._roster = roster
        self._failed = 0
        self._killed = 0
        self._hellos_seen = 0
        #: No worker is started before this moment (monotonic).
        self.not_before: float = 0.0

    def note_error(self, error: Exception) -> PoolBroken | None:
        """`Crew.start` has raised an error. The one for the pool, once there is no more hope."""
        how = f"starting a process raised {failure.in_words(error)}"
        refused = isinstance(error, MemoryError) or (
            isinstance(error, OSError) and (identity.is_lack_of_means(error) or error.errno in _REFUSED)
        )
        if refused:
            how += (
                "; the system has none left of what a worker needs (descriptors, processes, memory): raise "
                "the limit, or give back what is not needed"
            )
        # A fork server that has died is replaced as soon as it is seen to have ended.
        may_pass = refused or isinstance(error, PoolBroken)
        broken = self.note_failure(how, Failure.REFUSED if may_pass else Failure.RAISED)
        if broken is not None:
            broken.__cause__ = error
        return broken

    def note_failure(self, how: str, kind: Failure, *, initializing: bool = False) -> PoolBroken | None:
        """A start-up has failed. The error, once there is no more hope.

        Args:
            how: What has happened, for people.
            kind: The same, for what is to follow from it.
            initializing: In the pool's initializer.
        """
        if self._hellos_seen != self._roster.hellos:
            # In a row are those without a start between them that went well.
            self._hellos_seen = self._roster.hellos
            self._failed = self._killed = 0
        if kind in (Failure.KILLED, Failure.REFUSED):
            self._killed += 1
        else:
            self._failed += 1
        tries = self._failed + self._killed
        self.not_before = CLOCK.monotonic() + min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE)
        if self._failed < MOST_FAILURES and self._killed < MOST_KILLED:
            return None
        method = self._options.context.get_start_method()
        text = (
            f"the workers of {self._options.name} cannot be started (start method {method!r}): "
            f"{tries} start-ups in a row failed. The last one: {how}."
        )
        if initializing:
            # Whoever has come so far has imported the main module.
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
