"""`TaskPool`: worker processes that call functions.

The modules, from what users call down to what the workers do:

- the methods of a pool: ``_facade`` (`TaskPool`), ``_verbs`` (the same methods as a protocol), ``_executor``;
- what these methods return: ``_handle`` (a future: the outcome of a task), ``_maps`` (a whole map as one
  handle), ``_imap`` (the iterator of a lazy map; ``_lazy_map`` reads its input and sends it, and the outcomes
  arrive in ``_imap_sink``), ``_shared`` (one object for many tasks);
- helpers: ``_chunking`` (used by both kinds of map), ``_shared_results`` (lazy maps used by several threads);
- `_engine`: the parent's side; ``_outside``: reads the state of the pools of other programs;
- `_worker`: what runs in a worker;
- `_protocol`: what the parent and the workers agree on.

A worker imports this package too, but needs almost nothing of it. So each name is loaded on first use.
"""

from __future__ import annotations

import importlib
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
    value: object = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value  # the next use is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
