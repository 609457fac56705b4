"""`Lock`: `mpkit.Lock` with the interface of `multiprocessing.Lock`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpkit import sync
from mpkit._platform.hints import override
from mpkit._platform.threads.deadlines import not_negative

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.synchronize import Lock as _StdlibLock
else:
    # The base class is for type checkers only: they accept this lock wherever the standard library takes one.
    _StdlibLock = object


class Lock(sync.Lock, _StdlibLock):
    """As `multiprocessing.Lock`: a lock between processes. It is not recursive,
    and any process may release it.

    If its owner dies, the lock goes to the next process that asks for it, instead of
    blocking all others forever.

    Args:
        ctx: Ignored; the class of the standard library requires it.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        super().__init__()

    @override
    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock; returns whether it was acquired.

        Blocking: until the lock is free, if `block`, `timeout` seconds at most; a
        negative number counts as 0.
        """
        return super().acquire(block, not_negative(timeout))

    @property
    def _semlock(self) -> _Ownership:
        return _Ownership(self)


class _Ownership:
    """What `multiprocessing.Condition` uses of its lock, under the private names that it uses."""

    def __init__(self, lock: sync.Lock) -> None:
        self._lock = lock

    def _is_mine(self) -> bool:
        return self._lock.owner() == os.getpid()

    def _count(self) -> int:
        return int(self._is_mine())
