"""`TaskPool`: worker processes that call functions.

Rooms: ``_facade`` (the verbs), ``_handle`` (the outcome of a task), ``_maps`` and ``_imap`` (many calls, at
once and lazily; ``_chunking`` and ``_progress`` serve both; ``_shared_results`` for several threads),
``_shared`` (one object for many tasks; in a worker ``_opened``), ``_engine`` (puts the rest together),
``_ledger`` (the pure state machine of tasks), ``_dispatcher`` (who gets which task), ``_collector`` (who
fetches outcomes), ``_caller`` (who calls callbacks), ``_supervisor`` (deaths, limits, the end), ``_crew``
(starting and replacing workers), ``_worker`` (what runs in them), ``_channel`` (the memory between worker and
parent), ``_payload`` (arguments and outcomes as bytes), ``_reports`` (what goes wrong in a thread of the
pool).

A worker imports this package as well, and needs next to nothing of it: the names are loaded when they are
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpkit.pool._facade import PoolView, TaskPool
    from mpkit.pool._handle import TaskHandle
    from mpkit.pool._imap import ImapIterator
    from mpkit.pool._shared import Shared
    from mpkit.pool._statistics import PoolStatistics, WorkerSnapshot
    from mpkit.pool._verbs import PoolVerbs

__all__ = [
    "ImapIterator",
    "PoolStatistics",
    "PoolVerbs",
    "PoolView",
    "Shared",
    "TaskHandle",
    "TaskPool",
    "WorkerSnapshot",
]

_WHERE = {
    "ImapIterator": "_imap",
    "PoolStatistics": "_statistics",
    "PoolVerbs": "_verbs",
    "PoolView": "_facade",
    "Shared": "_shared",
    "TaskHandle": "_handle",
    "TaskPool": "_facade",
    "WorkerSnapshot": "_statistics",
}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value: object = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
