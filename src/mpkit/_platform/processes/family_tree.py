"""The children and further descendants of a process, without its *housekeepers*.

Housekeepers are the helper processes that must outlive a family, to clean up after it: the resource tracker
of multiprocessing, and the guardian.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterable
from typing import Final

from mpkit._platform.processes import identity, stat_file
from mpkit._platform.processes.identity import ProcessIdentity

GUARDIAN: Final = "from mpkit._platform.parent_death.guardian import main"
"""The beginning of the guardian's program, by which it is recognised."""

HOUSEKEEPERS: Final = ("from multiprocessing.resource_tracker import main", GUARDIAN)
"""The texts in the command lines of housekeepers by which they are recognised."""

_FORK_SERVER: Final = "multiprocessing.forkserver"

# How often, and after which pause, to read the table of processes again if no descriptor is left for that:
# others may be closed at any time, for which there is no event.
_LOOKS: Final = 20
_PAUSE_SECONDS: Final = 0.01

if sys.platform == "linux":

    def _parents() -> dict[int, tuple[int, ProcessIdentity]]:
        """All living processes: pid -> (pid of its parent, identity).

        Raises:
            OSError: If there is no descriptor or memory left: an incomplete table would hide descendants.
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
        """The children of a process, including ended ones; None if this cannot be found out cheaply.

        Args:
            pid: The process.
            threads: Only those that its oldest threads have started, this many; None: all.
        """
        found: list[int] = []
        try:
            for thread in os.listdir(f"/proc/{pid}/task")[:threads]:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            return None  # a thread has ended; or the kernel does not support it; or no descriptor is left
        return found

    def _command_line(pid: int) -> str:
        try:
            with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
                return os.fsdecode(file.read(65536).replace(b"\0", b" "))
        except OSError as error:
            # Raised, because otherwise a housekeeper would not be recognised.
            if identity.is_lack_of_means(error):
                raise
            return ""

else:

    def _parents() -> dict[int, tuple[int, ProcessIdentity]]:
        """All living processes: pid -> (pid of its parent, identity)."""
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        table: dict[int, tuple[int, ProcessIdentity]] = {}
        # Not by `process_iter`, which omits a process with a reused pid.
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
        """The children of a process; here always None, because this cannot be found out cheaply."""
        del pid, threads
        return None

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
    """The living descendants of `roots`, parents before their children, without housekeepers.

    Args:
        roots: The processes to begin with. They are not part of the result.
        spared: Processes that are skipped, together with their descendants.
        since: Descendants that were started before this (see `ProcessIdentity`) are skipped, too. But what
            the fork server of a root has started since then counts as started by that root.
        known: The result of an earlier call: these count even if their parents have ended.

    Raises:
        OSError: If there is no descriptor or memory left to read the table of processes.
    """
    table = _parents()
    children: dict[int, list[ProcessIdentity]] = {}
    for parent, process in table.values():
        children.setdefault(parent, []).append(process)
    # Only roots that exist: the pid of one that has ended may have been reused.
    queue = [root for root in roots if table.get(root.pid, (0, None))[1] == root]
    seen = set(queue)
    found: list[ProcessIdentity] = []
    for process in known:
        # Meanwhile it may have executed the program of a housekeeper.
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
    """The living descendants of a process that were started since then. Cheap if it has no children.

    None are returned if there is no descriptor or memory left to look for them for a fifth of a second.
    """
    return [] if is_childless(root) else descendants_if_seen((root,), (), since)


def children_of(
    process: ProcessIdentity, most: int | None = None, threads: int | None = None
) -> list[ProcessIdentity]:
    """The living children of a process, without housekeepers. Cheap.

    None are returned if they cannot be found out cheaply, or there is no descriptor or memory left.

    Args:
        process: The process.
        most: Only look at this many children, the oldest ones; None: at all.
        threads: Only look at children that its oldest threads have started, this many; None: that any has
            started.
    """
    pids = (_child_pids(process.pid, threads) or [])[:most]
    try:
        found = [child for child in map(identity.of, pids) if child and not _is_housekeeper(child.pid)]
        # If the process has ended, its pid may have been reused before its children were listed.
        return found if found and identity.is_alive(process) else []
    except OSError:
        return []


def fork_servers_of(process: ProcessIdentity) -> list[ProcessIdentity]:
    """The fork server (at most one) that multiprocessing has started in a process.

    The list is empty if there is none, or if this cannot be found out cheaply.

    Raises:
        OSError: If there is no descriptor or memory left to find out.
    """
    return [child for child in children_of(process) if _is_fork_server(child.pid, process.pid)]


def is_childless(process: ProcessIdentity) -> bool:
    """Whether it is certain that a process has no children, not even ones that have ended. Cheap."""
    return _child_pids(process.pid) == []


def has_children() -> bool:
    """Whether this process has children, found out by a single system call.

    Children that have ended count until they are reaped. Where there is no such call, this is true on macOS
    (before Python 3.13), and false on Windows.
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
    """These processes, and then their other living descendants.

    If there is no descriptor or memory left to look for descendants for a fifth of a second, only `processes`
    are returned, because a caller that is ending a family has to go on in any case.
    """
    known = list(processes)
    return known + [process for process in descendants_if_seen(known, ()) if process not in known]


def descendants_if_seen(
    roots: Iterable[ProcessIdentity],
    spared: Collection[ProcessIdentity],
    since: int = 0,
    known: Collection[ProcessIdentity] = (),
) -> list[ProcessIdentity]:
    """`descendants`, but none if there is no descriptor or memory left for a fifth of a second."""
    roots = tuple(roots)
    for _ in range(_LOOKS):
        try:
            return descendants(roots, spared=spared, since=since, known=known)
        except OSError as error:
            if not identity.is_lack_of_means(error):
                raise
            time.sleep(_PAUSE_SECONDS)
    return []


def _is_fork_server(pid: int, parent: int) -> bool:
    """Whether a child of `parent` is a fork server that multiprocessing has started in `parent`."""
    line = _command_line(pid)
    # Processes that a fork server has forked have the same command line as the server, and so do their forks.
    return _FORK_SERVER in line and line != _command_line(parent)


def _is_housekeeper(pid: int) -> bool:
    line = _command_line(pid)
    return any(mark in line for mark in HOUSEKEEPERS)
