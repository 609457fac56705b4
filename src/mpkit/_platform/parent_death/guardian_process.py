"""Starts the guardian as a separate process."""

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

_FILE: Final = os.path.abspath(guardian.__file__)
_PROGRAM: Final = (
    # It is isolated from the environment and runs without `site`, so it must be told where mpkit is.
    "import sys, os.path as p; sys.path.append(p.dirname(p.dirname(p.dirname(p.dirname(sys.argv[1]))))); "
    f"{GUARDIAN}; main(int(sys.argv[2]))"
)

IS_POSSIBLE = os.name == "posix" and not getattr(sys, "frozen", False) and os.path.isfile(_FILE)
"""Whether a guardian can be started here."""


def start(executable: str) -> tuple[passing.PlainSocket, int]:
    """Start a guardian.

    Args:
        executable: The interpreter that is to run it.

    Returns:
        Our end of the socket pair, and its pid.

    Raises:
        OSError: If the system has no process or descriptor left. Nothing is left behind.
    """
    if sys.platform == "win32":
        raise NotImplementedError("there are no guardians on Windows")
    ours, theirs = passing.plain_socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with closing(theirs):
        for end in (ours, theirs):
            # If the program has set a default timeout for its sockets, these would be non-blocking, but the
            # guardian needs a blocking one.
            end.settimeout(None)
        if sys.platform == "darwin":
            # On macOS no flag of `send` suppresses SIGPIPE.
            ours.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_NOSIGPIPE", 0x1022), 1)
        # Isolated; and without `site`, whose start takes longer than all the rest, where psutil is not
        # needed.
        options = ["-I", "-S"] if sys.platform == "linux" else ["-I"]
        # The file is not run as a script, because that would be compiled each time. Its name is among the
        # arguments for people who look at the list of processes.
        command = [executable, *options, "-c", _PROGRAM, _FILE, str(theirs.fileno())]
        # These signals are blocked until the guardian ignores them.
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
