"""What parent and child of one `WorkerProcess` have in common, and what the parent alone keeps about it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpkit._platform import deadlines, families, identity, memory, notes, seam
from mpkit._platform.anonymous import AnonymousFile
from mpkit._platform.hints import override
from mpkit._platform.identity import ProcessIdentity
from mpkit._platform.interrupts import deferred_interrupts
from mpkit._platform.parent_watch import ParentLink
from mpkit._wire import codec
from mpkit.errors import HandleLost, SerializationError, SharedMemoryExhausted
from mpkit.process.report import Report, Stage

if TYPE_CHECKING:
    from mpkit._shm.memory.blob import Blob

__all__ = ["Arrival", "Handle", "Ties"]

# How long those are waited for that die with a killed process; the guardian needs some milliseconds.
_FAMILY_PATIENCE_S = 1.0


class Ties:
    """What the parent makes for each start: the link to it, the child's report, its fault handler's file."""

    def __init__(
        self, link: ParentLink, report: Report, stack: AnonymousFile, trail: str, blob: Blob | None = None
    ) -> None:
        self.link = link
        self.report = report
        self.stack = stack
        #: The file by which the child is found if its parent dies as well (see `mpkit._shm.memory.trail`);
        #: empty: a parent whose remains nobody removes needs none.
        self.trail = trail
        # In the parent, which removes that.
        self._blob = blob
        #: Whether the child has the resource tracker of this process. (A fork that is the first to need one
        #: has one of its own, which removes what that has left.)
        self.shares_tracker: bool = False
        self._entered = False
        self._handed_in = False
        _open.add(self)

    @classmethod
    def create(cls, *, orphan: bool) -> Ties:
        """Those of a child that is about to be started.

        Raises:
            OSError: If there is no file descriptor left, or no memory. Nothing is left behind.
        """
        with contextlib.ExitStack() as failed:
            report = Report.create()
            failed.callback(report.close)
            stack = AnonymousFile.create("stack")
            failed.callback(stack.close)
            blob = _make_trail() if notes.are_kept() and not orphan else None
            if blob is not None:
                failed.callback(blob.close)
            link = ParentLink.create(orphan=orphan)
            failed.pop_all()
        return cls(link, report, stack, "" if blob is None else blob.name, blob)

    def enter(self) -> None:
        """In the child, before anything else. A second time does nothing."""
        if self._entered:
            return
        self._entered = True
        self.link.die_with_parent()
        for other in list(_open):
            # After a fork: what belongs to other children would keep their results in memory while we live.
            if other is not self:
                other.close()
        # All threads: what the others did may be what matters. It writes from inside the signal handler.
        faulthandler.enable(self.stack.fileno(), all_threads=True)
        wanted = self.report.arrived()
        if self.trail:
            wanted = _follow(self.trail, self.link) and wanted
        elif os.name == "posix":
            notes.keep(self.report.note)
        if not wanted:
            # The parent was interrupted while it started this process, and has let go of it; or it has died.
            os._exit(1)

    def perform(self, run: Callable[[], object]) -> None:
        """In the child: run, and report how it ended.

        A fork that the target makes comes out of `run` as well, in its own process: what it returns or raises
        is not the target's. What has come of the target stands once it has ended: an interrupt that arrives
        later does not undo it.
        """
        pid = os.getpid()
        try:
            value = run()
            if os.getpid() == pid:
                with deferred_interrupts():
                    self.report.returned(value)
                    self._handed_in = True
        except BaseException as error:
            if self._handed_in:
                return
            try:
                if os.getpid() == pid:
                    self.report_failure(error)
            except KeyboardInterrupt:
                if not self._handed_in:  # it came just before interrupts were kept away
                    self.report_failure(error)
            if isinstance(error, KeyboardInterrupt) and self._is_being_stopped():
                # Whoever stops many because of the error of one is to find that one's traceback.
                raise SystemExit(1) from None
            raise
        finally:
            if os.getpid() == pid:
                self._name_survivors()

    def _is_being_stopped(self) -> bool:
        # Whoever has closed all descriptors does not get to know.
        with contextlib.suppress(OSError, ValueError):
            return self.report.is_being_stopped()
        return False

    def report_failure(self, error: BaseException) -> None:
        """In the child: report an error."""
        # Is there no room even for this, the exit code and the traceback on the error output have to do.
        with deferred_interrupts(), contextlib.suppress(OSError):
            self.report.raised(error)
            self._handed_in = True

    def _name_survivors(self) -> None:
        """In the child, which is ending: tell which processes it leaves, for a parent that is stopping it.

        That one cannot find a process that was started in the last moment, after a signal had come and before
        Python acted on it: once this process is gone, nothing tells whose child it was.
        """
        # Who lacks the means to look, or to tell, leaves it to the parent.
        with deferred_interrupts(), contextlib.suppress(OSError):
            if families.has_children():
                self.report.leaves(families.descendants([identity.current()]))

    def last_words(self) -> str | None:
        """In the parent: what the child's fault handler wrote, if anything."""
        return self.stack.read().decode(errors="replace") or None

    def show_last_words(self, name: str) -> None:
        """In the parent: print them, if this program wants to see what fault handlers write.

        The child's own would have written to the error output, had ours not taken its place.
        """
        # Whoever has closed it, or all descriptors, does not get to see them.
        with contextlib.suppress(OSError, ValueError):
            if faulthandler.is_enabled() and sys.stderr is not None and (words := self.last_words()):
                sys.stderr.write(f"Process {name}:\n{words}")

    def close(self) -> None:
        """Let go of the files. Twice does no harm."""
        self.report.close()
        self.stack.close()
        if self._blob is not None:
            self._blob.close()

    def remove_remains(self, process: ProcessIdentity) -> None:
        """In the parent, once the child has ended (this process): remove what it has left in shared memory.

        Blocking: for a second at most, until those that die with it have been killed.
        """
        if not self.shares_tracker:
            return
        from mpkit._shm.locks import remains  # noqa: PLC0415  rarely needed
        from mpkit._shm.memory import trail  # noqa: PLC0415  rarely needed

        its_notes = self.report.notes()
        if self.trail and (found := trail.read(self.trail)) is not None:
            its_notes = found[1]
        deadline = deadlines.deadline_of(_FAMILY_PATIENCE_S)
        # They may start others until they are killed.
        while (living := remains.living_family_of(process)) and not deadlines.has_passed(deadline):
            families.wait_gone(living, deadlines.remaining(deadline))
        remains.remove(process, its_notes)


