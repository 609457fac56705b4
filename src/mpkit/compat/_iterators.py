"""What `Pool.imap` returns, over `mpkit.pool.ImapIterator`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from mpkit._platform.deadlines import check_timeout
from mpkit._platform.hints import Self
from mpkit.compat._errors import pool_errors
from mpkit.compat._numbers import not_negative

if TYPE_CHECKING:
    from mpkit.compat._pool import Pool
    from mpkit.pool._shared_results import SharedResults

__all__ = ["IMapIterator"]

R = TypeVar("R")


class IMapIterator(Generic[R]):
    """What `imap` and `imap_unordered` return: `multiprocessing.pool.IMapIterator`.

    Safe from: any thread.
    """

    def __init__(self, results: SharedResults[R], pool: Pool) -> None:
        self._results = results
        #: An iterator that has more results keeps its pool alive.
        self._pool: Pool | None = pool

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: the time is over; it can be asked for again.
            multiprocessing.pool.MaybeEncodingError: the result could not be pickled.
            RuntimeError: called by what this iterator reads, or by a signal handler in the middle of `next`.
            Exception: what the call raised, or why the item could not be pickled.

        Blocking: until it is there, for at most `timeout` seconds.
        """
        try:
            with pool_errors():
                return self._results.next(check_timeout(not_negative(timeout)))
        finally:
            pool = self._pool
            if pool is not None and self._results.is_over():
                pool._iterators.discard(self._results)
                self._pool = None
