"""The shared objects that this process has open: each is unpickled once, for all tasks that use it."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._protocol import payload

#: How many shared objects are kept open.
_MOST_OPEN = 16

#: The objects by the names of their files, the one used last at the end. Other modules may only read it.
opened: OrderedDict[str, Any] = OrderedDict()
_lock = InterruptibleLock()
_NOT_OPEN = object()


def open_shared(name: str) -> Any:
    """In a worker: the shared object in the file of that name."""
    value = _lock.run(_find, name)
    if value is _NOT_OPEN:
        # First, because a program that shares one big object after another may have memory for one only.
        forget_closed()
        value = payload.open_shared(name)
        _lock.run(_keep, name, value)
    return value


def forget_closed() -> None:
    """Drop the objects that have been closed: their files are gone, and no task will need them again.

    Otherwise their memory would be in use for as long as this process has them mapped. If a file that exists
    cannot be found just now, this does no harm: it will be opened again.
    """
    # The objects are returned through the lock, so that their destructors run when it has been released.
    _lock.run(_take_closed)


def _find(name: str) -> Any:
    if name not in opened:
        return _NOT_OPEN
    opened.move_to_end(name)
    return opened[name]


def _keep(name: str, value: Any) -> list[Any]:
    opened[name] = value
    return [opened.popitem(last=False) for _ in range(len(opened) - _MOST_OPEN)]


def _take_closed() -> list[Any]:
    return [opened.pop(name) for name in [name for name in opened if not os.path.exists(name)]]
