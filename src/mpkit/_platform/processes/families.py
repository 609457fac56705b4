"""Signalling and ending processes together with all their descendants, none of whom slips away.

All that ends a worker, a `WorkerProcess` or the children of a dead parent ends it by this; who belongs to a
family tells `family_tree`.
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

__all__ = ["kill_families", "signal_families", "wait_families_gone"]

# A family that is stopped has no new members after a few rounds of looking. Not so one with a member of
# another user, which cannot be stopped, and goes on starting processes.
_MOST_ROUNDS: Final = 100

# How long to wait until one that has been sent SIGSTOP has stopped: it has to get a core for it. One that
# waits inside the kernel may do so for hours (for a disk, or for a child of vfork that we have stopped).
_STOPPING_PATIENCE_S: Final = 1.0
_HELD_PATIENCE_S: Final = 0.1
_FIRST_PAUSE_S: Final = 0.0001
_LONGEST_PAUSE_S: Final = 0.005

# How often it is looked for what those who are ending start meanwhile: after this time, then at ever longer
# intervals up to the second one. A look costs a millisecond or two.
_FIRST_LOOK_S: Final = 0.005
_LATER_LOOKS_S: Final = 0.25


# How far a process has come that is to stop: it moves; it waits inside the kernel, or nobody can tell; no
# thread of it runs any more, or it has ended.
_MOVING, _HELD, _STILL = range(3)

if sys.platform == "linux":

    def _motion(process: ProcessIdentity) -> int:
        try:
            states = stat_file.thread_states(process.pid)
        except OSError as error:
            return _HELD if identity.is_lack_of_means(error) else _STILL
        if states <= stat_file.NOT_RUNNING:
            return _STILL
        return _HELD if states <= stat_file.NOT_RUNNING | {b"D"} else _MOVING

else:

    def _motion(process: ProcessIdentity) -> int:
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
    """Kill `roots` and all their descendants at once (SIGKILL); what may not be signalled is passed over.

    No child that is being started meanwhile slips away: everything is stopped first, parents before their
    children, until nothing new turns up. What is stopped starts nothing, so this comes to an end (after a
    hundred looks at the latest: one of another user cannot be stopped). Whatever happens in between, what has
    been stopped is killed.

    Descendants can be missed only where there is no descriptor or memory left to look for them, and it stays
    so for a fifth of a second; or where one that is starting a process does not get as far as stopping
    within a second (a tenth, while it waits inside the kernel).

    Args:
        roots: The processes to begin with.
        spared: Processes that are passed over together with their own descendants.
        since: So are descendants that have started before this (see `ProcessIdentity.started`).
    """
    targets = [root for root in roots if root not in spared]
    try:
        _stop_all(targets, spared, since)
        _kill_all(targets)
    except BaseException:
        # What is stopped and not killed stays so for ever. Twice, should an interrupt come just before it is
        # kept away.
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
    """Send a signal to `roots` and all their descendants; what may not be signalled is passed over.

    No child that is being started meanwhile slips away, as with `kill_families`: everything is stopped, sent
    the signal, and let go on. So it also reaches those that somebody else had stopped before. On Windows,
    where nothing can be stopped, it is sent to those that are there.

    Args:
        roots: The processes to begin with.
        signum: The signal.
        since: Descendants that have started before this (see `ProcessIdentity.started`) are passed over,
            together with their own.
        announce: Called with all those that it is meant for, before any of them gets it.

    Returns:
        All those that it was meant for, the roots first.
    """
    targets = list(roots)
    try:
        _stop_all(targets, (), since)
        if announce is not None:
            announce(targets)
        for process in targets:
            signalling.send_signal_if_allowed(process, signum)
    finally:
        # Twice, should an interrupt come just before it is kept away.
        try:
            _continue_all(targets)
        finally:
            _continue_all(targets)
    return targets


def _continue_all(targets: list[ProcessIdentity]) -> None:
    if sys.platform != "win32":
        with deferred_interrupts():
            # Children first: a shell that waits for its own then sees none that is stopped.
            for process in reversed(targets):
                signalling.send_signal_if_allowed(process, signal.SIGCONT)


def _stop_all(targets: list[ProcessIdentity], spared: Collection[ProcessIdentity], since: int) -> None:
    """Stop `targets` and what descends from them, which is added before it is stopped."""
    # Not stopped: this process, which comes last, for what is stopped does nothing any more; and those that
    # cannot be, or take too long.
    loose = {identity.current()}
    # Looked at before anything is stopped: the kernel hangs up a group of processes whose leader goes while
    # members of it are stopped. Who dies of that has no children any more when it is looked at next. (A
    # single one often has none now.)
    known: list[ProcessIdentity] = []
    if len(targets) != 1 or not family_tree.is_childless(targets[0]):
        known = family_tree.descendants_if_seen(targets, spared, since)
    fresh = list(targets)
    for _ in range(_MOST_ROUNDS):
        loose.update(_stop([process for process in fresh if process not in loose]))
        # Only now is a housekeeper that was being started told from any other fork: until it has executed its
        # program, whoever starts it does not stop.
        new, known = family_tree.descendants_if_seen(targets, spared, since, known), []
        # Who does not die of being hung up is continued by it.
        continued = (p for p in targets if p not in loose and _motion(p) == _MOVING)
        fresh = [*continued, *new]
        if not fresh:
            break
        targets.extend(new)


def _stop(moving: list[ProcessIdentity]) -> list[ProcessIdentity]:
    """Stop processes and wait until they have stopped; those that cannot be, or take too long."""
    if sys.platform == "win32":
        return moving
    began = CLOCK.monotonic()
    pause = _FIRST_PAUSE_S
    while moving:
        # Again and again: one that is continued before it has stopped does not stop.
        for process in moving:
            signalling.send_signal_if_allowed(process, signal.SIGSTOP)
        # Sent is not stopped: since Linux 4.19 a fork that is under way goes on to its end, and the child is
        # in no table before that. It inherits nothing of the signal.
        passed = CLOCK.monotonic() - began
        given_up = {_STILL} if passed < _HELD_PATIENCE_S else {_STILL, _HELD}
        moving = [process for process in moving if _motion(process) not in given_up]
        if passed >= _STOPPING_PATIENCE_S:
            break
        if moving:
            time.sleep(pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE_S)
    return moving


def _kill_all(targets: list[ProcessIdentity]) -> None:
    me = identity.current()
    failed: OSError | None = None
    # Children, who are younger, first. When a parent goes, the kernel continues a child of it that is stopped
    # and has a group of its own, and that might start something. And should this process be killed in the
    # middle, those that are left still have the parent by whom others find them.
    ordered = sorted(targets, key=lambda process: (process != me, process.started))
    with deferred_interrupts():
        for process in reversed(ordered):
            try:
                signalling.send_signal_if_allowed(process, KILL)
            except OSError as error:
                # The others are stopped, too, and must not stay so.
                failed = error
    if failed is not None:
        raise failed


def wait_families_gone(roots: Iterable[ProcessIdentity], timeout: float | None) -> list[ProcessIdentity]:
    """Wait until `roots` and all their descendants have ended, those included that are started meanwhile.

    A descendant is known from the first look that finds it; then it counts, whoever its parent is. One that
    is started in the last moments of its parent, between two looks, cannot be told from a stranger.

    Args:
        roots: They need not be children of this process.
        timeout: Seconds at the longest for all together, None for ever.

    Returns:
        Those that still live when the time is out.

    Blocking: for at most `timeout`.
    """
    deadline = deadlines.deadline_of(timeout)
    pause = _FIRST_LOOK_S
    living = family_tree.with_descendants(roots)
    while True:
        left = deadlines.remaining(deadline)
        living = exits.wait_gone(living, pause if left is None else min(pause, left))
        if not living or left == 0.0:
            return living
        living = family_tree.with_descendants(living)
        pause = min(2.0 * pause, _LATER_LOOKS_S)
