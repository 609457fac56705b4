"""For `mpkit.compat`: the results of a lazy map for several threads, one of which may be closing the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.errors import WaitTimeout
from mpkit.pool._imap import ImapIterator

R = TypeVar("R")
T = TypeVar("T")


class SharedResults(Generic[R]):
    """The results of a lazy map, for several threads.

    A pool can refer to this object without referring to the iterator of
    `mpkit.compat`, which refers to the pool.

    One thread at a time takes a result, and one thread at a time reads the input. These are different threads
    if the pool is closed while another thread waits for a result. A thread that waits does not keep others
    from reading, because the result that it waits for may depend on what they read.

    Safe from: any thread.
    """

    def __init__(self, results: ImapIterator[R]) -> None:
        # Kept alive, because the end of the iterator would end the map.
        self._iterator = results
        self._results = results._lazy
        self._turn = InterruptibleLock()
        self._reading = InterruptibleLock()
        # Set only while holding `_reading`. (`LazyMap.is_all_read` becomes true a moment earlier, when the
        # last item has been read and not been sent.)
        self._is_all_read: bool = self._results.is_all_read

    def next(self, timeout: float | None) -> R:
        """The next result. The caller has checked `timeout`.

        Raises:
            WaitTimeout: the time ran out.
            RuntimeError: this thread is already in the middle of this method, or of reading the input.
            ClosedError: this process is a fork of the pool's.
        """
        engine = self._results.engine
        # In a fork, the locks may be held by threads that do not exist there.
        engine.status.check_process()
        if self._turn.is_owned() or self._reading.is_owned():
            raise RuntimeError(
                "this thread is already taking a result from this iterator, or reading its input (this was "
                "called by the input, a signal handler or a __del__): take it in another thread, or later"
            )
        deadline = deadline_of(timeout)
        return _holding(self._turn, deadline, self._take)

    def read_all(self) -> None:
        """Read and send the rest of the input now; never returns if it is infinite.

        Does nothing if this thread is already reading the input: then the input itself has closed the pool,
        or a signal handler has.
        """
        if not self._results.engine.status.is_forked() and not self._reading.is_owned():
            self._reading.run(self._read_all)

    def is_over(self) -> bool:
        """Whether everything has been read and taken."""
        return self._is_all_read and not self._results.held

    def is_under_way(self) -> bool:
        """Whether there is input to read, or work for the workers, even if nobody will take the results."""
        return not self._is_all_read or bool(self._results.sink.tasks)

    def _read_all(self) -> None:
        self._results.read_all()
        self._is_all_read = True

    def _take(self, deadline: float | None) -> R:
        """The next result (holding `_turn`)."""
        results = self._results
        while not self._is_all_read:
            taken = _holding(self._reading, deadline, self._read_and_take)
            if taken is not None:
                return taken[0]
            if not results.engine.lead.wait_for(results.sink, remaining(deadline)):
                raise _late()
        return results.next(remaining(deadline))

    def _read_and_take(self, deadline: float | None) -> tuple[R] | None:
        """Read more input, and take the next result; None if it is not there yet (holding `_reading`)."""
        results = self._results
        try:
            if not results.has_next():
                results.read()
            # If the sink is idle, the map has come to its end, or an interrupt has lost an
            # outcome: `next` handles both.
            if results.has_next() or results.sink.is_idle():
                return (results.next(remaining(deadline)),)
            return None
        finally:
            self._is_all_read = results.is_all_read


def _holding(lock: InterruptibleLock, deadline: float | None, function: Callable[[float | None], T]) -> T:
    """Call ``function(deadline)`` while holding a lock; raise `WaitTimeout` if it is not free in time."""
    held = lock.run_within(remaining(deadline), function, deadline)
    if held is None:
        raise _late()
    return held[0]


def _late() -> WaitTimeout:
    return WaitTimeout("no result in time; the iteration can go on")
