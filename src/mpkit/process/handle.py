"""The parent's private state of one `WorkerProcess`."""

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
    """The state of a `WorkerProcess`, in one attribute, because subclasses choose attribute names freely.

    It is not sent to the child: when pickled it becomes an empty one. The child replaces its own (see
    `mpkit.process.sending`). Other process objects that come along keep theirs: they are of no use there.

    Args:
        method: The start method; None: chosen at the start.
        limit: The memory limit in bytes, if there is one.
        orphan: Whether the process outlives its parent.
        ties: In a child that has unpickled its process: what it shares with its parent.

    Attributes:
        memory_exceeded: The resident memory in bytes that exceeded the limit; None: it has not.
        killed: Whether this process has killed it.
        stopped: Whether this process has told it to end.
        payload_under_way: Whether the process object is just being pickled, inside the pickle of its
            `Arrival`.
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
        # Three dictionaries with at most one item, under the key None: `setdefault` decides in one atomic
        # step, without a lock that a signal handler could find taken, which thread comes first.
        self._outcomes: dict[None, tuple[Stage, object]] = {}
        # The start that is under way, or has succeeded.
        self._claims: dict[None, object] = {}
        # The call of `tidy_up` that removes what the process has left.
        self._tidying: dict[None, object] = {}
        self.memory_exceeded: int | None = None
        self.killed: bool = False
        self.stopped: bool = False
        self.payload_under_way = False
        # How many processes the out-of-memory killer had killed before the start.
        self._oom_kills: int | None = None

    def claim(self, start: object) -> bool:
        """Claim the process for `start`, an object that stands for one call of `start()`.

        Returns:
            Whether it may go on: at any time at most one call may be starting the process or have started it.
        """
        return self._claims.setdefault(None, start) is start

    def is_claimed_by(self, start: object) -> bool:
        """Whether `claim` has returned True for this call."""
        return self._claims.get(None) is start

    def unclaim(self) -> None:
        """Allow another attempt to start."""
        self._claims.clear()

    def prepare(self) -> Ties:
        """In the parent, before the start: make the ties."""
        self._oom_kills = memory.oom_kills()
        # Deferred: an interrupt between opening a file and making its object would leave it open.
        with deferred_interrupts():
            self.ties = Ties.create(orphan=self.orphan)
        return self.ties

    def abandon(self) -> ProcessIdentity | None:
        """In the parent, after a failed start: keep the child from running, should it arrive later.

        Returns:
            The process, if it has arrived already; the caller has to kill it.
        """
        return None if self.ties is None else self.ties.report.unwanted()

    def forget_start(self, process: ProcessIdentity | None) -> None:
        """In the parent, after a failed start: clean up. The process, if there was one, has been killed."""
        ties, self.ties = self.ties, None
        if ties is not None:
            try:
                if process is not None:
                    ties.remove_remains(process)
            finally:
                ties.close()

    @property
    def outcome(self) -> tuple[Stage, object] | None:
        """How the process ended and what its target returned or raised; None until that has been read."""
        return self._outcomes.get(None)

    def keep_outcome(self, outcome: tuple[Stage, object]) -> tuple[Stage, object]:
        """Keep this outcome unless another thread has already kept one, and return the one that is kept."""
        return self._outcomes.setdefault(None, outcome)

    def forget_outcome(self) -> None:
        """Drop the outcome, and with it the result."""
        self._outcomes.clear()

    def has_begun(self, *, interrupts: bool) -> bool:
        """In the parent, before it ends the process: whether the target may have begun; else it never will.

        Args:
            interrupts: Whether this parent interrupts it next (as opposed to an interrupt by Ctrl-C).
        """
        ties = self.ties
        # OSError, ValueError: the program has closed all descriptors (a daemon does), or there is no room for
        # eight bytes. Then this cannot be known.
        with contextlib.suppress(OSError, ValueError):
            return ties is None or ties.report.unwanted(interrupts=interrupts) is not None
        return True

    def survivors(self) -> list[ProcessIdentity]:
        """In the parent, once the process has ended: the descendants that it reported leaving behind."""
        ties = self.ties
        # OSError, ValueError: the program has closed all descriptors.
        with contextlib.suppress(OSError, ValueError):
            if ties is not None:
                return ties.report.left()
        return []

    def tidy_up(self, process: ProcessIdentity | None, code: int, name: str) -> None:
        """In the parent, once the process has ended: clean up after it. A second call does nothing.

        Unless it ended in an orderly way, what it has left in shared memory is removed. If it was killed,
        what its fault handler wrote is printed.

        Blocking: for a second at most, until the descendants that die with it have ended.
        """
        me = object()
        # Two threads must not do it at the same time.
        if self._tidying or self._tidying.setdefault(None, me) is not me:
            return
        ties = self.ties
        with deferred_interrupts():
            # OSError, ValueError: the program has closed all descriptors. Then the resource tracker cleans up
            # at the end of the program.
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
        """The process is about to be killed because it exceeds its memory limit."""
        self.memory_exceeded = rss_bytes
        self.killed = True

    @override
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Handle, ()
