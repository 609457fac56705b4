"""A set of weak references that is safe to use from any thread."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class WeakGroup(Generic[T]):
    """A set of objects that are in it only as long as other references to them exist.

    It is used instead of `weakref.WeakSet`, whose iteration fails with a RuntimeError if another thread adds
    an object or, on a free-threaded build, drops one meanwhile. Here each step is a single C call that is
    atomic on every build, and there is no lock, so that a `__del__` may run anywhere.

    Safe from: any thread.
    """

    __slots__ = ("_references",)

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, one: T) -> None:
        """Add an object."""
        self._references.add(weakref.ref(one, self._references.discard))

    def discard(self, one: T) -> None:
        """Remove an object, if it is in the set."""
        self._references.discard(weakref.ref(one))

    def alive(self) -> list[T]:
        """The objects that exist at this moment."""
        return [one for reference in list(self._references) if (one := reference()) is not None]
