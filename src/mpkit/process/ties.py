"""What the parent and child of one `WorkerProcess` share, and what the child does at its start and end."""

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

# How long to wait for the descendants that die with a killed process. The guardian needs some milliseconds.
_FAMILY_PATIENCE_SECONDS = 1.0


class Ties:
    """What the parent creates for each start, and the child gets.

    Attributes:
        link: Ties the child's life to its parent's.
        report: The file in which the child tells its result.
        stack: The file into which the child's fault handler writes.
        trail: The path of the file by which the child is found if its parent dies as well (see
            `mpkit._shm.memory.trail`); empty if nobody cleans up after this parent.
        above: The reports of the ancestors of this kind: if one of those is stopped, this child is, too.
        shares_tracker: Whether the child uses this process's resource tracker. (A forked child that is the
            first to need a tracker starts its own, which cleans up after it.)
    """

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
        self.trail = trail
        self.above = above
        # In the parent: the file of the trail, which the parent removes.
        self._blob = blob
        self.shares_tracker: bool = False
        self._entered = False
        self._handed_in = False
        _open.add(self)

    @classmethod
    def create(cls, *, orphan: bool) -> Ties:
        """In the parent: create the ties of a child that is about to be started.

        Raises:
            OSError: If there is no file descriptor or memory left. Nothing is left behind.
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
        # An orphan is not stopped with its ancestors.
        above = () if orphan else tuple(other for other in _lineage if other.is_open())
        return cls(link, report, stack, "" if blob is None else blob.name, above, blob)

    def enter(self) -> None:
        """In the child, before anything else: die with the parent from now on, and report the arrival.

        If the child is not wanted any more, this ends the process. A second call does nothing.
        """
        if self._entered:
            return
        self._entered = True
        self.link.die_with_parent()
        for other in list(_open):
            # After a fork, the files of the parent's other children would keep their results in memory for as
            # long as this process lives.
            if other is not self and other.report not in self.above:
                other.close()
        global _lineage
        _lineage = (self.report, *self.above)
        # All threads, because the cause may be in another one than the one that crashed.
        faulthandler.enable(self.stack.fileno(), all_threads=True)
        wanted = self.report.arrived()
        if self.trail:
            wanted = _follow(self.trail, self.link) and wanted
        elif os.name == "posix":
            notes.keep(self.report.note)
        if not wanted:
            # The parent's `start` has failed or was interrupted, or the parent has died.
            os._exit(1)

    def perform(self, run: Callable[[], object]) -> None:
        """In the child: call `run`, and report what it returned or raised.

        If the target forks, `run` also returns in the forked process, where its outcome is not the target's
        and so is not reported. Once the target has ended, its outcome is final: an interrupt that comes later
        does not change it.
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
                if not self._handed_in:  # it came just before interrupts were deferred
                    self.report_failure(error)
            if isinstance(error, KeyboardInterrupt) and self._is_being_stopped():
                # No traceback: a program that stops many processes because of an error in one of them should
                # show that one's only.
                raise SystemExit(1) from None
            raise
        finally:
            if os.getpid() == pid:
                self._name_survivors()

    def _is_being_stopped(self) -> bool:
        # OSError, ValueError: the program has closed all descriptors.
        with contextlib.suppress(OSError, ValueError):
            return any(report.is_being_stopped() for report in (self.report, *self.above))
        return False

    def report_failure(self, error: BaseException) -> None:
        """In the child: report an error."""
        # OSError: there is no room even for this. Then there is only the exit code, and the traceback on
        # stderr.
        with deferred_interrupts(), contextlib.suppress(OSError):
            self.report.raised(error)
            self._handed_in = True

    def _name_survivors(self) -> None:
        """In the child, which is ending: report its descendants, for a parent that is stopping it.

        The parent itself cannot find a process that was started at the last moment, between the arrival of a
        signal and Python's acting on it: once this process is gone, nothing tells whose child it was.
        """
        # OSError: no descriptor left to look with, or no room to write. Then the parent has to do without.
        with deferred_interrupts(), contextlib.suppress(OSError):
            if family_tree.has_children():
                self.report.leaves(family_tree.descendants([identity.current()]))

    def last_words(self) -> str | None:
        """In the parent: what the child's fault handler wrote, if anything."""
        return self.stack.read().decode(errors="replace") or None

    def show_last_words(self, name: str) -> None:
        """In the parent: print `last_words` to stderr, if this program has enabled the fault handler.

        In that case the child's fault handler would have written to stderr, had `enter` not redirected it.
        """
        # OSError, ValueError: the program has closed stderr, or all descriptors.
        with contextlib.suppress(OSError, ValueError):
            if faulthandler.is_enabled() and sys.stderr is not None and (words := self.last_words()):
                sys.stderr.write(f"Process {name}:\n{words}")

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        self.report.close()
        self.stack.close()
        if self._blob is not None:
            self._blob.close()

    def remove_remains(self, process: ProcessIdentity) -> None:
        """In the parent, once the child has ended: remove what it has left in shared memory.

        Args:
            process: The child.

        Blocking: for a second at most, until the descendants that die with it have ended.
        """
        if not self.shares_tracker:
            return
        from mpkit._shm.locks import remains  # noqa: PLC0415  rarely needed
        from mpkit._shm.memory import trail  # noqa: PLC0415  rarely needed

        its_notes = self.report.notes()
        if self.trail and (found := trail.read(self.trail)) is not None:
            its_notes = found[1]
        deadline = deadlines.deadline_of(_FAMILY_PATIENCE_SECONDS)
        # Looked for again after each wait: until they are killed they may start others.
        family = remains.family_of(process, its_notes)
        while (living := remains.living(family)) and not deadlines.has_passed(deadline):
            exits.wait_gone(living, deadlines.remaining(deadline))
            family = remains.family_of(process, its_notes)
        remains.remove(family)


def _make_trail() -> Blob | None:
    from mpkit._shm.memory import trail  # noqa: PLC0415  most processes start none
    from mpkit._shm.memory.blob import Blob  # noqa: PLC0415

    # Without room for it, the resource tracker cleans up at the end of the program, with a warning.
    with contextlib.suppress(SharedMemoryExhausted):
        return Blob.create([(0, bytes(trail.END << 3))], trail.END << 3, kind=trail.KIND)
    return None


def _follow(name: str, link: ParentLink) -> bool:
    """In the child: begin the trail in the file `name`.

    Returns:
        Whether the parent is still alive; if not, it may be too late to be found there.
    """
    from mpkit._shm.memory import trail  # noqa: PLC0415  most processes have none
    from mpkit._shm.memory.segment import Segment  # noqa: PLC0415

    try:
        segment = Segment.attach(name)
    except HandleLost:
        return False
    trail.begin(segment)
    segment.close()
    return link.is_parent_alive()


# The reports of this process and of its ancestors, as far as they are `WorkerProcess`es.
_lineage: tuple[Report, ...] = ()

# The ties of this process's children that still exist.
_open: weakref.WeakSet[Ties] = weakref.WeakSet()
