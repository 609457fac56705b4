"""`Lock` as `multiprocessing` has it, over `mpkit.Lock`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpkit import sync
from mpkit._platform.hints import override
from mpkit.compat._numbers import not_negative

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.synchronize import Lock as _StdlibLock
else:
    # For type checkers only, which else refuse it where the standard library takes a lock.
    _StdlibLock = object


class Lock(sync.Lock, _StdlibLock):
    """`multiprocessing.Lock`: a lock between processes that is not recursive and that anybody may release.

    If its holder dies, the lock goes to the next process that asks for it, instead of blocking all others
    forever.

    Args:
        ctx: accepted because the class of the standard library requires it; not needed.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        super().__init__()

    @override
    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock; a negative `timeout` counts as 0. Returns whether this process has it now.

        Blocking: until it is free, if `block`, for at most `timeout` seconds.
        """
        return super().acquire(block, not_negative(timeout))

    @property
    def _semlock(self) -> _Ownership:
        return _Ownership(self)


class _Ownership:
    """What `multiprocessing.Condition` asks its lock about, under the names that it uses."""

    def __init__(self, lock: sync.Lock) -> None:
        self._lock = lock

    def _is_mine(self) -> bool:
        return self._lock.owner() == os.getpid()

    def _count(self) -> int:
        return int(self._is_mine())
