"""The fork server that workers come from, where the start method is forkserver."""

from __future__ import annotations

from multiprocessing.context import BaseContext

from mpkit._platform.stdlib.fork_server import start_fork_server

__all__ = ["start_server"]

#: What a worker imports: its own code, and what it needs for log records and when it has nothing to do.
_PRELOADED = ("mpkit.pool._worker.worker", "mpkit.pool._protocol.logs", "mpkit._platform.resources.cpus")


def start_server(context: BaseContext) -> None:
    """Start it unless it runs, or is not needed; returns before it is up.

    It imports what workers need, once: they start three times as fast as if each did. See
    `start_fork_server` for why that takes nothing from the application.

    Raises:
        OSError: The system refuses a process or descriptors.
    """
    if context.get_start_method() == "forkserver":
        start_fork_server(_PRELOADED)
