"""The shared objects that this process has open: unpickled once, for all tasks that use them."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._protocol import payload

__all__ = ["forget_closed", "open_shared", "opened"]

#: So many are kept open.
_MOST_OPEN = 16

#: By the names of their files, the one used last at the end. Only to be looked at, outside this module.
opened: OrderedDict[str, Any] = OrderedDict()
_lock = InterruptibleLock()
_NOT_OPEN = object()


def open_shared(name: str) -> Any:
    """In a worker: the object behind a name."""
    value = _lock.run(_find, name)
    if value is _NOT_OPEN:
        # First: whoever shares one big object after the other may have room for one only.
        forget_closed()
        value = payload.open_shared(name)
        _lock.run(_keep, name, value)
    return value


def forget_closed() -> None:
    """Let go of the objects that have been closed: their files are gone, and nobody will ask for them again.

    Else their memory would stay in use for as long as this process had them mapped. To be wrong about one
    (a name that cannot be looked up now) does no harm: it would be opened again.
    """
    # They may bring destructors along, which run when the lock is free again.
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
