"""Who waits for outcomes: leader and followers.

A thread that waits in `result()` becomes the *leader* if nobody leads: it takes the outcomes out of the
outboxes itself, for everybody, and sleeps at the front bell. That saves two hand-overs between threads for
each call. Others who wait follow: they sleep on their handle's condition, and one of them takes over when the
leader leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.interruptible_lock import InterruptibleLock, is_free
from mpkit.errors import ClosedError
from mpkit.pool._engine.collector import Collector, Waiter
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._protocol.channel import ANY, FRONT, NOT_NOW, SOON, WANTED, Barrier, Board, ring_bell
from mpkit.pool._protocol.patience import Patience

REENTERED = (
    "this thread is already inside an operation of the same pool (called from a signal handler or a __del__ "
    "that came in the middle of it), and would wait for itself; wait in another thread or later"
)

#: The longest sleep without a look: a net below the protocol.
_SLICE_SECONDS = 0.5
#: How late an outcome may be told while outcomes come at least twice as fast: a wake-up costs the workers
#: some 50 us, so this many of them take less than two hundredths of a core.
_NAP_SECONDS = 0.003


class Lead:
    """The lead among the threads that wait for the outcomes of one pool.

    Args:
        collector: fetches, and tells everybody concerned.
        dispatcher: whose outboxes are looked at.
        board: the bells.
    """

    def __init__(self, collector: Collector, dispatcher: Dispatcher, board: Board) -> None:
        self._collector = collector
        self._dispatcher = dispatcher
        self._board = board
        self._front = InterruptibleLock()
        self._front_barrier = Barrier()
        self._patience = Patience()
        #: The last wait of the leader was so short that the next one may be a nap.
        self._streaming = False
        #: Who sleeps until a leader brings the outcome, or leaves; several may wait for the same.
        self._followers: dict[object, Waiter] = {}

    def wait_for(
        self, handle: Waiter, timeout: float | None, *, until: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until the handle has ended; False when the time was over.

        Args:
            handle: What is waited for.
            timeout: Seconds, None: no limit.
            until: Ends the waiting as well, if this thread fetches outcomes itself.

        Raises:
            RuntimeError: This thread is in the middle of something else with the pool (this is a signal
                handler or a `__del__`), and would wait for itself.
            ClosedError: This process is a fork of the pool's.
        """
        if (self._collector.forked or self._dispatcher.lock.is_owned()) and not handle._is_settled():
            raise ClosedError(self._collector.forked) if self._collector.forked else RuntimeError(REENTERED)
        # A signal handler, in the middle of this very thread's waiting for the pool.
        inner = self._front.is_owned()
        deadline = None if timeout is None else CLOCK.monotonic() + timeout
        is_done = until or handle._is_settled
        followed = False
        try:
            while not is_done():
                try:
                    if self._front.acquire(False):
                        done = self._lead(is_done, handle.task_id or SOON, deadline)
                        self._stop_leading()
                        if done:
                            break
                    else:
                        followed = True
                        self._follow(handle, deadline)
                except BaseException:
                    try:
                        self._stop_leading()
                    finally:
                        self._stop_leading()
                    raise
                if deadline is not None and not is_done() and CLOCK.monotonic() >= deadline:
                    self._collector.work()
                    return is_done()
        finally:
            # The lead may just have been offered to this thread, which has no use for it any more.
            if followed and self._followers and is_free(self._front):
                self._hand_over()
            if inner:
                # What was fetched here may be what the outer waiting sleeps for.
                ring_bell(self._board.front)
        return True

    def _stop_leading(self) -> None:
        """Leave the lead to the next one, if this thread has it."""
        if self._front.is_owned():
            self._board.words[FRONT] = 0
            self._front.release()
            if self._followers:
                self._hand_over()

    def _lead(self, is_done: Callable[[], bool], wanted: int, deadline: float | None) -> bool:
        """Fetch outcomes until the wanted one is there (True), or the time is over."""
        dispatcher, words = self._dispatcher, self._board.words
        front = self._board.front
        work = self._collector.work
        patience = self._patience
        has_outcomes = dispatcher.has_outcomes
        work()
        while not is_done():
            few = dispatcher.ledger.live <= len(dispatcher.lanes)
            looks = patience.looks() if few else 0
            if looks:
                if self._look_for_a_while(looks):
                    patience.paid()
                    work(leading=True)
                    continue
                patience.failed()
            # Outcomes follow each other so quickly that being rung for each would cost more than they do.
            napping = self._streaming and not few
            words[WANTED] = ANY if few else NOT_NOW if napping else wanted
            words[FRONT] = 1
            self._front_barrier()
            # What was put into an outbox before the store above could be seen is fetched now; what comes
            # later rings.
            if has_outcomes():
                work(leading=True)
            if is_done():
                words[FRONT] = 0
                return True
            wait = _NAP_SECONDS if napping else _SLICE_SECONDS
            began = CLOCK.monotonic()
            if deadline is not None:
                wait = min(wait, deadline - began)
                if wait <= 0:
                    words[FRONT] = 0
                    return False
            front.acquire(True, wait)
            words[FRONT] = 0
            while front.acquire(False):
                pass
            work()
            self._streaming = is_done() and (napping or CLOCK.monotonic() - began < _NAP_SECONDS / 2)
        return True

    def _look_for_a_while(self, looks: int) -> bool:
        """Look at the outboxes again and again; whether there was something."""
        pairs = self._dispatcher.outbox_words()
        for _ in range(looks // (len(pairs) or 1)):
            for words, head, tail in pairs:
                if words[head] != words[tail]:
                    return True
        return False

    def _follow(self, handle: Waiter, deadline: float | None) -> None:
        """Sleep until the handle has ended, the leader has left, or the time is over."""
        condition = handle._ensure_condition()
        lock = InterruptibleLock(condition)
        lock.run_within(self._slice(deadline), self._sleep_on, condition, handle, deadline)

    def _slice(self, deadline: float | None) -> float:
        if deadline is None:
            return _SLICE_SECONDS
        return min(_SLICE_SECONDS, max(deadline - CLOCK.monotonic(), 0.0))

    def _sleep_on(self, condition: threading.Condition, handle: Waiter, deadline: float | None) -> None:
        key = object()
        try:
            self._followers[key] = handle
            # The leader leaves first and looks at the followers then: so look at the lead once more.
            if handle._is_settled() or is_free(self._front):
                return
            condition.wait(self._slice(deadline))
        finally:
            self._followers.pop(key, None)

    def _hand_over(self) -> None:
        for handle in list(self._followers.values()):
            if handle._is_settled():
                continue  # it is on its way out
            condition = handle._ensure_condition()
            lock = InterruptibleLock(condition)
            # Not for ever: see `mpkit.pool._handle._holding`.
            if lock.run_within(_SLICE_SECONDS, condition.notify_all) is not None:
                return
