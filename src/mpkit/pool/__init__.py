"""`TaskPool`: worker processes that call functions.

Rooms: ``facade`` (the verbs), ``handle`` (the outcome of a task), ``maps`` (many calls), ``shared`` (one
object for many tasks), ``engine`` (puts the rest together), ``ledger`` (the pure state machine of tasks),
``dispatcher`` (who gets which task), ``collector`` (who fetches outcomes), ``supervisor`` (deaths, limits,
the end), ``crew`` (starting and replacing workers), ``worker`` (what runs in them), ``channel`` (the memory
between worker and parent), ``payload`` (arguments and outcomes as bytes).

A worker imports this package as well, and needs next to nothing of it: the names are loaded when they are
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpkit.pool._verbs import PoolVerbs
    from mpkit.pool.facade import PoolView, TaskPool
    from mpkit.pool.handle import TaskHandle
    from mpkit.pool.maps import ImapIterator
    from mpkit.pool.shared import Shared
    from mpkit.pool.statistics import PoolStatistics, WorkerSnapshot

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
    "ImapIterator": "maps",
    "PoolStatistics": "statistics",
    "PoolVerbs": "_verbs",
    "PoolView": "facade",
    "Shared": "shared",
    "TaskHandle": "handle",
    "TaskPool": "facade",
    "WorkerSnapshot": "statistics",
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
