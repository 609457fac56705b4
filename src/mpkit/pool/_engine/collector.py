"""Who fetches outcomes where no thread waits for them: the collector, a thread of the pool.

It sleeps at the back bell, and serves whatever has no thread that waits: callbacks, coroutines,
`concurrent.futures.wait`, tasks that queue for a free worker, log records, outboxes that fill. With nothing
of that kind it is not rung, and costs nothing. It never runs code of the program: callbacks and log records
go to another thread (`mpkit.pool._engine.caller`), because all tasks would wait with it for that code.

What it does to fetch, and to tell those concerned, others do as well: whoever waits for an outcome
(`mpkit.pool._engine.lead`), or asks whether it is there.

No wake-up is lost: whoever goes to sleep stores its word on the board, passes a full barrier, and looks at
the outboxes once more; a worker puts its outcome into the outbox, passes a full barrier, and looks at the
board. All sleeps are limited nevertheless while tasks are under way.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError
from mpkit.pool._engine.caller import Caller
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.reports import attempt, report
from mpkit.pool._engine.settlements import Settlements, do_nothing
from mpkit.pool._protocol.channel import (
    ALWAYS,
    AWAKE,
    BACK,
    FRONT,
    NONE,
    PART,
    PLAIN,
    WHEN_FULL,
    WHEN_LOW,
    Barrier,
    Board,
    ring_bell,
)


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


#: The longest sleep without a look while somebody waits: a net below the protocol.
_SLICE_SECONDS = 0.5


class Collector:
    """Brings outcomes to those who wait for them.

    Args:
        dispatcher: whose outboxes are emptied.
        board: the bells.
        name: what the names of the threads begin with.
        handle_log: what is done with a worker's log record; called in the caller's thread.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        board: Board,
        name: str,
        handle_log: Callable[[bytes], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._board = board
        self._name = name
        #: Called when the last task of a closed pool has ended.
        self.on_empty: Callable[[], None] = do_nothing
        self._caller = Caller(name, handle_log, self.wake, board)
        dispatcher.receiver.on_log = self._caller.handle_log
        # It sleeps with the wrong level on the board then. (Ringing takes no lock.)
        dispatcher.balancer.on_queue = self.wake
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
        elif self._board.words[BACK] or threading.current_thread() is not self._thread:
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
        elif self._board.words[BACK] != ALWAYS:
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
        dispatcher, words = self._dispatcher, self._board.words
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
        # Else for ever: while there are tasks, the supervisor wakes it now and then.
        back.acquire(True, _SLICE_SECONDS if level > WHEN_FULL else None)
        words[BACK] = AWAKE
        while back.acquire(False):
            pass
        return False

    def _level(self) -> int:
        """When the workers are to ring for the thread."""
        if self._watched or self.draining:
            return ALWAYS
        return WHEN_LOW if self._dispatcher.balancer.lows_set else WHEN_FULL

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
        if not leading and self._board.words[FRONT]:
            # The leader sleeps, and this was not him: his task may be among them.
            self._board.words[FRONT] = 0
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
