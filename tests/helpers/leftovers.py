"""What a test leaves behind: child processes, threads, shared-memory files, semaphores, temporary files.

On Linux the test process becomes a "child subreaper": a descendant whose parent dies becomes its child
instead of a child of init, so no orphan is overlooked. Zombies of such orphans are reaped here.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import psutil

from mpkit._platform.processes import stat_file
from mpkit._platform.processes.family_tree import has_children

__all__ = ["PATIENCE", "Snapshot", "adopt_orphans", "names_of", "settle", "since", "take"]

#: How many seconds a thing that is about to disappear has before it counts as left behind.
PATIENCE = 30.0

#: How many seconds it has before a garbage collection is run to help it disappear, and between two of them.
_BEFORE_COLLECTING = 0.02
_BETWEEN_COLLECTIONS = 1.0

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Snapshot:
    """What existed at one moment. `self - earlier` is what is new since `earlier`."""

    processes: frozenset[psutil.Process] = frozenset()
    threads: frozenset[threading.Thread] = frozenset()
    files: frozenset[str] = field(default=frozenset())

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        return Snapshot(
            self.processes - earlier.processes, self.threads - earlier.threads, self.files - earlier.files
        )

    def __bool__(self) -> bool:
        return bool(self.processes or self.threads or self.files)

    def describe(self) -> Iterator[str]:
        """One line for each thing."""
        for process in self.processes:
            with process.oneshot():
                try:
                    yield (
                        f"process {process.pid} ({process.status()}), child of {process.ppid()}: "
                        f"{' '.join(process.cmdline())[:200]}"
                    )
                except psutil.NoSuchProcess:
                    yield f"process {process.pid}, gone at last"
        for thread in self.threads:
            yield f"thread {thread.name!r}{' (daemon)' if thread.daemon else ''}"
        for file in self.files:
            yield f"file {file}"

    def remove(self) -> None:
        """Kill and delete it all, so that the next test does not suffer from this one."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):  # it has ended in the meantime
                process.kill()
        # Some become our children, whom we have to reap, only now that their own parents are dead.
        deadline = time.monotonic() + PATIENCE
        while self.processes & set(_processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for file in self.files:
            Path(file).unlink(missing_ok=True)


def adopt_orphans() -> None:
    """Make this process the new parent of orphaned descendants (on Linux; elsewhere, do nothing)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def take() -> Snapshot:
    """What exists now, including what other programs made."""
    return Snapshot(frozenset(_processes()), frozenset(_threads()), frozenset(_files()))


def since(earlier: Snapshot) -> Snapshot:
    """What this process and its descendants made since `earlier` and does not disappear in time."""
    return settle(earlier)[0]


def settle(earlier: Snapshot) -> tuple[Snapshot, Snapshot]:
    """What `since` returns, and the last snapshot: a new one would have to look at all processes again."""
    began = time.monotonic()
    collect_at = began + _BEFORE_COLLECTING
    while True:
        now = take()
        left = _ours(now - earlier)
        if not left or time.monotonic() - began >= PATIENCE:
            return left, now
        # A cycle through an exception's traceback is no leak, but only a garbage collection frees it. It is
        # not run at once: most things disappear in less time than a collection takes. One may not be enough:
        # another thread may still have referred to the cycle.
        if time.monotonic() > collect_at:
            gc.collect()
            collect_at = time.monotonic() + _BETWEEN_COLLECTIONS
        else:
            time.sleep(0.005)


def _ours(new: Snapshot) -> Snapshot:
    return Snapshot(new.processes, new.threads, _created_here(new.files)) if new.files else new


def _processes() -> Iterable[psutil.Process]:
    # A short cut of one system call: most tests have no children.
    if hasattr(os, "waitid") and not has_children():
        return []
    multiprocessing.active_children()  # joins those that have ended
    servants = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
    if "mpkit._platform.parent_death.parent_watch" in sys.modules:
        servants.add(sys.modules["mpkit._platform.parent_death.parent_watch"].guardian_pid())
    running = []
    for pid in _descendants():
        if pid in servants:
            continue
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
            elif process.ppid() == os.getpid():
                os.waitpid(process.pid, os.WNOHANG)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue  # in the meantime it has ended, or the thread that started it has reaped it
    return running


def _descendants() -> list[int]:
    """The pids of all descendants of this process."""
    if sys.platform != "linux":
        return [process.pid for process in psutil.Process().children(recursive=True)]
    # psutil would do, but this runs after every test: it would take a tenth of the time of the whole suite.
    children: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parent = int(stat_file.fields_of(pid)[stat_file.PARENT])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended in the meantime
        children.setdefault(parent, []).append(pid)
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


def _threads() -> Iterable[threading.Thread]:
    for thread in threading.enumerate():
        if thread.name.startswith("pytest_timeout"):
            continue  # enforces the time limit of the running test
        if not thread.daemon or thread.name.startswith("mpkit"):
            yield thread


def _files() -> Iterator[str]:
    for directory in {"/dev/shm", tempfile.gettempdir()}:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue  # no such directory on this platform
        # A benchmark that runs at the same time keeps its answers in a directory mpkit-benchmark-….
        yield from (
            os.path.join(directory, name)
            for name in names
            if name.startswith(("mpkit-", "sem.mpkit")) and not name.startswith("mpkit-benchmark-")
        )


def _created_here(files: Iterable[str]) -> frozenset[str]:
    """Those of `files` made by this process or a descendant, except those whose removal mpkit put off."""
    lingering = _lingering()
    files = [file for file in files if os.path.basename(file) not in lingering]
    # The name contains the pid of the creator. Ask once for each creator: there may be thousands of files.
    ours = {pid: _is_ours(pid) for pid in map(_creator, files)}
    if None in ours.values() and _other_programs():
        # Nothing tells any more whose child a dead creator was. The file may belong to another program, whose
        # resource tracker will remove it.
        ours = {pid: verdict is True for pid, verdict in ours.items()}
    return frozenset(file for file in files if ours[_creator(file)] is not False)


def names_of(creator: int) -> list[Path]:
    """The shared-memory files that the process with the pid `creator` made. It may be dead."""
    return [Path(file) for file in _files() if _creator(file) == creator]


def _creator(file: str) -> int:
    return next((int(part) for part in os.path.basename(file).split("-")[2:] if part.isdigit()), 0)


def _is_ours(pid: int) -> bool | None:
    """Whether `pid` is this process or a descendant of it; None if it is dead."""
    try:
        if sys.platform != "linux":
            return os.getpid() in (pid, *(parent.pid for parent in psutil.Process(pid).parents()))
        # Not with psutil, which takes ten times as long: `settle` asks this again and again while it waits.
        while pid not in (0, os.getpid()):
            pid = int(stat_file.fields_of(pid)[stat_file.PARENT])
        return pid != 0
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _other_programs() -> bool:
    """Whether other programs on this machine have a resource tracker of multiprocessing."""
    return any(
        "multiprocessing.resource_tracker" in " ".join(process.info["cmdline"] or ())
        and _is_ours(process.pid) is False
        for process in psutil.process_iter(["cmdline"])
    )


def _lingering() -> set[str]:
    """The names of files whose removal this process has put off: a handle to them may still be in transit."""
    names = sys.modules.get("mpkit._shm.memory.names")
    if names is None:
        return set()
    waiting = {os.path.basename(entry.name) for entry in list(names._lingering)}
    return waiting | {f"sem.{name}" for name in waiting}
