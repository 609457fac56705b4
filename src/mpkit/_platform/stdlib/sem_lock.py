"""Semaphores of multiprocessing that are opened by name, as C objects.

Private is ``_multiprocessing.SemLock``, with its methods `_count`, `_is_mine` and `_is_zero`:
`multiprocessing.Semaphore` cannot be opened by name, and its `acquire` is a Python method, several times
slower than the one of the C class.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:

    class SemLock:
        """The part of ``_multiprocessing.SemLock`` that mpkit uses; not every checker knows it."""

        def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool, /) -> None: ...
        def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool: ...
        def release(self) -> None: ...
        def _count(self) -> int: ...
        def _is_mine(self) -> bool: ...
        def _is_zero(self) -> bool: ...
        @classmethod
        def _rebuild(cls, handle: int, kind: int, maxvalue: int, name: str | None, /) -> SemLock: ...

    def _sem_unlink(name: str, /) -> None: ...

else:
    from _multiprocessing import SemLock

    if sys.platform != "win32":
        from _multiprocessing import sem_unlink as _sem_unlink

SEMAPHORE_KIND: Final = 1
"""The `kind` argument of `SemLock` for a counting semaphore (0 is a recursive mutex)."""


def rebuild_semaphore(name: str, maxvalue: int) -> SemLock:
    """Open a semaphore by its name.

    Raises:
        FileNotFoundError: If the name is gone.
    """
    return SemLock._rebuild(0, SEMAPHORE_KIND, maxvalue, name)


def sem_unlink(name: str) -> None:
    """Remove the name of a semaphore; processes that have it open keep it.

    Raises:
        FileNotFoundError: If the name is gone already.
    """
    if sys.platform != "win32":
        _sem_unlink(name)
