"""Who descends from whom: the children and further descendants of a process, without its housekeepers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Iterable
from typing import Final

from mpkit._platform.processes import identity, stat_file
from mpkit._platform.processes.identity import ProcessIdentity

__all__ = [
    "GUARDIAN",
    "HOUSEKEEPERS",
    "children_of",
    "descendants",
    "descendants_if_seen",
    "descendants_since",
    "fork_servers_of",
    "has_children",
    "is_childless",
    "with_descendants",
]

GUARDIAN: Final = "from mpkit._platform.parent_death.guardian import main"
"""How the program of a guardian begins."""

HOUSEKEEPERS: Final = ("from multiprocessing.resource_tracker import main", GUARDIAN)
"""Marks in the command line of a process that must outlive its family, to clean up after it."""

_FORK_SERVER: Final = "multiprocessing.forkserver"

# How often, and after which pause, the table of processes is asked for again while there is no descriptor
# left to read it with: others give theirs back all the time, and nothing tells when.
_LOOKS: Final = 20
_PAUSE_S: Final = 0.01

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
    return [] if is_childless(root) else descendants_if_seen((root,), (), since)


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


def is_childless(process: ProcessIdentity) -> bool:
    """Whether a process certainly has no children, not even one that has ended. Cheap."""
    return _child_pids(process.pid) == []


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
    return known + [process for process in descendants_if_seen(known, ()) if process not in known]


def descendants_if_seen(
    roots: Iterable[ProcessIdentity],
    spared: Collection[ProcessIdentity],
    since: int = 0,
    known: Collection[ProcessIdentity] = (),
) -> list[ProcessIdentity]:
    """As `descendants`; if there is no descriptor or memory left to look with, and it stays so for a fifth of
    a second, none.
    """
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
