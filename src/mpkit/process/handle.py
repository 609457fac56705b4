"""What the parent alone keeps about one `WorkerProcess`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from mpkit._platform.hints import override
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.resources import memory
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit.process.report import Stage
from mpkit.process.ties import Ties

__all__ = ["Handle"]


class Handle:
    """What a `WorkerProcess` keeps, in one attribute: its subclasses choose names of their own.

    Does not travel: pickled, it becomes None, and the child makes another (see `mpkit.process.sending`).
    """

    def __init__(
        self,
        *,
        method: str | None = None,
        limit: int | None = None,
        orphan: bool = False,
        ties: Ties | None = None,
    ) -> None:
        self.method = method
        self.limit = limit
        self.orphan = orphan
        self.ties = ties
        self._outcomes: dict[None, tuple[Stage, object]] = {}
        # The start that is under way, or has succeeded.
        self._claims: dict[None, object] = {}
        self.memory_exceeded: int | None = None
        self.killed: bool = False
        #: It has been told to end.
        self.stopped: bool = False
        # Who removes what it has left.
        self._tidying: dict[None, object] = {}
        self.payload_under_way = False
        self._oom_kills: int | None = None

    def claim(self, start: object) -> bool:
        """Whether this start is the one that may go on: there may be one at a time, and one that succeeds."""
        # One step: of two threads that try at the same time one must leave the other's child alone.
        return self._claims.setdefault(None, start) is start

    def is_claimed_by(self, start: object) -> bool:
        """Whether this start is that one."""
        return self._claims.get(None) is start

    def unclaim(self) -> None:
        """Another start may be tried."""
        self._claims.clear()

    def prepare(self) -> Ties:
        """In the parent, before the start: make the ties."""
        self._oom_kills = memory.oom_kills()
        # An interrupt between a file and its object would leave it open.
        with deferred_interrupts():
            self.ties = Ties.create(orphan=self.orphan)
        return self.ties

    def abandon(self) -> ProcessIdentity | None:
        """In the parent: the start has failed. The process that has arrived all the same, if one has."""
        return None if self.ties is None else self.ties.report.unwanted()

    def forget_start(self, process: ProcessIdentity | None) -> None:
        """In the parent: the start has failed, and the process, if there was one, has been killed."""
        ties, self.ties = self.ties, None
        if ties is not None:
            try:
                if process is not None:
                    ties.remove_remains(process)
            finally:
                ties.close()

    @property
    def outcome(self) -> tuple[Stage, object] | None:
        """What came of the process, once somebody has asked for it."""
        return self._outcomes.get(None)

    def keep_outcome(self, outcome: tuple[Stage, object]) -> tuple[Stage, object]:
        """Keep this, unless another thread was first; what is kept."""
        # One step, without a lock that a signal handler could find taken.
        return self._outcomes.setdefault(None, outcome)

    def forget_outcome(self) -> None:
        """Let go of it."""
        self._outcomes.clear()

    def has_begun(self, *, interrupts: bool) -> bool:
        """In the parent, which wants it to end: whether the target may have begun. If not, it never will.

        Args:
            interrupts: Whether this parent will then interrupt it (and not somebody else: Ctrl-C).
        """
        ties = self.ties
        # Whoever has closed all descriptors (a daemon), or lacks room for eight bytes, does not get to know.
        with contextlib.suppress(OSError, ValueError):
            return ties is None or ties.report.unwanted(interrupts=interrupts) is not None
        return True

    def survivors(self) -> list[ProcessIdentity]:
        """In the parent, once the process has ended: which descendants it has left, as far as it told."""
        ties = self.ties
        # As above.
        with contextlib.suppress(OSError, ValueError):
            if ties is not None:
                return ties.report.left()
        return []

    def tidy_up(self, process: ProcessIdentity | None, code: int, name: str) -> None:
        """In the parent, once the process has ended: remove what it has left in shared memory, unless it has
        left in order; show its last words, if it was killed. A second time does nothing.

        Blocking: for a second at most, until those that die with it have been killed.
        """
        me = object()
        # One step: two threads must not do it at the same time.
        if self._tidying or self._tidying.setdefault(None, me) is not me:
            return
        ties = self.ties
        with deferred_interrupts():
            # As above; the resource tracker does it at the end of the program.
            with contextlib.suppress(OSError, ValueError):
                stage = Stage.NOTHING if ties is None else ties.report.stage()
                if ties is not None and process is not None and (code or stage < Stage.RETURNED):
                    ties.remove_remains(process)
            if code < 0 and ties is not None:
                ties.show_last_words(name)

    def likely_oom(self, exitcode: int | None) -> bool:
        """Whether the system's out-of-memory killer is the likely cause of this exit code."""
        if sys.platform == "win32" or exitcode != -signal.SIGKILL or self.killed:
            return False
        return memory.oom_killed_since(self._oom_kills)

    def exceeded_memory(self, rss_bytes: int) -> None:
        """The process is being killed for having more memory than it may have."""
        self.memory_exceeded = rss_bytes
        self.killed = True

    @override
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _nothing, ()


def _nothing() -> None:
    return None
