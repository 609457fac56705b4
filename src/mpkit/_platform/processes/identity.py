"""The identity of a process: its pid together with its start time.

A pid alone is not enough, because the kernel may give it to another process when the first one is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, NamedTuple

from mpkit._platform.processes import stat_file
from mpkit._platform.threads.forks import in_forked_children

# No descriptor left (in this process or in the system), or no memory.
_NO_MEANS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def is_lack_of_means(error: OSError) -> bool:
    """Whether the error is a lack of descriptors or memory: nothing is known, and a retry may succeed."""
    return error.errno in _NO_MEANS


ProcessIdentity = NamedTuple("ProcessIdentity", [("pid", int), ("started", int)])
"""A process, identified for ever: its pid, and when it was started.

`started` is in clock ticks since boot on Linux, elsewhere in microseconds since the epoch.
"""


if sys.platform == "linux":

    def _examine(pid: int) -> tuple[int, bool] | None:
        """When the process was started, and whether it is still alive; None if there is no such process.

        Raises:
            PermissionError: If the system hides it from this user (``hidepid``).
            OSError: If it cannot be examined for another reason (no descriptor left).
        """
        try:
            fields = stat_file.fields_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            # With hidepid=2, processes that this user may not examine are not visible at all.
            if pid not in {0, os.getpid()} and _has_owner(pid):
                raise PermissionError(errno.EPERM, "hidden by /proc", str(pid)) from None
            return None
        return int(fields[stat_file.STARTED]), fields[stat_file.STATE] not in stat_file.ENDED

else:

    def _examine(pid: int) -> tuple[int, bool] | None:
        """When the process was started, and whether it is still alive; None if there is no such process.

        Raises:
            PermissionError: If the system does not allow examining it.
        """
        # Not at module level: importing mpkit must not load psutil.
        import psutil  # noqa: PLC0415

        try:
            process = psutil.Process(pid)
            return start_of(process), process.status() != psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            raise PermissionError(pid) from None
        except psutil.NoSuchProcess:
            # (psutil.ZombieProcess is a subclass.)
            return None

    def start_of(process: Any) -> int:  # noqa: ANN401  psutil's inside, which its stub does not know
        """The start time of a `psutil.Process`, in a form that is the same in all processes that ask for it.

        Not by its public `create_time`, which on macOS (from psutil 7.1 on) is corrected when the clock is
        set. The correction depends on when psutil was imported, so two processes would disagree about a
        third.
        """
        try:
            seconds: float = process._proc.create_time(monotonic=True)
        except TypeError:
            # On Windows, and before psutil 7.1, there is no such correction.
            seconds = process._proc.create_time()
        return round(seconds * 1_000_000)


_current: ProcessIdentity | None = None


@in_forked_children
def _forget() -> None:
    global _current
    _current = None


def current() -> ProcessIdentity:
    """The identity of this process, which is found out once, and again after a fork.

    Raises:
        OSError: If it has to be found out, and there is no descriptor left for that.
        RuntimeError: If the system does not show this process under its own pid, so that identities are
            useless.
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
    """Whether the system shows this process under this pid.

    In a pid namespace with the /proc of another namespace, pids mean other processes there, so a dead process
    could count as alive.
    """
    try:
        return sys.platform != "linux" or os.readlink("/proc/self") == str(pid)
    except OSError:
        return True


def of(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this pid now.

    Returns:
        None if there is none, if it has ended (a zombie), or if it may not or cannot be examined (no
        descriptor left). No error is raised in these cases, because a caller that has just started the
        process would lose it. `look` is for callers that must know.
    """
    try:
        return look(pid)
    except OSError:
        return None


def look(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this pid now.

    Returns:
        None if there is none, or if it has ended (a zombie).

    Raises:
        OSError: If it may not or cannot be examined.
    """
    seen = _examine(pid)
    if seen is None or not seen[1]:
        return None
    return ProcessIdentity(pid, seen[0])


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this process is still alive.

    A zombie is dead, a stopped process is alive. A process that may not be examined counts as alive, because
    nothing is ever taken from a process that is not known to be dead. For the same reason it counts as alive
    if this process has no descriptor or memory left to examine it; unless there is no process with its pid,
    or only a child of this process that has ended.
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
    """Whether any process with this pid may be alive, found out without opening anything."""
    if sys.platform == "win32":
        return True  # this cannot be found out
    if hasattr(os, "waitid"):
        # WNOWAIT: it is not reaped.
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
    return _has_owner(pid)


def _has_owner(pid: int) -> bool:
    """Whether there is a process with this pid, alive or a zombie."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True
