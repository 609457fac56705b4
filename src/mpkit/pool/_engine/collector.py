"""Who waits for outcomes, and who fetches them: leader and followers, and the collector's own thread.

A thread that waits in `result()` becomes the *leader* if nobody leads: it takes the outcomes out of the
outboxes itself, for everybody, and sleeps at the front bell. That saves two hand-overs between threads for
each call. Others who wait follow: they sleep on their handle's condition, and one of them takes over when the
leader leaves.

The *collector* thread sleeps at the back bell. It serves whatever has no thread that waits: callbacks,
`concurrent.futures.wait`, coroutines, tasks that queue for a free worker, log records, outboxes that fill.
With nothing of that kind it is not rung, and costs nothing. It never runs code of the program: callbacks and
log records go to another thread (`mpkit.pool._engine.caller`), because all tasks would wait with it for that
code.

No wake-up is lost: whoever goes to sleep stores its word on the board, passes a full barrier, and looks at
the outboxes once more; a worker puts its outcome into the outbox, passes a full barrier, and looks at the
board. All sleeps are sliced nevertheless while tasks are under way.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError
from mpkit.pool._engine.caller import Caller
from mpkit.pool._engine.dispatcher import Dispatcher, Settlements
from mpkit.pool._engine.reports import attempt, report
from mpkit.pool._protocol.channel import (
    ALWAYS,
    ANY,
    AWAKE,
    BACK,
    FRONT,
    NONE,
    NOT_NOW,
    PART,
    PLAIN,
    SOON,
    WANTED,
    WHEN_FULL,
    WHEN_LOW,
    Barrier,
    Board,
    ring_bell,
)
from mpkit.pool._protocol.patience import Patience


class Waiter(Protocol):
    """Somebody who waits for an outcome."""

    @property
    def task_id(self) -> int:
        """The task that is waited for, or `SOON`; 0: several, as of a whole map."""
        ...

    def _is_settled(self) -> bool:
        """Whether the waiting is over."""
        ...

    def _ensure_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads; notified when the waiting may be over."""
        ...


REENTERED = (
    "this thread is already inside an operation of the same pool (called from a signal handler or a __del__ "
    "that came in the middle of it), and would wait for itself; wait in another thread or later"
)

#: The longest sleep without a look while somebody waits: a net below the protocol.
_SLICE_SECONDS = 0.5
#: How late an outcome may be told while outcomes come at least twice as fast: a wake-up costs the workers
#: some 50 us, so this many of them take less than two hundredths of a core.
_NAP_SECONDS = 0.003


