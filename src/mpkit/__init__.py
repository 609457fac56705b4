"""Processes, queues, locks, counters and a task pool that keep working when a process dies.

The packages, each built on those below it:

| package              | what is in it                                                                |
|----------------------|------------------------------------------------------------------------------|
| `mpkit.compat`       | the interfaces of `multiprocessing` and `concurrent.futures` over the rest   |
| `mpkit.introspect`   | `snapshot`, `tree`, `watch`: what processes are doing, read from outside     |
| `mpkit.pool`         | `TaskPool`, `PoolView`, `TaskHandle`, `Shared`, and their statistics         |
| `mpkit.process`      | `WorkerProcess`, `ProcessState`                                              |
| `mpkit.queue`        | `BoundedQueue`                                                               |
| `mpkit.sync`         | `Lock`, `LockedCounter`                                                      |
| `mpkit.errors`       | every exception, each also of the type that callers catch today              |

Below them are internal packages: ``_shm`` (shared memory), ``_wire`` (objects to bytes and back) and
``_platform`` (what differs between systems and Python versions).

Each name is loaded on first use, so a child process, which imports this package to find the one function that
it runs, loads only what that needs.

Examples:
    >>> import math
    >>> from mpkit import TaskPool
    >>> with TaskPool(2) as pool:
    ...     pool.map(math.factorial, [3, 4, 5])
    [6, 24, 120]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpkit import compat as compat
    from mpkit import errors as errors
    from mpkit import introspect as introspect
    from mpkit import pool as pool
    from mpkit import process as process
    from mpkit import queue as queue
    from mpkit import sync as sync
    from mpkit.pool import PoolStatistics as PoolStatistics
    from mpkit.pool import PoolView as PoolView
    from mpkit.pool import Shared as Shared
    from mpkit.pool import TaskHandle as TaskHandle
    from mpkit.pool import TaskPool as TaskPool
    from mpkit.pool import WorkerSnapshot as WorkerSnapshot
    from mpkit.process import ProcessState as ProcessState
    from mpkit.process import WorkerProcess as WorkerProcess
    from mpkit.queue import BoundedQueue as BoundedQueue
    from mpkit.queue import QueueStatistics as QueueStatistics
    from mpkit.sync import Lock as Lock
    from mpkit.sync import LockedCounter as LockedCounter

__version__ = "0.1.0"

__all__ = [
    "BoundedQueue",
    "Lock",
    "LockedCounter",
    "PoolStatistics",
    "PoolView",
    "ProcessState",
    "QueueStatistics",
    "Shared",
    "TaskHandle",
    "TaskPool",
    "WorkerProcess",
    "WorkerSnapshot",
    "compat",
    "errors",
    "introspect",
]

_MODULES = {
    "mpkit.pool": ("PoolStatistics", "PoolView", "Shared", "TaskHandle", "TaskPool", "WorkerSnapshot"),
    "mpkit.process": ("ProcessState", "WorkerProcess"),
    "mpkit.queue": ("BoundedQueue", "QueueStatistics"),
    "mpkit.sync": ("Lock", "LockedCounter"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value: object = getattr(importlib.import_module(_MODULE_OF[name]), name)
    elif name in ("compat", "errors", "introspect") or f"mpkit.{name}" in _MODULES:
        value = importlib.import_module(f"mpkit.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next use is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
