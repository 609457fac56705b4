"""The methods of a pool as a protocol, for code that should also accept other pools than `TaskPool`.

Another pool might use the machines of a cluster. So `submit` returns a plain `Future` here: a `TaskHandle`
belongs to workers of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PoolVerbs(Protocol):
    """What any pool can do; see `TaskPool` for the meaning of the methods.

    To accept only a `TaskPool` and its views, annotate `PoolView` instead.
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have ``fn(*args, **kwargs)`` called; return a future of its result."""
        ...

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> R:
        """Have ``func(*args, **kwds)`` called, and wait for its result."""
        ...

    def map(self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int | None = None) -> list[R]:
        """Have `func` called for each item, and wait for all results."""
        ...

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """The same as `map`, but each item holds the arguments of one call."""
        ...

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Have `func` called for each item, lazily; iterate over the results in the order of the input."""
        ...

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """The same as `imap`, with the results in the order in which they arrive."""
        ...

    def __repr__(self) -> str:
        """The pool and its state, for people."""
        ...
