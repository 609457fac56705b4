"""`multiprocessing` with mpkit inside: ``from mpkit import compat as multiprocessing`` is a drop-in.

Every public name of `multiprocessing` is here. `Process`, `Queue`, `JoinableQueue`, `SimpleQueue`, `Lock`,
`Pool` and `get_context` are thin wrappers over mpkit with the signatures, exceptions and exit semantics of
the standard library; all other names are the standard library's own and work together with them. Processes
are started with the default method of the running Python (mpkit's own classes prefer forkserver).

They have the guarantees of mpkit: a worker that dies fails its task instead of hanging the pool, a lock or
queue survives the death of any process, `put` raises pickling errors, and a child dies with its parent.

`mpkit.compat.futures` does the same for `concurrent.futures`.

Examples:
    >>> from mpkit import compat as multiprocessing
    >>> with multiprocessing.Pool(2) as pool:
    ...     pool.map(abs, [-1, -2])
    [1, 2]
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from multiprocessing import (
    Array,
    AuthenticationError,
    Barrier,
    BoundedSemaphore,
    BufferTooShort,
    Condition,
    Event,
    Manager,
    Pipe,
    ProcessError,
    RawArray,
    RawValue,
    RLock,
    Semaphore,
    TimeoutError,  # noqa: A004  multiprocessing calls it so
    Value,
    active_children,
    allow_connection_pickling,
    cpu_count,
    current_process,
    freeze_support,
    get_all_start_methods,
    get_logger,
    get_start_method,
    log_to_stderr,
    parent_process,
    reducer,
    set_executable,
    set_forkserver_preload,
    set_start_method,
)
from typing import TYPE_CHECKING

from mpkit.compat._contexts import get_context
from mpkit.compat._locks import Lock
from mpkit.compat._pool import Pool
from mpkit.compat._processes import Process
from mpkit.compat._queues import JoinableQueue, Queue, SimpleQueue

if TYPE_CHECKING:
    from types import ModuleType

    from mpkit.compat import connection as connection
    from mpkit.compat import context as context
    from mpkit.compat import dummy as dummy
    from mpkit.compat import futures as futures
    from mpkit.compat import managers as managers
    from mpkit.compat import pool as pool
    from mpkit.compat import process as process
    from mpkit.compat import queues as queues
    from mpkit.compat import reduction as reduction
    from mpkit.compat import shared_memory as shared_memory
    from mpkit.compat import sharedctypes as sharedctypes
    from mpkit.compat import synchronize as synchronize

__all__ = [
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "TimeoutError",
    "Value",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]

# Log levels: public names of `multiprocessing`, although neither its ``__all__`` nor typeshed has them.
SUBDEBUG: int = vars(multiprocessing)["SUBDEBUG"]
SUBWARNING: int = vars(multiprocessing)["SUBWARNING"]


def __getattr__(name: str) -> ModuleType:
    """Load a submodule on first use: mpkit's own, else (``util``, ...) that of the standard library."""
    if not name.startswith("_"):
        for package in (__name__, multiprocessing.__name__):
            if importlib.util.find_spec(f"{package}.{name}") is not None:
                return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
