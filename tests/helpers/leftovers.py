"""What a test leaves behind: child processes, threads, shared-memory files, semaphores, temporary files.

On Linux the process of the tests becomes a "child subreaper": a grandchild whose parent dies becomes its
child instead of init's, so an orphan cannot slip out of sight. Zombies of such orphans are reaped here.
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

#: How long what is going away may take until it counts as left behind, in seconds.
PATIENCE = 30.0

#: How long what is going away may take until garbage is collected for it, in seconds.
_BEFORE_COLLECTING = 0.02

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Snapshot:
    """What exists now. `self - earlier` is what has come since."""

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
            with suppress(psutil.NoSuchProcess):  # it went by itself meanwhile
                process.kill()
        # They may become our children only now, when their own parents are gone.
        deadline = time.monotonic() + PATIENCE
        while self.processes & set(_processes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for file in self.files:
            Path(file).unlink(missing_ok=True)


def adopt_orphans() -> None:
    """Make this process the one that orphaned descendants are handed to (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def take() -> Snapshot:
    """What exists now, whoever made it."""
    return Snapshot(frozenset(_processes()), frozenset(_threads()), frozenset(_files()))


def since(earlier: Snapshot) -> Snapshot:
    """What has come since `earlier` by this process's doing and stays: what is going away is waited for."""
    return settle(earlier)[0]


def settle(earlier: Snapshot) -> tuple[Snapshot, Snapshot]:
    """The same, and what exists now, whoever made it: a look at all processes takes its time."""
    began = time.monotonic()
    collected = False
    while True:
        now = take()
        left = _ours(now - earlier)
        if not left or time.monotonic() - began >= PATIENCE:
            return left, now
        # What nothing refers to any more, a garbage collection may still have to free: a cycle through an
        # exception's traceback is not a leak. Most of what goes is gone before one would be over.
        if not collected and time.monotonic() - began > _BEFORE_COLLECTING:
            gc.collect()
            collected = True
        else:
            time.sleep(0.005)


def _ours(new: Snapshot) -> Snapshot:
    return Snapshot(new.processes, new.threads, _created_here(new.files)) if new.files else new


def _processes() -> Iterable[psutil.Process]:
    # One system call, where the system has it: most tests have no children.
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
            continue  # ended, or waited for by its owner, in between
    return running


def _descendants() -> list[int]:
    """The pids of all descendants of this process."""
    if sys.platform != "linux":
        return [process.pid for process in psutil.Process().children(recursive=True)]
    # Twice for each test: what psutil needs for this would be a tenth of the time of the whole suite.
    children: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parent = int(stat_file.fields_of(pid)[stat_file.PARENT])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(pid)
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


def _threads() -> Iterable[threading.Thread]:
    for thread in threading.enumerate():
        if thread.name.startswith("pytest_timeout"):
            continue  # the time limit of the running test
        if not thread.daemon or thread.name.startswith("mpkit"):
            yield thread


def _files() -> Iterator[str]:
    for directory in {"/dev/shm", tempfile.gettempdir()}:
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            continue  # no such directory on this platform
        # A benchmark that runs beside the tests keeps its answers in a directory.
        yield from (
            os.path.join(directory, name)
            for name in names
            if name.startswith(("mpkit-", "sem.mpkit")) and not name.startswith("mpkit-benchmark-")
        )


def _created_here(files: Iterable[str]) -> frozenset[str]:
    """Those of `files` that this process or a descendant created, and that nobody is about to remove."""
    lingering = _lingering()
    files = [file for file in files if os.path.basename(file) not in lingering]
    # The pid of the creator stands in the name. Asked once for each creator: there may be thousands of files.
    ours = {pid: _is_ours(pid) for pid in map(_creator, files)}
    if None in ours.values() and _other_programs():
        # Nothing tells any more whose child a dead creator was. The resource tracker of another program may
        # have the file in its care.
        ours = {pid: verdict is True for pid, verdict in ours.items()}
    return frozenset(file for file in files if ours[_creator(file)] is not False)


def names_of(creator: int) -> list[Path]:
    """The names in shared memory that the process with this pid has created, dead or alive."""
    return [Path(file) for file in _files() if _creator(file) == creator]


def _creator(file: str) -> int:
    return next((int(part) for part in os.path.basename(file).split("-")[2:] if part.isdigit()), 0)


def _is_ours(pid: int) -> bool | None:
    """Whether `pid` is this process or descends from it; None when it is dead."""
    try:
        if sys.platform != "linux":
            return os.getpid() in (pid, *(parent.pid for parent in psutil.Process(pid).parents()))
        # Asked as long as something is going away: psutil takes ten times as long.
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
    """The files whose removal this process has put off, because a handle to them may be under way."""
    names = sys.modules.get("mpkit._shm.memory.names")
    if names is None:
        return set()
    waiting = {os.path.basename(entry.name) for entry in list(names._lingering)}
    return waiting | {f"sem.{name}" for name in waiting}
