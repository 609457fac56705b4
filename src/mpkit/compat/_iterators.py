"""What `Pool.imap` returns, over `mpkit.pool.ImapIterator`."""

from __future__ import annotations

from multiprocessing import pool as stdlib
from types import GenericAlias
from typing import TYPE_CHECKING, Generic, TypeVar

from mpkit._platform.hints import Self
from mpkit._platform.threads.deadlines import check_timeout, not_negative
from mpkit.compat._errors import pool_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpkit.pool._shared_results import SharedResults

R = TypeVar("R")

# At run time, the class of the standard library is not generic.
if TYPE_CHECKING:
    _StdlibIMapIterator = stdlib.IMapIterator[R]
else:
    _StdlibIMapIterator = GenericAlias(stdlib.IMapIterator, R)


class IMapIterator(_StdlibIMapIterator[R], Generic[R]):
    """What `imap` and `imap_unordered` return: as `multiprocessing.pool.IMapIterator`.

    Args:
        results: The results to iterate over.
        forget: A method of the pool, called once there are no more results; until
            then it keeps the pool alive.

    Safe from: any thread.
    """

    def __init__(self, results: SharedResults[R], forget: Callable[[SharedResults[R]], None]) -> None:
        self._results = results
        self._forget: Callable[[SharedResults[R]], None] | None = forget

    def __iter__(self) -> Self:
        return self

    def __next__(self, timeout: float | None = None) -> R:
        return self.next(timeout)

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: There are no more results.
            multiprocessing.TimeoutError: The time ran out; you may ask again.
            multiprocessing.pool.MaybeEncodingError: The result could not be pickled.
            RuntimeError: Called by the input of this iterator while it is being read, or by a signal handler
                in the middle of `next`.
            Exception: What the call raised, or why the item could not be pickled.

        Blocking: until the next result is there, `timeout` seconds at most; a negative number counts as 0.
        """
        try:
            with pool_errors():
                return self._results.next(check_timeout(not_negative(timeout)))
        finally:
            forget = self._forget
            if forget is not None and self._results.is_over():
                forget(self._results)
                self._forget = None
