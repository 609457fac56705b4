"""`TaskPool`: worker processes that call functions.

Rooms, from what users call to what the workers do:

- the verbs: ``_facade`` (`TaskPool`), ``_verbs`` (their protocol), ``_executor``;
- what they return: ``_handle`` (the outcome of a task), ``_maps`` and ``_imap`` (many calls, at once and
  lazily: there ``_lazy_map`` reads and sends, and outcomes arrive in ``_imap_sink``; ``_chunking`` serves
  both, ``_shared_results`` several threads), ``_shared`` (one object for many tasks);
- `_engine`: the parent's side; ``_outside``: a look from other programs;
- `_worker`: what runs in a worker;
- `_protocol`: what both sides agree on.

A worker imports this package as well, and needs next to nothing of it: the names are loaded when they are
first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpkit.pool._engine.statistics import PoolStatistics, WorkerSnapshot
    from mpkit.pool._facade import PoolView, TaskPool
    from mpkit.pool._handle import TaskHandle
    from mpkit.pool._imap import ImapIterator
    from mpkit.pool._shared import Shared
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
    "PoolStatistics": "_engine.statistics",
    "PoolVerbs": "_verbs",
    "PoolView": "_facade",
    "Shared": "_shared",
    "TaskHandle": "_handle",
    "TaskPool": "_facade",
    "WorkerSnapshot": "_engine.statistics",
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