class Collector:
    """Brings outcomes to those who wait for them.

    Args:
        dispatcher: whose outboxes are emptied.
        board: the bells.
        name: what the names of the threads begin with.
        on_empty: called when the last task of a closed pool has ended.
        handle_log: what is done with a worker's log record; called in the caller's thread.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        board: Board,
        name: str,
        handle_log: Callable[[bytes], None],
        on_empty: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._board = board
        self._words = board.words
        self._name = name
        self.on_empty = on_empty
        self._caller = Caller(name, handle_log, self.wake, board)
        dispatcher.on_log = self._caller.handle_log
        self._front = seam.InterruptibleLock()
        self._front_barrier = Barrier()
        self._patience = Patience()
        #: The last wait of the leader was so short that the next one may be a nap.
        self._streaming = False
        #: Who sleeps until a leader brings the outcome, or leaves; several may wait for the same.
        self._followers: dict[object, Waiter] = {}
        #: Who is waited for by somebody who is no thread of ours.
        self._watched: set[Waiter] = set()
        # What the thread itself has to do besides: the pool's own work, which never waits.
        self._chores: deque[Callable[[], object]] = deque()
        # Outcomes that a thread has taken, or is about to take, and not told yet; by the list's identity.
        self._telling: dict[int, Settlements] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        #: The pool is closing: nobody may wait for the last outcomes.
        self.draining = False
        # The thread is over: who wants something done does it.
        self._ended = False
        #: In a fork of the pool's process: what to tell those who would wait in vain.
        self.forked: str = ""

    # -- the thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the collector's thread.

        Raises:
            RuntimeError: the system has no thread left.
        """
        # Daemon: the interpreter joins other threads before any exit handler of ours could stop this one. The
        # pool's end joins it.
        self._thread = threading.Thread(target=self._run, name=f"{self._name}-collector", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def stop(self) -> None:
        """Tell the threads to end when all is done, and all calls are made."""
        self._stopping = True
        self.wake()

    def join(self, timeout: float | None) -> bool:
        """Wait for the threads; True when they have ended (or this is one of them)."""
        thread = self._thread
        deadline = deadline_of(timeout)
        if thread is None:
            # It could not be started.
            self._end()
        elif thread is not threading.current_thread():
            thread.join(timeout)
            if thread.is_alive():
                return False
        return self._caller.join(remaining(deadline))

    def let_go(self) -> None:
        """The board is closed: look at it no more."""
        self._words = self._board.words

    def is_current_thread(self) -> bool:
        """Whether this is a callback, or something else in a thread of the pool's: a `__del__`, say."""
        return self._caller.is_current_thread() or threading.current_thread() is self._thread

    def wake(self) -> None:
        """Have the thread look."""
        ring_bell(self._board.back)

    def call_back(self, call: Callable[[], object]) -> None:
        """Have the caller's thread call something of the program's, after all that was asked for before."""
        self._caller.call(call)

    def log(self, log: Callable[..., object], text: str, *arguments: object) -> None:
        """Have something of the pool's own logged there: everybody depends on the pool's other threads, and
        the log handlers of the program may hang.
        """
        self.call_back(functools.partial(log, text, *arguments))

    def do_later(self, chore: Callable[[], object]) -> None:
        """Have the collector's thread do something of the pool's own, which must not wait for anything."""
        self._chores.append(chore)
        if self._ended:
            # It may have looked for the last time before this was there.
            self._do_chores()
        elif self._words[BACK] or threading.current_thread() is not self._thread:
            self.wake()

    def watch(self, handle: Waiter) -> None:
        """Somebody waits for a handle in a way that has no thread of ours.

        Raises:
            ClosedError: This process is a fork of the pool's.
        """
        if self.forked:
            raise ClosedError(self.forked)
        self._watched.add(handle)
        # In this order: it is settled first, and then taken out if it is there.
        if handle._is_settled():
            self._watched.discard(handle)
        elif self._words[BACK] != ALWAYS:
            # Else it sleeps as it should.
            self.wake()

    def unwatch(self, handle: Waiter) -> None:
        """A handle has ended, which may have been watched."""
        self._watched.discard(handle)

    def _run(self) -> None:
        back = self._board.back
        barrier = Barrier()
        over = False
        while not over:
            try:
                over = self._take_turn(back, barrier)
            except BaseException:  # noqa: BLE001  whatever it is, everybody depends on this thread
                report()
                # Should it be lasting (no memory), once in a while is often enough.
                back.acquire(True, _SLICE_SECONDS)
        self._end()

    def _end(self) -> None:
        # In this order: whoever adds a chore either sees this, or is seen here.
        self._ended = True
        self._do_chores()
        # After them: they may have something called.
        self._caller.stop()

    def _take_turn(self, back: Semaphore, barrier: Barrier) -> bool:
        """Fetch what there is and see to it that it is told, then sleep; True when all is over."""
        dispatcher, words = self._dispatcher, self._words
        self.work()
        self._do_chores()
        self._caller.serve()
        if self._stopping and not self._chores:
            return True
        level = self._level()
        words[BACK] = level
        barrier()
        if self._chores or (level > WHEN_FULL and dispatcher.has_outcomes()) or self._stopping:
            words[BACK] = AWAKE
            return False
        if level > WHEN_FULL:
            back.acquire(True, _SLICE_SECONDS)
        elif dispatcher.ledger.under_way:
            back.acquire(True, 20 * _SLICE_SECONDS)
        else:
            # For ever: there is nothing that could go wrong.
            back.acquire(True, None)
        words[BACK] = AWAKE
        while back.acquire(False):
            pass
        return False

    def _level(self) -> int:
        """When the workers are to ring for the thread."""
        if self._watched or self.draining:
            return ALWAYS
        return WHEN_LOW if self._dispatcher.ledger.queued else WHEN_FULL

    def _do_chores(self) -> None:
        chores = self._chores
        while chores:
            try:
                chore = chores.popleft()
            except IndexError:
                # Once the thread is over, several others may do them.
                return
            attempt(chore)

    # -- fetching --------------------------------------------------------------------------------------------

    def work(self, *, leading: bool = False) -> None:
        """Fetch all outcomes there are, send what is queued, and tell everybody concerned. Never waits.

        Does nothing when this thread is in the middle of that.

        Args:
            leading: The caller is the leader, who need not be woken.
        """
        dispatcher = self._dispatcher
        if dispatcher.lock.is_owned():
            # A signal handler or a `__del__`, in the middle of this very thread's work with the pool, which
            # goes on when it returns.
            return
        settlements: Settlements = []
        # In line what `telling` does: this is on the path of each call.
        try:
            self._telling[id(settlements)] = settlements
            dispatcher.lock.run(dispatcher.drain, settlements)
            self.settle(settlements, leading=leading)
            del self._telling[id(settlements)]
        except BaseException:
            # Ctrl-C: what has been fetched must not be forgotten, and what is half done must be looked at.
            self._settle_later(settlements)
            raise
        if self.draining and not dispatcher.ledger.live:
            self.on_empty()

    @contextlib.contextmanager
    def telling(self) -> Generator[Settlements]:
        """A list for outcomes that the block takes and tells; after an exception the thread tells them."""
        settlements: Settlements = []
        try:
            # First: the end of the pool looks whether all tasks have ended, then here.
            self._telling[id(settlements)] = settlements
            yield settlements
            del self._telling[id(settlements)]
        except BaseException:
            self._settle_later(settlements)
            raise
        if self.draining:
            # The end of the pool may have been waiting for just this.
            self.on_empty()

    def has_to_tell(self) -> bool:
        """Whether a thread may have outcomes of ended tasks that it has not told yet."""
        return bool(self._telling)

    def _settle_later(self, settlements: Settlements) -> None:
        """Have the thread settle what an interrupt or an error has kept from it, all of it."""
        again = functools.partial(self.settle, settlements)
        try:
            self.do_later(again)
        except BaseException:
            self.do_later(again)
            raise
        finally:
            # The thread ends when it has done all chores.
            self._telling.pop(id(settlements), None)
            if self.draining:
                self.on_empty()

    def settle(self, settlements: Settlements, *, leading: bool = False) -> None:
        """Tell the sinks, holding no lock. After an exception it may be done again from the first."""
        if not settlements:
            return
        if len(settlements) == 1 and settlements[0][0].sink._can_be_told_again:
            self._tell(settlements)
        else:
            with deferred_interrupts():
                self._tell(settlements)
        if not leading and self._words[FRONT]:
            # The leader sleeps, and this was not him: his task may be among them.
            self._words[FRONT] = 0
            ring_bell(self._board.front)

    def settle_surely(self, settlements: Settlements) -> None:
        """`settle`; should it fail, once more in the collector's thread."""
        try:
            self.settle(settlements)
        except BaseException:
            self._settle_later(settlements)
            raise

    def _tell(self, settlements: Settlements) -> None:
        for task, kind, data in settlements:
            if kind == NONE:
                task.sink._settle(task, PLAIN, None)
            else:
                task.sink._settle(task, kind, data)
            if kind != PART:
                task.kept = None

    def look(self) -> None:
        """Fetch if there is something to fetch, without waiting for anybody (`done()`)."""
        dispatcher = self._dispatcher
        if dispatcher.has_outcomes():
            self.work()

    # -- waiting ---------------------------------------------------------------------------------------------

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
        if (self.forked or self._dispatcher.lock.is_owned()) and not handle._is_settled():
            raise ClosedError(self.forked) if self.forked else RuntimeError(REENTERED)
        # A signal handler, in the middle of this very thread's waiting for the pool.
        inner = self._front.is_owned()
        deadline = None if timeout is None else time.monotonic() + timeout
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
                if deadline is not None and not is_done() and time.monotonic() >= deadline:
                    self.work()
                    return is_done()
        finally:
            # The lead may just have been offered to this thread, which has no use for it any more.
            if followed and self._followers and seam.is_free(self._front):
                self._hand_over()
            if inner:
                # What was fetched here may be what the outer waiting sleeps for.
                ring_bell(self._board.front)
        return True

    def _stop_leading(self) -> None:
        """Leave the lead to the next one, if this thread has it."""
        if self._front.is_owned():
            self._words[FRONT] = 0
            self._front.release()
            if self._followers:
                self._hand_over()

    def _lead(self, is_done: Callable[[], bool], wanted: int, deadline: float | None) -> bool:
        """Fetch outcomes until the wanted one is there (True), or the time is over."""
        dispatcher, words = self._dispatcher, self._words
        front = self._board.front
        patience = self._patience
        has_outcomes = dispatcher.has_outcomes
        self.work()
        while not is_done():
            few = dispatcher.ledger.live <= len(dispatcher.lanes)
            looks = patience.looks() if few else 0
            if looks:
                if self._look_for_a_while(looks):
                    patience.paid()
                    self.work(leading=True)
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
                self.work(leading=True)
            if is_done():
                words[FRONT] = 0
                return True
            wait = _NAP_SECONDS if napping else _SLICE_SECONDS
            began = time.monotonic()
            if deadline is not None:
                wait = min(wait, deadline - began)
                if wait <= 0:
                    words[FRONT] = 0
                    return False
            front.acquire(True, wait)
            words[FRONT] = 0
            while front.acquire(False):
                pass
            self.work()
            self._streaming = is_done() and (napping or time.monotonic() - began < _NAP_SECONDS / 2)
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
        lock = seam.InterruptibleLock(condition)
        lock.run_within(self._slice(deadline), self._sleep_on, condition, handle, deadline)

    def _slice(self, deadline: float | None) -> float:
        if deadline is None:
            return _SLICE_SECONDS
        return min(_SLICE_SECONDS, max(deadline - time.monotonic(), 0.0))

    def _sleep_on(self, condition: threading.Condition, handle: Waiter, deadline: float | None) -> None:
        key = object()
        try:
            self._followers[key] = handle
            # The leader leaves first and looks at the followers then: so look at the lead once more.
            if handle._is_settled() or seam.is_free(self._front):
                return
            condition.wait(self._slice(deadline))
        finally:
            self._followers.pop(key, None)

    def _hand_over(self) -> None:
        for handle in list(self._followers.values()):
            if handle._is_settled():
                continue  # it is on its way out
            condition = handle._ensure_condition()
            lock = seam.InterruptibleLock(condition)
            # Not for ever: see `mpkit.pool._handle._holding`.
            if lock.run_within(_SLICE_SECONDS, condition.notify_all) is not None:
                return
