"""Starts the fork server, which workers are forked from if the start method is forkserver."""

from __future__ import annotations

from multiprocessing.context import BaseContext

from mpkit._platform.stdlib.fork_server import start_fork_server

#: What each worker imports: its loop, and what it needs for log records and for waiting.
_PRELOADED = ("mpkit.pool._worker.worker", "mpkit.pool._protocol.logs", "mpkit._platform.resources.cpus")


def start_server(context: BaseContext) -> None:
    """Start the fork server if this context needs one and it is not running; does not wait until it is up.

    The server imports what workers need, so that they start three times as fast as if each of them did. See
    `start_fork_server` for why this does not affect the application.

    Raises:
        OSError: The system refuses a process or descriptors.
    """
    if context.get_start_method() == "forkserver":
        start_fork_server(_PRELOADED)
