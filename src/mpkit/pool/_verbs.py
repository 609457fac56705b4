"""The verbs of a pool as a protocol: what `TaskPool` offers here, and what a pool over a cluster would have
to. Hence a plain `Future`: a `TaskHandle` belongs to the workers of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ["PoolVerbs"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PoolVerbs(Protocol):
    """What any pool can do. To accept only a `TaskPool` and its views, annotate `PoolView` instead."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it; the future of what it returns."""
        ...

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> R:
        """Call it and wait."""
        ...

    def map(self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int | None = None) -> list[R]:
        """Call it for each item and wait for all."""
        ...

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """The same, each item being the arguments of one call."""
        ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call it for each item, lazily and in order."""
        ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call it for each item, lazily, results as they arrive."""
        ...

    def __repr__(self) -> str:
        """What state it is in."""
        ...
