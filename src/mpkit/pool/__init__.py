"""`TaskPool`: worker processes that call functions.

Rooms, from what users call to what the workers do:

- the verbs: ``_facade`` (`TaskPool`), ``_verbs`` (their protocol), ``_executor``, ``_options`` (arguments,
  checked);
- what they return: ``_handle`` (the outcome of a task), ``_maps`` and ``_imap`` (many calls, at once and
  lazily; ``_chunking`` and ``_progress`` serve both, ``_shared_results`` several threads), ``_shared`` (one
  object for many tasks; ``_seen_shared`` notes who needs it, ``_opened`` has it in a worker) and
  ``_statistics``;
- the engine: ``_engine`` (puts the rest together, and ends it; ``_states``), ``_ledger`` (the pure state
  machine of tasks), ``_function_table`` and ``_functions`` (what they call, and how long it takes),
  ``_dispatcher`` (who gets which task), ``_room`` (who waits to submit), ``_collector`` (who fetches
  outcomes), ``_caller`` (who calls callbacks), ``_supervisor`` (the thread that looks after the workers),
  ``_limits`` (tasks that must not go on), ``_programs`` (what those have started), ``_losses`` and
  ``_remains`` (what a death means for tasks, and leaves behind), ``_reports`` (what goes wrong in a thread
  of the pool);
- workers, seen from the parent: ``_crew`` (starting and replacing them; ``_server``, ``_fork_warning``),
  ``_lane`` (one of them), ``_leavers`` (those that leave by themselves), ``_insight`` and ``_stacks`` (what
  they are doing), ``_outside`` (the same for other programs);
- in between: ``_channel`` (the memory that a worker and its parent share), ``_payload`` (arguments and
  outcomes as bytes), ``_initializer`` (the initializer as bytes), ``_blame`` (what cannot be pickled),
  ``_logs``, ``_stack_signal``, ``_patience`` (how long to look before sleeping);
- in a worker: ``_worker``, ``_worker_chunks``, ``_worker_outbox``, ``_worker_bells``, ``_worker_fork`` (when
  a task forks), ``_importing`` (whether it is just importing a module).

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
