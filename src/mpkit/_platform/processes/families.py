"""The descendants of a process, and how to signal and end them without hitting a stranger or missing one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from typing import Final, Protocol

from mpkit._platform.processes import identity, stat_file
from mpkit._platform.processes.exits import MOST_EVENTS, ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.signals.names import KILL
from mpkit._platform.threads import deadlines

__all__ = [
    "HOUSEKEEPERS",
    "KillFamilies",
    "children_of",
    "descendants",
    "descendants_since",
    "fork_servers_of",
    "has_children",
    "kill_families",
    "may_be_signalled",
    "send_signal",
    "send_signal_if_allowed",
    "signal_families",
    "wait_families_gone",
    "wait_gone",
    "with_descendants",
]

HOUSEKEEPERS = (
    "from multiprocessing.resource_tracker import main",
    "from mpkit._platform.parent_death.guardian import main",
)
"""Marks in the command line of a process that must outlive its family, to clean up after it."""

_FORK_SERVER: Final = "multiprocessing.forkserver"

# How often, and after which pause, the table of processes is asked for again while there is no descriptor
# left to read it with: others give theirs back all the time, and nothing tells when.
_LOOKS: Final = 20
_PAUSE_S: Final = 0.01

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


class _Motion(Enum):
    """How far a process has come that is to stop."""

    MOVING = auto()
    HELD = auto()
    """It waits inside the kernel; or nobody can tell."""
    STILL = auto()
    """No thread of it runs any more; or it has ended."""


if sys.platform == "linux":

    def _parents() -> dict[int, tuple[int, ProcessIdentity]]:
        """Every living process: pid -> (pid of its parent, identity).

        Raises:
            OSError: If there is no descriptor or memory left: a table with holes would hide descendants.
        """
        table: dict[int, tuple[int, ProcessIdentity]] = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = stat_file.fields_of(int(entry))
            except OSError as error:
                if identity.is_lack_of_means(error):
                    raise
                continue  # ended meanwhile, or hidden from us
            if fields[stat_file.STATE] not in stat_file.ENDED:
                pid = int(entry)
                process = ProcessIdentity(pid, int(fields[stat_file.STARTED]))
                table[pid] = (int(fields[stat_file.PARENT]), process)
        return table

    def _child_pids(pid: int, threads: int | None = None) -> list[int] | None:
        """The children of a process, ended ones included; None where that cannot be told so cheaply.

        Args:
            pid: Whose.
            threads: Those that so many threads have started, the oldest ones; None: all.
        """
        found: list[int] = []
        try:
            for thread in os.listdir(f"/proc/{pid}/task")[:threads]:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            return None  # a thread has ended; or the kernel was built without it; or nothing to look with
        return found

    def _motion(process: ProcessIdentity) -> _Motion:
        try:
            states = stat_file.thread_states(process.pid)
        except OSError as error:
            return _Motion.HELD if identity.is_lack_of_means(error) else _Motion.STILL
        if states <= stat_file.NOT_RUNNING:
            return _Motion.STILL
        return _Motion.HELD if states <= stat_file.NOT_RUNNING | {b"D"} else _Motion.MOVING

    def _command_line(pid: int) -> str:
        try:
            with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
                return os.fsdecode(file.read(65536).replace(b"\0", b" "))
        except OSError as error:
            # A housekeeper must not be taken for something else.
            if identity.is_lack_of_means(error):
                raise
            return ""

else:

    def _parents() -> dict[int, tuple[int, ProcessIdentity]]:
        """Every living process: pid -> (pid of its parent, identity)."""
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        table: dict[int, tuple[int, ProcessIdentity]] = {}
        # Not by `process_iter`, which leaves out a process that has got the pid of one it knows.
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found = ProcessIdentity(pid, identity.start_of(process))
                        table[pid] = (process.ppid(), found)
            except psutil.Error:
                continue  # ended meanwhile, or hidden from us
        return table

    def _child_pids(pid: int, threads: int | None = None) -> list[int] | None:
        """The children of a process; None: that cannot be told so cheaply."""
        del pid, threads
        return None

    def _motion(process: ProcessIdentity) -> _Motion:
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        try:
            status = psutil.Process(process.pid).status()
        except psutil.AccessDenied:
            return _Motion.HELD
        except psutil.NoSuchProcess:
            return _Motion.STILL
        return _Motion.STILL if status in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE} else _Motion.MOVING

    def _command_line(pid: int) -> str:
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        try:
            return " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            return ""


def descendants(
    roots: Iterable[ProcessIdentity],
    *,
    spared: Collection[ProcessIdentity] = (),
    since: int = 0,
    known: Iterable[ProcessIdentity] = (),
) -> list[ProcessIdentity]:
    """The living descendants of `roots`, parents before their children; housekeepers are left out.

    Args:
        roots: The processes to begin with. They are not among the result.
        spared: Processes that are passed over together with their own descendants.
        since: So are those that have started before this (see `ProcessIdentity.started`), unless they are
            roots. What the fork server of a root starts counts as started by that root.
        known: What an earlier call has returned: it counts, whoever its parents are now.

    Raises:
        OSError: If there is no descriptor or memory left to look with.
    """
    table = _parents()
    children: dict[int, list[ProcessIdentity]] = {}
    for parent, process in table.values():
        children.setdefault(parent, []).append(process)
    # A root that is gone has no children: the pid may be another's by now.
    queue = [root for root in roots if table.get(root.pid, (0, None))[1] == root]
    seen = set(queue)
    found: list[ProcessIdentity] = []
    for process in known:
        # It may have executed the program of a housekeeper since.
        if table.get(process.pid, (0, None))[1] == process and not _is_housekeeper(process.pid):
            seen.add(process)
            found.append(process)
            queue.append(process)
    for process in queue:
        for child in children.get(process.pid, ()):
            if child in seen or child in spared or _is_housekeeper(child.pid):
                continue
            seen.add(child)
            if child.started < since:
                if _is_fork_server(child.pid, process.pid):
                    queue.append(child)
                continue
            found.append(child)
            queue.append(child)
    return found


def descendants_since(root: ProcessIdentity, since: int) -> list[ProcessIdentity]:
    """The living descendants of one process that were started since then. Cheap where it has no children.

    If there is no descriptor or memory left to look with, and it stays so for a fifth of a second: none.
    """
    return [] if _child_pids(root.pid) == [] else _descendants_if_seen((root,), (), since)


def children_of(
    process: ProcessIdentity, most: int | None = None, threads: int | None = None
) -> list[ProcessIdentity]:
    """The living children that a process has now, without housekeepers. Cheap; none where that cannot be told
    cheaply, or there is no descriptor or memory left to look with.

    Args:
        process: Whose.
        most: Look at so many of them at most, the oldest ones; None: at all.
        threads: And at those of so many threads, the oldest ones; None: of all.
    """
    pids = (_child_pids(process.pid, threads) or [])[:most]
    try:
        found = [child for child in map(identity.of, pids) if child and not _is_housekeeper(child.pid)]
        # The pid may have been another's by then.
        return found if found and identity.is_alive(process) else []
    except OSError:
        return []


def fork_servers_of(process: ProcessIdentity) -> list[ProcessIdentity]:
    """The fork server that multiprocessing has started in a process. None where that cannot be told cheaply.

    Raises:
        OSError: If there is no descriptor or memory left to look with.
    """
    return [child for child in children_of(process) if _is_fork_server(child.pid, process.pid)]


def has_children() -> bool:
    """Whether this process has children, at the price of one system call. Ended ones count until somebody has
    waited for them. Where that cannot be told so: true before Python 3.13 on macOS, false on Windows.
    """
    if sys.platform == "win32":
        return False
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def with_descendants(processes: Iterable[ProcessIdentity]) -> list[ProcessIdentity]:
    """These processes, then their living descendants that are not among them.

    For those who are ending a family and have to go on in any case: if there is no descriptor or memory left
    to look with, and it stays so for a fifth of a second, only `processes`.
    """
    known = list(processes)
    return known + [process for process in _descendants_if_seen(known, ()) if process not in known]


def _descendants_if_seen(
    roots: Iterable[ProcessIdentity],
    spared: Collection[ProcessIdentity],
    since: int = 0,
    known: Collection[ProcessIdentity] = (),
) -> list[ProcessIdentity]:
    roots = tuple(roots)
    for _ in range(_LOOKS):
        try:
            return descendants(roots, spared=spared, since=since, known=known)
        except OSError as error:
            if not identity.is_lack_of_means(error):
                raise
            time.sleep(_PAUSE_S)
    return []


def _is_fork_server(pid: int, parent: int) -> bool:
    """Whether a child of `parent` is the fork server of its multiprocessing."""
    line = _command_line(pid)
    # What a fork server has started has the same line, and so have the forks of that.
    return _FORK_SERVER in line and line != _command_line(parent)


def _is_housekeeper(pid: int) -> bool:
    line = _command_line(pid)
    return any(mark in line for mark in HOUSEKEEPERS)


def send_signal(process: ProcessIdentity, signum: int) -> bool:
    """Send a signal to this very process, never to another that has got its pid.

    Returns:
        Whether it was sent; False when the process has ended.

    Raises:
        PermissionError: If it belongs to another user.
    """
    # An interrupt between a descriptor and its use would leave it open.
    with deferred_interrupts():
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return False
            except OSError:
                return _send_by_pid(process, signum)  # an old kernel, a sandbox, out of descriptors
            try:
                # The descriptor holds on to one process; which one, is looked up now that it cannot change
                # any more.
                if not identity.is_alive(process):
                    return False
                signal.pidfd_send_signal(descriptor, signum)
            except ProcessLookupError:
                return False
            finally:
                os.close(descriptor)
            return True
        return _send_by_pid(process, signum)


def _send_by_pid(process: ProcessIdentity, signum: int) -> bool:
    # Between the look and the signal the pid could in theory be handed out again; systems do that late.
    if not identity.is_alive(process):
        return False
    try:
        os.kill(process.pid, signum)
    except OSError:
        # What Windows says of one that has ended meanwhile depends on who else has it open.
        if identity.is_alive(process):
            raise
        return False
    return True


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
            send_signal_if_allowed(process, signum)
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
                send_signal_if_allowed(process, signal.SIGCONT)


def _stop_all(targets: list[ProcessIdentity], spared: Collection[ProcessIdentity], since: int) -> None:
    """Stop `targets` and what descends from them, which is added before it is stopped."""
    # Not stopped: this process, which comes last, for what is stopped does nothing any more; and those that
    # cannot be, or take too long.
    loose = {identity.current()}
    # Looked at before anything is stopped: the kernel hangs up a group of processes whose leader goes while
    # members of it are stopped. Who dies of that has no children any more when it is looked at next. (A
    # single one often has none now.)
    known: list[ProcessIdentity] = []
    if len(targets) != 1 or _child_pids(targets[0].pid) != []:
        known = _descendants_if_seen(targets, spared, since)
    fresh = list(targets)
    for _ in range(_MOST_ROUNDS):
        loose.update(_stop([process for process in fresh if process not in loose]))
        # Only now is a housekeeper that was being started told from any other fork: until it has executed its
        # program, whoever starts it does not stop.
        new, known = _descendants_if_seen(targets, spared, since, known), []
        # Who does not die of being hung up is continued by it.
        continued = (p for p in targets if p not in loose and _motion(p) is _Motion.MOVING)
        fresh = [*continued, *new]
        if not fresh:
            break
        targets.extend(new)


def _stop(moving: list[ProcessIdentity]) -> list[ProcessIdentity]:
    """Stop processes and wait until they have stopped; those that cannot be, or take too long."""
    if sys.platform == "win32":
        return moving
    began = time.monotonic()
    pause = _FIRST_PAUSE_S
    while moving:
        # Again and again: one that is continued before it has stopped does not stop.
        for process in moving:
            send_signal_if_allowed(process, signal.SIGSTOP)
        # Sent is not stopped: since Linux 4.19 a fork that is under way goes on to its end, and the child is
        # in no table before that. It inherits nothing of the signal.
        passed = time.monotonic() - began
        given_up = {_Motion.STILL} if passed < _HELD_PATIENCE_S else {_Motion.STILL, _Motion.HELD}
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
                send_signal_if_allowed(process, KILL)
            except OSError as error:
                # The others are stopped, too, and must not stay so.
                failed = error
    if failed is not None:
        raise failed


class KillFamilies(Protocol):
    """The shape of `kill_families`."""

    def __call__(
        self, roots: Iterable[ProcessIdentity], *, spared: Collection[ProcessIdentity] = ()
    ) -> None: ...


def send_signal_if_allowed(process: ProcessIdentity, signum: int) -> None:
    """Send a signal to this very process, if it lives and belongs to this user."""
    try:
        send_signal(process, signum)
    except PermissionError:
        # A set-uid program of another user: not ours to end.
        return


def may_be_signalled(process: ProcessIdentity) -> bool:
    """Whether it belongs to this user; one that has ended does. Not known on Windows: true.

    (There, 0 is no question but Ctrl-C.)
    """
    if sys.platform == "win32":
        return True
    try:
        send_signal(process, 0)
    except PermissionError:
        return False
    return True


def wait_gone(processes: Iterable[ProcessIdentity], timeout: float | None) -> list[ProcessIdentity]:
    """Wait until all of `processes` have ended (a zombie has).

    Args:
        processes: They need not be children of this process.
        timeout: Seconds at the longest for all together, None for ever.

    Returns:
        Those that still live when the time is out.

    Blocking: for at most `timeout`.
    """
    deadline = deadlines.deadline_of(timeout)
    watcher = ExitWatcher()
    try:
        living = {
            process for process in processes if watcher.add(process, by_event=len(watcher) < MOST_EVENTS)
        }
        while living:
            ended, _ = watcher.wait(deadlines.remaining(deadline))
            if not ended:
                break
            living -= ended
        return list(living)
    finally:
        watcher.close()


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
    living = with_descendants(roots)
    while True:
        left = deadlines.remaining(deadline)
        living = wait_gone(living, pause if left is None else min(pause, left))
        if not living or left == 0.0:
            return living
        living = with_descendants(living)
        pause = min(2.0 * pause, _LATER_LOOKS_S)
