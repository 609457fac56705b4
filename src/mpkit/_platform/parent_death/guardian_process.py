"""Starting the guardian as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing
from typing import Final

from mpkit._platform.parent_death import guardian
from mpkit._platform.processes.family_tree import GUARDIAN
from mpkit._platform.stdlib import passing

__all__ = ["IS_POSSIBLE", "start"]

_FILE: Final = os.path.abspath(guardian.__file__)
_PROGRAM: Final = (
    # Isolated from the environment and without `site`, it has to be told where its package is.
    "import sys, os.path as p; sys.path.append(p.dirname(p.dirname(p.dirname(p.dirname(sys.argv[1]))))); "
    f"{GUARDIAN}; main(int(sys.argv[2]))"
)

IS_POSSIBLE = os.name == "posix" and not getattr(sys, "frozen", False) and os.path.isfile(_FILE)
"""Whether there can be one."""


def start(executable: str) -> tuple[passing.PlainSocket, int]:
    """Start one.

    Args:
        executable: The interpreter that is to run it.

    Returns:
        Our end of the line to it, and its pid.

    Raises:
        OSError: If the system has no process or descriptor left. Nothing is left behind.
    """
    if sys.platform == "win32":
        raise NotImplementedError("it is not possible there")
    ours, theirs = passing.plain_socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing(theirs):
        for end in (ours, theirs):
            # Where the program has set a time limit for its own sockets, these would not block; the
            # guardian, which inherits one, is to read from a plain one.
            end.settimeout(None)
        if sys.platform == "darwin":
            # There no flag of a call keeps SIGPIPE away.
            ours.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_NOSIGPIPE", 0x1022), 1)
        # Isolated, and without `site` where psutil is not needed (its start takes longer than all the
        # rest).
        options = ["-I", "-S"] if sys.platform == "linux" else ["-I"]
        # Not the file as a script: that would be compiled anew each time. Its name stands there for those
        # who look at the list of processes.
        command = [executable, *options, "-c", _PROGRAM, _FILE, str(theirs.fileno())]
        # Blocked until the guardian ignores them.
        ignored = {getattr(signal, name) for name in guardian.IGNORED}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        try:
            pid = passing.spawn_passing(command, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ours, pid
