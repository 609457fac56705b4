"""Objects that are known as long as somebody else has them."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

__all__ = ["WeakGroup"]

T = TypeVar("T")


class WeakGroup(Generic[T]):
    """Objects that are known as long as somebody else has them.

    In place of `weakref.WeakSet`, whose iteration fails with a RuntimeError where another thread adds an
    object or, on a free-threaded build, drops one meanwhile. Here each step is a single call of C that is
    atomic on every build, and takes no lock, so a `__del__` may come anywhere.

    Safe from: any thread.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, one: T) -> None:
        """Know it from now on."""
        self._references.add(weakref.ref(one, self._references.discard))

    def discard(self, one: T) -> None:
        """Forget it, if it is known."""
        self._references.discard(weakref.ref(one))

    def alive(self) -> list[T]:
        """Those that somebody has at this moment."""
        return [one for reference in list(self._references) if (one := reference()) is not None]
