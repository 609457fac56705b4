"""The results of a lazy map, for several threads at once, one of which may be closing the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.errors import WaitTimeout
from mpkit.pool._imap import ImapIterator

__all__ = ["SharedResults"]

R = TypeVar("R")
T = TypeVar("T")


class SharedResults(Generic[R]):
    """The results of a lazy map, for several threads: a pool holds it without its iterator, which holds the
    pool.

    One thread at a time takes a result, and one at a time reads the input; they are not the same when the
    pool is closed while somebody waits for a result. Who waits does not keep others from reading: the result
    may depend on what they do then.

    Safe from: any thread.
    """

    def __init__(self, results: ImapIterator[R]) -> None:
        # Its end would be that of the map.
        self._iterator = results
        self._results = results._lazy
        self._turn = InterruptibleLock()
        self._reading = InterruptibleLock()
        # Written while holding the lock of the input only: the last item is on its way a moment longer than
        # there is something to read.
        self._is_all_read: bool = self._results.is_all_read

    def next(self, timeout: float | None) -> R:
        """The next result, within a time limit that has been checked.

        Raises:
            WaitTimeout: the time is over.
            RuntimeError: this thread is in the middle of it.
            ClosedError: this process is a fork of the pool's.
        """
        engine = self._results.engine
        # In a fork: a thread that is not there may have the locks.
        engine.status.check_process()
        if self._turn.is_owned() or self._reading.is_owned():
            raise RuntimeError(
                "this thread is already taking a result from this iterator, or reading its input (this was "
                "called by the input, a signal handler or a __del__): take it in another thread, or later"
            )
        deadline = deadline_of(timeout)
        return _holding(self._turn, deadline, self._take)

    def read_all(self) -> None:
        """Read and send the rest of the input now; an infinite input never ends.

        What is reading it in this very thread (the input itself has closed the pool, or a signal handler) is
        left alone.
        """
        if not self._results.engine.status.is_forked() and not self._reading.is_owned():
            self._reading.run(self._read_all)

    def is_over(self) -> bool:
        """Whether everything has been read and taken."""
        return self._is_all_read and not self._results.held

    def is_under_way(self) -> bool:
        """Whether there is something to read, or to be done by workers, though nobody may want it."""
        return not self._is_all_read or bool(self._results.sink.tasks)

    def _read_all(self) -> None:
        self._results.read_all()
        self._is_all_read = True

    def _take(self, deadline: float | None) -> R:
        """The next result (while it is this thread's turn)."""
        results = self._results
        while not self._is_all_read:
            taken = _holding(self._reading, deadline, self._read_and_take)
            if taken is not None:
                return taken[0]
            if not results.engine.lead.wait_for(results.sink, remaining(deadline)):
                raise _late()
        return results.next(remaining(deadline))

    def _read_and_take(self, deadline: float | None) -> tuple[R] | None:
        """Read on, and take the next result unless it must be waited for (holding the lock of the input)."""
        results = self._results
        try:
            if not results.has_next():
                results.read()
            # An idle one has come to its end, or an interrupt has taken something away: it knows what to do.
            if results.has_next() or results.sink.is_idle():
                return (results.next(remaining(deadline)),)
            return None
        finally:
            self._is_all_read = results.is_all_read


def _holding(lock: InterruptibleLock, deadline: float | None, function: Callable[[float | None], T]) -> T:
    held = lock.run_within(remaining(deadline), function, deadline)
    if held is None:
        raise _late()
    return held[0]


def _late() -> WaitTimeout:
    return WaitTimeout("no result in time; the iteration can go on")
