"""`snapshot`: one process as the operating system sees it, at one moment."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import psutil

from mpkit._platform.processes.process_state import ProcessState
from mpkit.errors import ProcessGone
from mpkit.introspect._translate import checked_pid, find, translated

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# psutil's words (one per kernel state) against the classic states; as text, because not every version of
# psutil has a constant for every system's words. Systems tell "runnable" but not whether a core is serving
# it at this very moment, so both count as RUNNING; READY is what the kernel is just waking up.
_STATES: dict[str, ProcessState] = {
    "running": ProcessState.RUNNING,
    "waking": ProcessState.READY,
    "sleeping": ProcessState.WAITING,
    "disk-sleep": ProcessState.WAITING,
    "idle": ProcessState.WAITING,
    "parked": ProcessState.WAITING,
    "locked": ProcessState.WAITING,
    "waiting": ProcessState.WAITING,
    "stopped": ProcessState.STOPPED,
    "tracing-stop": ProcessState.STOPPED,
    "suspended": ProcessState.STOPPED,
    "zombie": ProcessState.ZOMBIE,
    "dead": ProcessState.ZOMBIE,
}


def state_of(status: str) -> ProcessState:
    """The classic state for one of psutil's status words; an unknown word counts as waiting."""
    return _STATES.get(status, ProcessState.WAITING)


@dataclass(frozen=True)
class ProcessSnapshot:
    """One process at one moment.

    Attributes:
        pid: its process id.
        ppid: its parent's process id (1 or 0 once the parent has gone).
        name: the short name that the system lists it under.
        cmdline: the command line, one string per argument; empty for a zombie and for a kernel thread.
        state: running, waiting, stopped, zombie, ...
        create_time: when it started, in seconds since 1970 (as `time.time()`).
        cpu_percent: CPU use, where 100 is one core fully used: the mean over the life of the process or, in
            snapshots from `watch`, since the previous snapshot.
        cpu_user_s: CPU seconds spent in its own code so far.
        cpu_system_s: CPU seconds the kernel spent for it so far.
        rss_bytes: physical memory it occupies, shared pages included; 0 for a zombie.
        uss_bytes: physical memory that its end would free, or None if the system does not say.
        num_threads: how many threads it has.
        num_fds: open file descriptors (Windows: handles), or None if the system does not say.
        ctx_switches: how often it has been taken off a core so far, voluntarily or not; None as above.
        nice: scheduling priority, where higher means less urgent (Windows: the priority class).
        cpu_affinity: the CPUs it may use, or None if the system does not support or does not say this.
    """

    pid: int
    ppid: int
    name: str
    cmdline: tuple[str, ...]
    state: ProcessState
    create_time: float
    cpu_percent: float
    cpu_user_s: float
    cpu_system_s: float
    rss_bytes: int
    uss_bytes: int | None
    num_threads: int
    num_fds: int | None
    ctx_switches: int | None
    nice: int
    cpu_affinity: tuple[int, ...] | None

    @property
    def cpu_s(self) -> float:
        """CPU seconds in all, its own and the kernel's."""
        return self.cpu_user_s + self.cpu_system_s


def snapshot(pid: int | None = None) -> ProcessSnapshot:
    """Look at one process once.

    All values are of one and the same process: if `pid` is reused in the meantime, this is noticed and raises
    `ProcessGone`. A process that has ended but that nobody has waited for still exists: it has the state
    ZOMBIE and no memory.

    Args:
        pid: the process to look at. None, the default, is the calling process.

    Returns:
        A frozen snapshot; `cpu_percent` is the mean over the life of the process. Use `watch` for the
        current load.

    Raises:
        ProcessGone: there is no such process, or it ended while being looked at.
        AccessDenied: the system does not allow this user to examine it.
        TypeError, ValueError: `pid` is not an integer, or negative.

    Blocking: no.
    Safe from: any thread, any process.

    Examples:
        >>> snapshot().num_threads >= 1
        True
    """
    return read(find(checked_pid(pid)))


def read(process: psutil.Process) -> ProcessSnapshot:
    """The process behind a psutil handle, or `ProcessGone`; never a mixture of two processes."""
    with translated(process.pid):
        with process.oneshot():
            cpu = process.cpu_times()
            picture = ProcessSnapshot(
                pid=process.pid,
                ppid=process.ppid(),
                name=process.name(),
                cmdline=tuple(_for_zombie([], process.cmdline)),
                state=state_of(process.status()),
                create_time=process.create_time(),
                cpu_percent=share(cpu.user + cpu.system, time.time() - process.create_time()),
                cpu_user_s=cpu.user,
                cpu_system_s=cpu.system,
                rss_bytes=_for_zombie(0, lambda: process.memory_info().rss),
                uss_bytes=_if_told(lambda: _uss(process)),
                num_threads=_for_zombie(0, process.num_threads),
                num_fds=_if_told(lambda: _open_files(process)),
                ctx_switches=_if_told(lambda: sum(process.num_ctx_switches())),
                nice=int(_for_zombie(0, process.nice)),
                cpu_affinity=_if_told(lambda: _affinity(process)),
            )
        # psutil bound the handle to the start time, but each fact was read by number alone: only now is it
        # sure that the number did not change hands in between.
        if not process.is_running():
            raise ProcessGone(pid=process.pid)
        return picture


def share(cpu_s: float, elapsed_s: float) -> float:
    """CPU seconds over wall-clock seconds as a percentage of one core; 0 when no time has passed."""
    return 100.0 * max(cpu_s, 0.0) / elapsed_s if elapsed_s > 0 else 0.0


def _for_zombie(nothing: T, fact: Callable[[], T]) -> T:
    """A fact that a zombie no longer has (its memory, its arguments): then `nothing`."""
    try:
        return fact()
    except psutil.ZombieProcess:
        return nothing


def _if_told(fact: Callable[[], T | None]) -> T | None:
    """A fact that the system may keep to the owner of the process, or not know at all: then None."""
    try:
        return fact()
    except (psutil.ZombieProcess, psutil.AccessDenied, NotImplementedError, AttributeError, OSError):
        # AttributeError: psutil leaves out the methods that a platform cannot answer. OSError: a sandbox that
        # does not know a system call, or lacks a file in /proc.
        return None


def _uss(process: psutil.Process) -> int | None:
    return getattr(process.memory_full_info(), "uss", None)


def _open_files(process: psutil.Process) -> int:
    # psutil has one of the two, and so has its stub.
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _affinity(process: psutil.Process) -> tuple[int, ...] | None:
    if sys.platform == "darwin":
        return None
    return tuple(process.cpu_affinity() or ())
