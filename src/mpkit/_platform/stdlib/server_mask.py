"""Imported by the fork server, which is started with SIGINT blocked: unblocks the signal in its children.

The server itself ignores SIGINT, but only after it has imported everything; a Ctrl-C before that would end it
with a traceback. So it is started with the signal blocked, and imports this module (see `fork_server`). The
server keeps the signal blocked, and it is unblocked in each child at the fork. So a child begins as always:
with the handler that the server had at its start, and the signal not blocked.
"""

from __future__ import annotations

import os
import signal
import sys

_is_server = True

if sys.platform != "win32":

    def _unblock() -> None:
        global _is_server
        # Not in children of the children, which inherit their parent's mask as always.
        if _is_server:
            _is_server = False
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    os.register_at_fork(after_in_child=_unblock)
