"""Waiting for the end of processes that need not be children of this process.

This waits for events if the system has them: by process descriptors on Linux 5.3 and later, by kqueue on
macOS. Otherwise (and if no descriptor is left), processes are polled.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterable
from typing import Final

from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._platform.threads.readiness import LONGEST_WAIT_SECONDS, wait_readable

MOST_EVENTS: Final = 32
"""How many descriptors to use at most to wait for any number of processes: the program needs some, too."""

# The polling interval for processes without an event.
_EXAMINE_EVERY_SECONDS = 0.2


class ExitWatcher:
    """Waits until one of a set of processes has ended (a zombie has).

    Safe from: one thread at a time.
    """

    def __init__(self) -> None:
        self._watched: set[ProcessIdentity] = set()
        #: Those that are polled, because there is no event for them.
        self._blind: set[ProcessIdentity] = set()
        self._source = _event_source()

    def add(self, process: ProcessIdentity, *, by_event: bool = True) -> bool:
        """Watch a process.

        If it is being watched already, it stays so, and `wait` reports its end even if this call has noticed
        it.

        Args:
            process: The process.
            by_event: Whether to use an event; otherwise it is polled, which takes no descriptor.

        Returns:
            False if it has ended already.
        """
        if process in self._watched:
            return identity.is_alive(process)
        # Deferred, so that no interrupt comes between opening a descriptor and storing it.
        with deferred_interrupts():
            watched = by_event and self._source.add(process)
        # Checked after the event has been set up, which will report any later end. This also tells whether
        # the pid still means the same process.
        if not identity.is_alive(process):
            if watched:
                self._source.discard(process)
            return False
        if not watched:
            self._blind.add(process)
        self._watched.add(process)
        return True

    def __len__(self) -> int:
        """How many processes are watched."""
        return len(self._watched)

    def discard(self, process: ProcessIdentity) -> None:
        """Stop watching `process`, if it is watched."""
        self._watched.discard(process)
        self._blind.discard(process)
        with deferred_interrupts():
            self._source.discard(process)

    def wait(self, timeout: float | None, *, also: int | None = None) -> tuple[set[ProcessIdentity], bool]:
        """Wait until at least one of the processes has ended.

        Args:
            timeout: How many seconds to wait at most; None: no limit.
            also: A file descriptor; the waiting also ends when it becomes readable. Not on Windows.

        Returns:
            The processes that have ended, which are no longer watched (none if the time is over); and whether
            `also` is readable: true if it was readable when they ended.
        """
        deadline = deadline_of(timeout)
        while True:
            left = remaining(deadline)
            pause = None if left is None else min(left, LONGEST_WAIT_SECONDS)
            if self._blind:
                pause = _EXAMINE_EVERY_SECONDS if pause is None else min(pause, _EXAMINE_EVERY_SECONDS)
            ended, readable = self._source.wait(pause, also)
            ended |= {process for process in self._blind if not identity.is_alive(process)}
            if ended and also is not None and not readable:
                # Checked last. (Only Linux checks descriptors in order; and polled processes have none.)
                readable = wait_readable(also, 0.0)
            if ended or readable or (left is not None and left <= 0.0):
                for process in ended:
                    self.discard(process)
                return ended, readable

    def close(self) -> None:
        """Release the resources of the system."""
        self._watched.clear()
        self._blind.clear()
        with deferred_interrupts():
            self._source.close()


def wait_gone(processes: Iterable[ProcessIdentity], timeout: float | None) -> list[ProcessIdentity]:
    """Wait until all of `processes` have ended (a zombie has).

    Args:
        processes: They need not be children of this process.
        timeout: How many seconds to wait at most, for all together; None: no limit.

    Returns:
        Those that are still alive when the time is over.

    Blocking: for at most `timeout`.
    """
    deadline = deadline_of(timeout)
    watcher = ExitWatcher()
    try:
        living = {
            process for process in processes if watcher.add(process, by_event=len(watcher) < MOST_EVENTS)
        }
        while living:
            ended, _ = watcher.wait(remaining(deadline))
            if not ended:
                break
            living -= ended
        return list(living)
    finally:
        watcher.close()


class _Events:
    """A source of events for the end of processes.

    This base class is the one without any events, for systems that have none, or if no descriptor is left;
    then `ExitWatcher` polls.
    """

    def add(self, process: ProcessIdentity) -> bool:  # noqa: ARG002  as below
        """Watch a process; return whether `wait` will report its end."""
        return False

    def discard(self, process: ProcessIdentity) -> None:
        """Stop watching a process."""

    def wait(self, timeout: float | None, also: int | None) -> tuple[set[ProcessIdentity], bool]:
        """Wait for events, for `timeout` at most; return who has ended, and whether `also` is readable."""
        if also is None:
            # There is nothing to wait for, so never wait without a limit.
            time.sleep(_EXAMINE_EVERY_SECONDS if timeout is None else timeout)
            return set(), False
        return set(), wait_readable(also, timeout)

    def close(self) -> None:
        """Release the resources of the system."""


if sys.platform == "linux":

    class _Descriptors(_Events):
        """Process descriptors: readable once the process has ended (pidfd_open(2))."""

        def __init__(self) -> None:
            self._descriptors: dict[ProcessIdentity, int] = {}
            self._processes: dict[int, ProcessIdentity] = {}
            self._poll = select.poll()

        @override
        def add(self, process: ProcessIdentity) -> bool:
            if process in self._descriptors:
                return True
            try:
                descriptor = os.pidfd_open(process.pid)
            except OSError:
                # There is no such process; or no descriptor is left; or a sandbox refuses it. The caller
                # finds out.
                return False
            self._descriptors[process] = descriptor
            self._processes[descriptor] = process
            self._poll.register(descriptor, select.POLLIN)
            return True

        @override
        def discard(self, process: ProcessIdentity) -> None:
            descriptor = self._descriptors.get(process)
            if descriptor is not None:
                # KeyError: it is not registered (any more), because an exception (no memory) ended `add`, or
                # an earlier call of this, half way.
                with contextlib.suppress(KeyError):
                    self._poll.unregister(descriptor)
                self._processes.pop(descriptor, None)
                del self._descriptors[process]
                os.close(descriptor)

        @override
        def wait(self, timeout: float | None, also: int | None) -> tuple[set[ProcessIdentity], bool]:
            if also is not None:
                self._poll.register(also, select.POLLIN)
            try:
                ready = {fd for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000.0)}
            finally:
                if also is not None:
                    self._poll.unregister(also)
            return {self._processes[fd] for fd in ready if fd != also}, also in ready

        @override
        def close(self) -> None:
            for process in list(self._descriptors):
                self.discard(process)

    def _event_source() -> _Events:
        return _Descriptors() if hasattr(os, "pidfd_open") else _Events()

elif sys.platform == "darwin":

    class _Queue(_Events):
        """The exit filter of kqueue(2)."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self._processes: dict[int, ProcessIdentity] = {}

        @override
        def add(self, process: ProcessIdentity) -> bool:
            if not self._control(process.pid, select.KQ_EV_ADD | select.KQ_EV_ONESHOT):
                return False
            self._processes[process.pid] = process
            return True

        @override
        def discard(self, process: ProcessIdentity) -> None:
            if self._processes.get(process.pid) == process:
                del self._processes[process.pid]
                # (If the event has been delivered, the filter has removed itself.)
                self._control(process.pid, select.KQ_EV_DELETE)

        @override
        def wait(self, timeout: float | None, also: int | None) -> tuple[set[ProcessIdentity], bool]:
            changes = []
            if also is not None:
                changes = [
                    select.kevent(also, select.KQ_FILTER_READ, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
                ]
            events = self._queue.control(changes, 64, timeout)
            ended = {
                self._processes[event.ident]
                for event in events
                if event.filter == select.KQ_FILTER_PROC and event.ident in self._processes
            }
            return ended, any(
                event.filter == select.KQ_FILTER_READ and event.ident == also for event in events
            )

        @override
        def close(self) -> None:
            self._processes.clear()
            self._queue.close()

        def _control(self, pid: int, flags: int) -> bool:
            try:
                change = select.kevent(pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)
                self._queue.control([change], 0, 0)
            except OSError:
                return False
            return True

    def _event_source() -> _Events:
        try:
            return _Queue()
        except OSError:
            return _Events()  # no descriptor left

else:

    def _event_source() -> _Events:
        return _Events()
