"""How threads wait for outcomes: one of them leads, the others follow.

A thread that waits in `result()` becomes the *leader* if there is none: it takes the outcomes out of the
outboxes itself, for all threads, and sleeps at the front bell. This saves two thread switches for each call.
The other waiting threads are *followers*: each sleeps on the condition of its handle, and one of them becomes
the leader when the leader stops waiting.
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

#: The longest sleep. A safety net only: the protocol loses no wake-up.
_SLICE_SECONDS = 0.5
#: How late an outcome may be reported while outcomes arrive at least twice as often as this. (Each wake-up of
#: the leader costs the workers some 50 us: with naps of this length they lose
#: less than a fiftieth of a core.)
_NAP_SECONDS = 0.003


class Lead:
    """Decides which of the threads that wait for the outcomes of one pool is the leader.

    Args:
        collector: fetches outcomes, and tells the sinks.
        dispatcher: the owner of the outboxes.
        board: the bells, and the words that workers check before they ring.
    """

    def __init__(self, collector: Collector, dispatcher: Dispatcher, board: Board) -> None:
        self._collector = collector
        self._dispatcher = dispatcher
        self._board = board
        self._front = InterruptibleLock()
        self._front_barrier = Barrier()
        self._patience = Patience()
        # Whether the last wait of the leader was so short that the next one may be a nap.
        self._streaming = False
        # What each follower waits for; several may wait for the same handle, so the keys are plain objects.
        self._followers: dict[object, Waiter] = {}

    def wait_for(
        self, handle: Waiter, timeout: float | None, *, until: Callable[[], bool] | None = None
    ) -> bool:
        """Wait until the handle is settled.

        Args:
            handle: What to wait for.
            timeout: Seconds to wait; None: no limit.
            until: Replaces the condition to wait for. A follower is not woken when it becomes true: it checks
                it every half a second.

        Returns:
            False if the time ran out.

        Raises:
            RuntimeError: This is a signal handler or a `__del__` in the middle of this thread's own work with
                the pool: it would wait for itself.
            ClosedError: This process is a fork of the pool's.
        """
        if (self._collector.forked or self._dispatcher.lock.is_owned()) and not handle._is_settled():
            raise ClosedError(self._collector.forked) if self._collector.forked else RuntimeError(REENTERED)
        # Whether this is a signal handler that came while this very thread leads.
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
            # The last leader may have notified just this thread, which will not lead: notify another one.
            if followed and self._followers and is_free(self._front):
                self._hand_over()
            if inner:
                # This may have fetched what the interrupted wait sleeps for: wake it.
                ring_bell(self._board.front)
        return True

    def _stop_leading(self) -> None:
        """If this thread is the leader, stop leading, and have a follower take over."""
        if self._front.is_owned():
            self._board.words[FRONT] = 0
            self._front.release()
            if self._followers:
                self._hand_over()

    def _lead(self, is_done: Callable[[], bool], wanted: int, deadline: float | None) -> bool:
        """Fetch outcomes until `is_done()`; False if the time ran out.

        Args:
            is_done: What ends the wait.
            wanted: The task to have workers ring for, or `SOON`.
            deadline: On the clock of `time.monotonic`; None: no limit.
        """
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
                if self._spin(looks):
                    patience.paid()
                    work(leading=True)
                    continue
                patience.failed()
            # Nap if outcomes follow each other so quickly that a wake-up for each would cost more than they
            # do.
            napping = self._streaming and not few
            words[WANTED] = ANY if few else NOT_NOW if napping else wanted
            words[FRONT] = 1
            self._front_barrier()
            # An outcome that was put into an outbox before the worker could see the stores above is fetched
            # now; for later ones the worker rings.
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

    def _spin(self, looks: int) -> bool:
        """Check the outboxes again and again, `looks` times in total; returns whether there was something."""
        pairs = self._dispatcher.outbox_words()
        for _ in range(looks // (len(pairs) or 1)):
            for words, head, tail in pairs:
                if words[head] != words[tail]:
                    return True
        return False

    def _follow(self, handle: Waiter, deadline: float | None) -> None:
        """Sleep until the handle is settled, the leader has left, or a time slice or the time is over."""
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
            # Checked after registering as a follower, because the leader first stops leading and then
            # notifies the followers that there are.
            if handle._is_settled() or is_free(self._front):
                return
            condition.wait(self._slice(deadline))
        finally:
            self._followers.pop(key, None)

    def _hand_over(self) -> None:
        """Wake a follower, to have it take the lead."""
        for handle in list(self._followers.values()):
            if handle._is_settled():
                continue  # its thread is about to return
            condition = handle._ensure_condition()
            lock = InterruptibleLock(condition)
            # With a time limit: see `mpkit.pool._handle._holding`.
            if lock.run_within(_SLICE_SECONDS, condition.notify_all) is not None:
                return