def _make_trail() -> Blob | None:
    from mpkit._shm.memory import trail  # noqa: PLC0415  most processes start none
    from mpkit._shm.memory.blob import Blob  # noqa: PLC0415

    # Where there is no room the resource tracker does what is to be done, with a warning.
    with contextlib.suppress(SharedMemoryExhausted):
        return Blob.create([(0, bytes(trail.END << 3))], trail.END << 3, kind=trail.KIND)
    return None


def _follow(name: str, link: ParentLink) -> bool:
    """In the child: be found by that file. Whether the parent goes on; else nobody may look there again."""
    from mpkit._shm.memory import trail  # noqa: PLC0415  most processes have none
    from mpkit._shm.memory.segment import Segment  # noqa: PLC0415

    try:
        segment = Segment.attach(name)
    except HandleLost:
        return False
    trail.begin(segment)
    segment.close()
    return link.is_parent_alive()


# Those of all the children of this process that have not been let go of.
_open: weakref.WeakSet[Ties] = weakref.WeakSet()


class Handle:
    """What a `WorkerProcess` keeps, in one attribute: its subclasses choose names of their own.

    Does not travel: pickled, it becomes None, and the child makes another from the `Arrival`.
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


class Arrival:
    """What is sent to a child of spawn or forkserver in place of the process object.

    The ties come first, and the process object in a pickle of its own, so that the child is guarded before
    foreign code runs, and so that an error in unpickling it reaches the parent.
    """

    def __init__(
        self, name: str, link: ParentLink, report: Report, stack: AnonymousFile, trail: str, payload: bytes
    ) -> None:
        self._name = name
        self._parts = (link, report, stack, trail)
        self._payload = payload

    @override
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Arrival, (self._name, *self._parts, self._payload)

    def _bootstrap(self, parent_sentinel: object) -> int:
        """What multiprocessing calls once this has been unpickled; returns the exit code."""
        ties = Ties(*self._parts)
        ties.enter()
        try:
            with seam.inheriting():
                process = codec.contained(codec.loads, self._payload)
        except SerializationError as error:
            ties.report_failure(error)
            sys.stderr.write(f"Process {self._name}:\n")
            traceback.print_exc()
            return 1
        if not isinstance(process, seam.ChildProcess):
            raise TypeError(f"{self._name} arrived as {process!r}: its class has an unfit __reduce__")
        vars(process)["_mpkit"] = Handle(ties=ties)
        return process._bootstrap(parent_sentinel)
