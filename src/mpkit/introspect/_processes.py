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

# The classic state for each of psutil's status words (one per kernel state). As text, because not every
# version of psutil has a constant for each word of each system. Systems report a process as running that is
# only runnable, without saying whether it has a core at this moment: so both count as RUNNING. READY is a
# process that the kernel is just waking up.
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
        pid: Its process id.
        ppid: Its parent's process id (usually 1 or 0 once the parent has ended).
        name: The short name under which the system lists it.
        cmdline: The command line, one string per argument; empty for a zombie and for a kernel thread.
        state: Whether it is running, waiting, stopped, a zombie, ...
        create_time: When it started, in seconds since 1970 (as `time.time()`).
        cpu_percent: CPU use, where 100 is one core fully used: the mean over the life of the process or, in
            snapshots from `watch`, since the previous snapshot.
        cpu_user_s: CPU seconds that its own code has used so far.
        cpu_system_s: CPU seconds that the kernel has used for it so far.
        rss_bytes: Physical memory that it uses, including shared pages; 0 for a zombie.
        uss_bytes: Physical memory that its end would free, or None if the system does not say.
        num_threads: How many threads it has; 0 for a zombie.
        num_fds: How many file descriptors it has open (Windows: handles), or None if the system does not say.
        ctx_switches: How often it has lost its core so far, voluntarily or not, or
            None if the system does not say.
        nice: Its scheduling priority, where higher means less urgent (Windows: the priority class).
        cpu_affinity: The CPUs that it may use, or None if the system does not say.
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
        """`cpu_user_s` and `cpu_system_s` together."""
        return self.cpu_user_s + self.cpu_system_s


def snapshot(pid: int | None = None) -> ProcessSnapshot:
    """Look at one process once.

    All values are those of one process: if `pid` is reused in the meantime, this is noticed, and raises
    `ProcessGone`. A process that has ended still exists until its parent has waited for it: it has the state
    ZOMBIE, and no memory.

    Args:
        pid: The process to look at. None, the default, is the calling process.

    Returns:
        An immutable snapshot. Its `cpu_percent` is the mean over the life of the process; use
        `watch` for the current load.

    Raises:
        ProcessGone: There is no such process, or it ended while being looked at.
        AccessDenied: The system does not allow this user to examine it.
        TypeError, ValueError: `pid` is not an integer, or negative.

    Blocking: never.
    Safe from: any thread, any process.

    Examples:
        >>> snapshot().num_threads >= 1
        True
    """
    return read(find(checked_pid(pid)))


def read(process: psutil.Process) -> ProcessSnapshot:
    """A snapshot of the process that a psutil handle is bound to.

    Raises:
        ProcessGone: It has ended, even if another process has its pid now.
        AccessDenied: It may not be examined.
    """
    with translated(process.pid):
        with process.oneshot():
            cpu = process.cpu_times()
            seen = ProcessSnapshot(
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
        # The values were read by pid alone. This compares the start time, to which psutil has bound the
        # handle: so all of them are of this process, and not of another one with the same pid.
        if not process.is_running():
            raise ProcessGone(pid=process.pid)
        return seen


def share(cpu_s: float, elapsed_s: float) -> float:
    """CPU seconds in percent of the elapsed seconds; 0 if no time has elapsed."""
    return 100.0 * max(cpu_s, 0.0) / elapsed_s if elapsed_s > 0 else 0.0


def _for_zombie(nothing: T, fact: Callable[[], T]) -> T:
    """A value that a zombie does not have any more (its memory, its arguments): for a zombie, `nothing`."""
    try:
        return fact()
    except psutil.ZombieProcess:
        return nothing


def _if_told(fact: Callable[[], T | None]) -> T | None:
    """A value that the system may not know, or may tell the owner of the process only: then None."""
    try:
        return fact()
    except (psutil.ZombieProcess, psutil.AccessDenied, NotImplementedError, AttributeError, OSError):
        # AttributeError: psutil has no such method on this platform. OSError: a sandbox without this system
        # call or this file in /proc.
        return None


def _uss(process: psutil.Process) -> int | None:
    return getattr(process.memory_full_info(), "uss", None)


def _open_files(process: psutil.Process) -> int:
    # On each platform, psutil and its type stubs have only one of the two.
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _affinity(process: psutil.Process) -> tuple[int, ...] | None:
    if sys.platform == "darwin":
        return None
    return tuple(process.cpu_affinity() or ())
