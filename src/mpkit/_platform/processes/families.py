"""Signalling and killing processes together with all their descendants, of whom none can escape.

A *family* is some processes, the *roots*, with all their descendants (see `family_tree`). Workers,
`WorkerProcess`es and the children of dead parents are ended by these functions.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from mpkit._platform.processes import exits, family_tree, identity, signalling, stat_file
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.signals.names import KILL
from mpkit._platform.threads import deadlines
from mpkit._platform.threads.clock import CLOCK

# How often to look for new members of a family that is being stopped. After a few rounds there are none,
# unless a member belongs to another user, so that it cannot be stopped, and keeps starting processes.
_MOST_ROUNDS: Final = 100

# How long to wait until a process that was sent SIGSTOP has stopped, for which it must get a core; and how
# long for one that waits inside the kernel, perhaps for hours (for a disk, or for a child of vfork that is
# stopped itself).
_STOPPING_PATIENCE_SECONDS: Final = 1.0
_HELD_PATIENCE_SECONDS: Final = 0.1
_FIRST_PAUSE_SECONDS: Final = 0.0001
_LONGEST_PAUSE_SECONDS: Final = 0.005

# While a family ends, when to look for processes that it starts meanwhile: first after the first time, then
# at growing intervals up to the second. A look takes a millisecond or two.
_FIRST_LOOK_SECONDS: Final = 0.005
_LATER_LOOKS_SECONDS: Final = 0.25


# What a process that has to stop is doing: it is running; it waits inside the kernel, or this cannot be
# known; all its threads have stopped, or it has ended.
_MOVING, _HELD, _STILL = range(3)

if sys.platform == "linux":

    def _motion(process: ProcessIdentity) -> int:
        """Whether a process that was sent SIGSTOP has stopped: `_MOVING`, `_HELD` or `_STILL`."""
        try:
            states = stat_file.thread_states(process.pid)
        except OSError as error:
            return _HELD if identity.is_lack_of_means(error) else _STILL
        if states <= stat_file.NOT_RUNNING:
            return _STILL
        return _HELD if states <= stat_file.NOT_RUNNING | {b"D"} else _MOVING

else:

    def _motion(process: ProcessIdentity) -> int:
        """Whether a process that was sent SIGSTOP has stopped: `_MOVING`, `_HELD` or `_STILL`."""
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        try:
            status = psutil.Process(process.pid).status()
        except psutil.AccessDenied:
            return _HELD
        except psutil.NoSuchProcess:
            return _STILL
        return _STILL if status in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE} else _MOVING


def kill_families(
    roots: Iterable[ProcessIdentity], *, spared: Collection[ProcessIdentity] = (), since: int = 0
) -> None:
    """Kill `roots` and all their descendants at once (SIGKILL). Processes of other users are skipped.

    A child that is just being started cannot escape: first everything is stopped, parents before their
    children, until no new processes appear. A stopped process starts nothing, so this comes to an end (after
    a hundred rounds at the latest, because processes of other users cannot be stopped). Whatever happens in
    between, processes that have been stopped are killed.

    Descendants can be missed only if there is no descriptor or memory left to look for them for a fifth of a
    second; or if a process that is starting another one does not stop within a second (within a tenth, if it
    waits inside the kernel).

    Args:
        roots: The processes to begin with.
        spared: Processes that are skipped, together with their descendants.
        since: Descendants that were started before this are skipped, too (see `ProcessIdentity`).
    """
    targets = [root for root in roots if root not in spared]
    try:
        _stop_all(targets, spared, since)
        _kill_all(targets)
    except BaseException:
        # A process that is stopped and not killed would stay stopped for ever. Twice, in case an interrupt
        # comes just before interrupts are deferred.
        try:
            _kill_all(targets)
        finally:
            _kill_all(targets)
        raise


def signal_families(
    roots: Iterable[ProcessIdentity],
    signum: int,
    *,
    since: int = 0,
    announce: Callable[[list[ProcessIdentity]], object] | None = None,
) -> list[ProcessIdentity]:
    """Send a signal to `roots` and all their descendants. Processes of other users are skipped.

    A child that is just being started cannot escape, as with `kill_families`: everything is stopped, sent the
    signal, and continued. So processes that had been stopped before are continued and get the signal, too. On
    Windows, where processes cannot be stopped, the signal is sent to those that exist.

    Args:
        roots: The processes to begin with.
        signum: The signal.
        since: Descendants that were started before this (see `ProcessIdentity`) are skipped, together with
            theirs.
        announce: Called with the whole family before any member gets the signal.

    Returns:
        The whole family, the roots first.
    """
    targets = list(roots)
    try:
        _stop_all(targets, (), since)
        if announce is not None:
            announce(targets)
        for process in targets:
            signalling.send_signal_if_allowed(process, signum)
    finally:
        # Twice, in case an interrupt comes just before interrupts are deferred.
        try:
            _continue_all(targets)
        finally:
            _continue_all(targets)
    return targets


def _continue_all(targets: list[ProcessIdentity]) -> None:
    if sys.platform != "win32":
        with deferred_interrupts():
            # Children first, so that a shell that waits for its children does not see any that is stopped.
            for process in reversed(targets):
                signalling.send_signal_if_allowed(process, signal.SIGCONT)


def _stop_all(targets: list[ProcessIdentity], spared: Collection[ProcessIdentity], since: int) -> None:
    """Stop `targets` and all their descendants, which are added to `targets` before they are stopped."""
    # Processes that are not stopped: this one, which could do nothing any more; and those that cannot be
    # stopped, or take too long.
    loose = {identity.current()}
    # Descendants are listed before anything is stopped: if the leader of a process group ends while members
    # of it are stopped, the kernel sends SIGHUP to the group, and the descendants of a process that dies of
    # this could no longer be found. (A single root often has no children; then this is skipped.)
    known: list[ProcessIdentity] = []
    if len(targets) != 1 or not family_tree.is_childless(targets[0]):
        known = family_tree.descendants_if_seen(targets, spared, since)
    fresh = list(targets)
    for _ in range(_MOST_ROUNDS):
        loose.update(_stop([process for process in fresh if process not in loose]))
        # A housekeeper that is just being started looks like any other forked process until it has executed
        # its program. Its parent does not stop before that, so by now it can be recognised.
        new, known = family_tree.descendants_if_seen(targets, spared, since, known), []
        # Processes that were continued: by SIGHUP (see above), if they have survived it.
        continued = (p for p in targets if p not in loose and _motion(p) == _MOVING)
        fresh = [*continued, *new]
        if not fresh:
            break
        targets.extend(new)


def _stop(moving: list[ProcessIdentity]) -> list[ProcessIdentity]:
    """Stop processes and wait until they have stopped; return those that cannot be, or take too long."""
    if sys.platform == "win32":
        return moving
    began = CLOCK.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    while moving:
        # Repeated, because a process that is continued before it has stopped does not stop.
        for process in moving:
            signalling.send_signal_if_allowed(process, signal.SIGSTOP)
        # A process that was sent the signal may not have stopped yet: since Linux 4.19 a fork that is under
        # way is completed first. Until then the child cannot be found, and it does not inherit the signal.
        passed = CLOCK.monotonic() - began
        given_up = {_STILL} if passed < _HELD_PATIENCE_SECONDS else {_STILL, _HELD}
        moving = [process for process in moving if _motion(process) not in given_up]
        if passed >= _STOPPING_PATIENCE_SECONDS:
            break
        if moving:
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE_SECONDS)
    return moving


def _kill_all(targets: list[ProcessIdentity]) -> None:
    me = identity.current()
    failed: OSError | None = None
    # Children (which are younger) before their parents. When a parent ends, the kernel continues a stopped
    # child that has a process group of its own, which might then start something. And if this process is
    # killed in the middle, the remaining ones still have their parents, by which others can find them.
    ordered = sorted(targets, key=lambda process: (process != me, process.started))
    with deferred_interrupts():
        for process in reversed(ordered):
            try:
                signalling.send_signal_if_allowed(process, KILL)
            except OSError as error:
                # Raised later, because the others must not stay stopped.
                failed = error
    if failed is not None:
        raise failed


def wait_families_gone(roots: Iterable[ProcessIdentity], timeout: float | None) -> list[ProcessIdentity]:
    """Wait until `roots` and all their descendants have ended, including ones that are started meanwhile.

    Once a look has found a descendant, it counts even if its parent ends. One that is started in the last
    moments of its parent, between two looks, cannot be found.

    Args:
        roots: They need not be children of this process.
        timeout: How many seconds to wait at most, for all together; None: no limit.

    Returns:
        Those that are still alive when the time is over.

    Blocking: for at most `timeout`.
    """
    deadline = deadlines.deadline_of(timeout)
    pause = _FIRST_LOOK_SECONDS
    living = family_tree.with_descendants(roots)
    while True:
        left = deadlines.remaining(deadline)
        living = exits.wait_gone(living, pause if left is None else min(pause, left))
        if not living or left == 0.0:
            return living
        living = family_tree.with_descendants(living)
        pause = min(2.0 * pause, _LATER_LOOKS_SECONDS)
