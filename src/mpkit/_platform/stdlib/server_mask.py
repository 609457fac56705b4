"""For the fork server, which is started with interrupts blocked: its children get them again.

The server comes to ignore SIGINT by itself, but only when it has imported everything; a Ctrl-C before that
would end it with a traceback. It imports this module (see `fork_server`), keeps the mask for good,
and unblocks the signal in each child at the moment of the fork. A child sees what it always does: the handler
that the server had at its start, and nothing blocked.
"""

from __future__ import annotations

import os
import signal
import sys

__all__: list[str] = []

_is_server = True

if sys.platform != "win32":

    def _unblock() -> None:
        global _is_server
        # Children of the children have the mask of their own parent, as ever.
        if _is_server:
            _is_server = False
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    os.register_at_fork(after_in_child=_unblock)
