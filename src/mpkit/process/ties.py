"""What parent and child of one `WorkerProcess` have in common."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpkit._platform.files.anonymous import AnonymousFile
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.processes import exits, family_tree, identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes
from mpkit._platform.threads import deadlines
from mpkit.errors import HandleLost, SharedMemoryExhausted
from mpkit.process.report import Report

if TYPE_CHECKING:
    from mpkit._shm.memory.blob import Blob

__all__ = ["Ties"]

# How long those are waited for that die with a killed process; the guardian needs some milliseconds.
_FAMILY_PATIENCE_S = 1.0


class Ties:
    """What the parent makes for each start: the link to it, the child's report, its fault handler's file."""

    def __init__(
        self,
        link: ParentLink,
        report: Report,
        stack: AnonymousFile,
        trail: str,
        above: tuple[Report, ...] = (),
        blob: Blob | None = None,
    ) -> None:
        self.link = link
        self.report = report
        self.stack = stack
        #: The file by which the child is found if its parent dies as well (see `mpkit._shm.memory.trail`);
        #: empty: a parent whose remains nobody removes needs none.
        self.trail = trail
        #: Those of the processes that it descends from: who stops one of them stops it as well.
        self.above = above
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
        # An orphan outlives them, and what they have left in there.
        above = () if orphan else tuple(other for other in _lineage if other.is_open())
        return cls(link, report, stack, "" if blob is None else blob.name, above, blob)

    def enter(self) -> None:
        """In the child, before anything else. A second time does nothing."""
        if self._entered:
            return
        self._entered = True
        self.link.die_with_parent()
        for other in list(_open):
            # After a fork: what belongs to other children would keep their results in memory while we live.
            if other is not self and other.report not in self.above:
                other.close()
        global _lineage
        _lineage = (self.report, *self.above)
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
            return any(report.is_being_stopped() for report in (self.report, *self.above))
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
            if family_tree.has_children():
                self.report.leaves(family_tree.descendants([identity.current()]))

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
        family = remains.family_of(process, its_notes)
        while (living := remains.living(family)) and not deadlines.has_passed(deadline):
            exits.wait_gone(living, deadlines.remaining(deadline))
            family = remains.family_of(process, its_notes)
        remains.remove(family)


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


# The reports of this process and of those that it descends from, if it is a child of this kind.
_lineage: tuple[Report, ...] = ()

# Those of all the children of this process that have not been let go of.
_open: weakref.WeakSet[Ties] = weakref.WeakSet()
