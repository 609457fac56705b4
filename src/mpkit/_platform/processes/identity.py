"""Which process a pid means.

A pid alone is not enough: the kernel gives it to another process once its owner is gone. The moment at which
the process started tells them apart.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, NamedTuple

from mpkit._platform.processes import stat_file
from mpkit._platform.threads.forks import in_forked_children

__all__ = ["ProcessIdentity", "current", "is_alive", "is_lack_of_means", "look", "of"]


# No descriptor, in this process or the system, or no memory.
_NO_MEANS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_lack_of_means(error: OSError) -> bool:
    """Whether it is for want of a descriptor or of memory: it tells nothing, and may pass."""
    return error.errno in _NO_MEANS


ProcessIdentity = NamedTuple("ProcessIdentity", [("pid", int), ("started", int)])
"""A process, for good: the pid together with the moment at which it started.

That is told in clock ticks since boot on Linux, else in microseconds since the epoch.
"""


if sys.platform == "linux":

    def _examine(pid: int) -> tuple[int, bool] | None:
        """When the process started, and whether it still runs; None when there is none.

        Raises:
            PermissionError: If the system hides it from us (``hidepid``).
        """
        try:
            fields = stat_file.fields_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            # With hidepid=2 there is nothing to be seen of processes that one may not examine.
            if pid not in {0, os.getpid()} and _has_owner(pid):
                raise PermissionError(errno.EPERM, "hidden by /proc", str(pid)) from None
            return None
        return int(fields[stat_file.STARTED]), fields[stat_file.STATE] not in stat_file.ENDED

else:

    def _examine(pid: int) -> tuple[int, bool] | None:
        """When the process started, and whether it still runs; None when there is none.

        Raises:
            PermissionError: If the system does not let us examine it.
        """
        # Not at module level: importing mpkit must not load psutil.
        import psutil  # noqa: PLC0415

        try:
            process = psutil.Process(pid)
            return start_of(process), process.status() != psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            raise PermissionError(pid) from None
        except psutil.NoSuchProcess:
            # ZombieProcess is one as well.
            return None

    def start_of(process: Any) -> int:  # noqa: ANN401  psutil's inside, which its stub does not know
        """When the process that a `psutil.Process` stands for started, as all processes are told it.

        Not by its own `create_time`, which on macOS (psutil 7.1 and later) follows the clock when that is
        set: by how much, depends on the moment at which psutil was imported. Two processes would not agree
        about a third.
        """
        try:
            seconds: float = process._proc.create_time(monotonic=True)
        except TypeError:
            # Windows, and before 7.1: it does not follow the clock.
            seconds = process._proc.create_time()
        return round(seconds * 1_000_000)


_current: ProcessIdentity | None = None


@in_forked_children
def _forget() -> None:
    global _current
    _current = None


def current() -> ProcessIdentity:
    """The identity of this process (worked out once, and once again after a fork).

    Raises:
        OSError: If it has to be worked out, and there is no descriptor left for it.
    """
    global _current
    if _current is None:
        me = os.getpid()
        identity = look(me)
        if identity is None or not _is_shown_under(me):
            raise RuntimeError(
                "cannot examine this process itself; is /proc mounted, and does it show the pid namespace of "
                "this process? (unshare needs --mount-proc)"
            )
        _current = identity
    return _current


def _is_shown_under(pid: int) -> bool:
    """Whether the system shows this very process under this pid.

    In a pid namespace that has kept the /proc of another one, other processes stand there: one that has died
    would pass for alive.
    """
    try:
        return sys.platform != "linux" or os.readlink("/proc/self") == str(pid)
    except OSError:
        return True


def of(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this pid now.

    Returns:
        None if there is none, if it is dead already (a zombie), or if it may not or cannot be examined (no
        descriptor left). Never an error of the system: whoever asks has often just started the process, and
        would leave it without an owner. See `look` for one who has to know.
    """
    try:
        return look(pid)
    except OSError:
        return None


def look(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this pid now.

    Returns:
        None if there is none, or if it is dead already (a zombie).

    Raises:
        OSError: If it may not or cannot be examined.
    """
    seen = _examine(pid)
    if seen is None or not seen[1]:
        return None
    return ProcessIdentity(pid, seen[0])


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still lives.

    A zombie is dead, a stopped process alive. One that may not be examined counts as alive: nothing is ever
    taken away from a process that is not known to be dead. So does one while this process has no descriptor
    or memory left to look, unless its pid is nobody's, or that of a child of ours that has ended.
    """
    try:
        seen = _examine(identity.pid)
    except PermissionError:
        return True
    except OSError as error:
        if is_lack_of_means(error):
            return _is_anybody(identity.pid)
        raise
    return seen is not None and seen[1] and seen[0] == identity.started


def _is_anybody(pid: int) -> bool:
    """Whether some process has this pid and has not ended, as far as that can be told with nothing opened."""
    if sys.platform == "win32":
        return True  # nothing can be told
    if hasattr(os, "waitid"):
        # It stays for whoever waits for it.
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
    return _has_owner(pid)


def _has_owner(pid: int) -> bool:
    """Whether some process has this pid, which may have ended."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True
