"""The collector: the pool's thread that fetches outcomes while no thread of the program waits for them.

It sleeps at the back bell, and does what no waiting thread does: it serves callbacks, coroutines and
`concurrent.futures.wait`, sends queued tasks, takes log records, and empties outboxes that fill up. Unless
there is something of that kind, workers do not ring for it, and it costs nothing. It never runs code of the
program: all tasks would have to wait for that code. So callbacks and log records go to another thread
(`mpkit.pool._engine.caller`).

Other threads also fetch outcomes and tell the sinks, with the same methods: those that wait for an outcome
(`mpkit.pool._engine.lead`), or ask whether it is there.

No wake-up is lost: a thread that goes to sleep stores its word on the board, passes a full barrier, and
checks the outboxes once more; a worker puts its outcome into the outbox, passes a full barrier, and checks
the board. As a safety net, sleeps are limited anyway: while tasks are under way, the supervisor wakes this
thread once a second.
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
from mpkit.pool._engine.settlements import Settlements, do_nothing
from mpkit.pool._engine.threads import attempt, join_thread, new_thread, report
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
    """What a thread waits for: a handle, or the sink of a lazy map."""

    @property
    def task_id(self) -> int:
        """The task that is waited for, or `SOON`; 0: several tasks (a whole map)."""
        ...

    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for any more."""
        ...

    def _ensure_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads; notified when the wait may be over."""
        ...


#: The longest sleep while something is waited for. A safety net only: the protocol loses no wake-up.
_SLICE_SECONDS = 0.5


class Collector:
    """Fetches outcomes and tells the sinks; and the thread that does so while no other thread does.

    Args:
        dispatcher: the owner of the outboxes.
        board: the bells, and the words that workers check before they ring.
        name: what the names of the threads begin with.
        handle_log: handles a worker's log record; called in the caller's thread.
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
        # When tasks are queued, the level on the board (see `_level`) may be too low: this has the thread
        # store a new one. (Ringing takes no lock.)
        dispatcher.balancer.on_queue = self.wake
        # Handles that are awaited in ways that fetch nothing: callbacks, coroutines, `concurrent.futures`.
        self._watched: set[Waiter] = set()
        # Other work of the pool for this thread. It must never wait.
        self._chores: deque[Callable[[], object]] = deque()
        # Lists of outcomes that some thread takes, or has taken, and has not told yet; by the id of the list.
        self._telling: dict[int, Settlements] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False
        #: The pool is closing: the last outcomes have to be fetched even if no thread waits for them.
        self.draining = False
        # The thread has ended: from now on, threads do their chores themselves.
        self._ended = False
        #: In a fork of the pool's process: the error message for threads that would wait in vain.
        self.forked: str = ""

    # -- the thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the collector's thread.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._thread = new_thread(self._run, f"{self._name}-collector")
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def stop(self) -> None:
        """Tell the collector's thread to end when all chores are done, and the caller's after all calls."""
        self._stopping = True
        self.wake()

    def join(self, timeout: float | None) -> bool:
        """Wait for both threads for `timeout` seconds; True if they have ended (or this is one of them)."""
        thread = self._thread
        deadline = deadline_of(timeout)
        if thread is None:
            # It could not be started.
            self._end()
        elif not join_thread(thread, timeout):
            return False
        return self._caller.join(remaining(deadline))

    def is_current_thread(self) -> bool:
        """Whether this is the collector's thread, or one that is just making the calls of the caller."""
        return self._caller.is_current_thread() or threading.current_thread() is self._thread

    def wake(self) -> None:
        """Wake the collector's thread, so that it fetches outcomes and sends queued tasks. Takes no lock."""
        ring_bell(self._board.back)

    def call_back(self, call: Callable[[], object]) -> None:
        """Have the caller's thread call code of the program, after all earlier calls."""
        self._caller.call(call)

    def log(self, log: Callable[..., object], text: str, *arguments: object) -> None:
        """Have a message of the pool logged in the caller's thread: log handlers of the program may hang, and
        the pool depends on its other threads.
        """
        self.call_back(functools.partial(log, text, *arguments))

    def do_later(self, chore: Callable[[], object]) -> None:
        """Have the collector's thread do some work of the pool, which must not wait for anything."""
        self._chores.append(chore)
        if self._ended:
            # The thread may have checked for chores for the last time before this one was added.
            self._do_chores()
        elif self._board.words[BACK] or threading.current_thread() is not self._thread:
            self.wake()

    def watch(self, handle: Waiter) -> None:
        """Have the outcome of a handle fetched, although no thread may wait for it in `Lead.wait_for`.

        Raises:
            ClosedError: This process is a fork of the pool's.
        """
        if self.forked:
            raise ClosedError(self.forked)
        self._watched.add(handle)
        # Checked after adding it, because another thread first settles a handle and then calls `unwatch`.
        if handle._is_settled():
            self._watched.discard(handle)
        elif self._board.words[BACK] != ALWAYS:
            # The thread is awake, or workers do not ring for every outcome yet: have it store a new level.
            self.wake()

    def unwatch(self, handle: Waiter) -> None:
        """A handle is settled. It may have been watched or not."""
        self._watched.discard(handle)

    def _run(self) -> None:
        back = self._board.back
        barrier = Barrier()
        over = False
        while not over:
            try:
                over = self._take_turn(back, barrier)
            except BaseException:  # noqa: BLE001  whatever it is, the pool depends on this thread
                report()
                # Pause: if the failure lasts (no memory), it need not be reported more often.
                back.acquire(True, _SLICE_SECONDS)
        self._end()

    def _end(self) -> None:
        # In this order: a thread that adds a chore either sees the flag, or its chore is seen here.
        self._ended = True
        self._do_chores()
        # After the chores, because they may ask for calls.
        self._caller.stop()

    def _take_turn(self, back: Semaphore, barrier: Barrier) -> bool:
        """Fetch and tell what there is, then sleep; True if the thread is to end."""
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
        # Otherwise without a limit: while there are tasks, the supervisor wakes this thread once a second.
        back.acquire(True, _SLICE_SECONDS if level > WHEN_FULL else None)
        words[BACK] = AWAKE
        while back.acquire(False):
            pass
        return False

    def _level(self) -> int:
        """When workers are to ring for this thread: the word `BACK` on the board."""
        if self._watched or self.draining:
            return ALWAYS
        return WHEN_LOW if self._dispatcher.balancer.lows_set else WHEN_FULL

    def _do_chores(self) -> None:
        chores = self._chores
        while chores:
            try:
                chore = chores.popleft()
            except IndexError:
                # After the end of the thread, several threads may do chores at once.
                return
            attempt(chore)

    # -- fetching --------------------------------------------------------------------------------------------

    def work(self, *, leading: bool = False) -> None:
        """Fetch all outcomes there are, send queued tasks, and tell the sinks. Waits for nothing but locks.

        Does nothing if this is a signal handler or a `__del__` in the middle of this
        thread's work with the pool.

        Args:
            leading: This thread is the leader, so the leader need not be woken.
        """
        dispatcher = self._dispatcher
        if dispatcher.lock.is_owned():
            # The interrupted work goes on when this returns.
            return
        settlements: Settlements = []
        # The same as in `telling`, but in line, because this is on the path of each call.
        try:
            self._telling[id(settlements)] = settlements
            dispatcher.lock.run(dispatcher.drain, settlements)
            self.settle(settlements, leading=leading)
            del self._telling[id(settlements)]
        except BaseException:
            # Ctrl-C, say: outcomes that have been fetched must not get lost, and the next `drain`, in that
            # thread, repairs what is half done.
            self._settle_later(settlements)
            raise
        if self.draining and not dispatcher.ledger.live:
            self.on_empty()

    @contextlib.contextmanager
    def telling(self) -> Generator[Settlements]:
        """A list for outcomes that the block takes and tells; after an exception the collector tells them."""
        settlements: Settlements = []
        try:
            # Before anything is taken: the end of the pool checks whether all tasks have ended, and then
            # whether there is anything left to tell (`has_to_tell`).
            self._telling[id(settlements)] = settlements
            yield settlements
            del self._telling[id(settlements)]
        except BaseException:
            self._settle_later(settlements)
            raise
        if self.draining and not self._dispatcher.ledger.live:
            # The end of the pool may be waiting for this.
            self.on_empty()

    @contextlib.contextmanager
    def under_lock(self) -> Generator[Settlements]:
        """The pool's lock is held in the block; the outcomes that the block takes are told after that.

        For the pool's own threads: in the main thread, an interrupt could leave the lock acquired.
        """
        with self.telling() as settlements:
            with self._dispatcher.lock:
                yield settlements
            self.settle(settlements)

    def has_to_tell(self) -> bool:
        """Whether a thread may have outcomes of ended tasks that it has not told yet."""
        return bool(self._telling)

    def _settle_later(self, settlements: Settlements) -> None:
        """After an exception: have the collector's thread settle all of these outcomes (again)."""
        again = functools.partial(self.settle, settlements)
        try:
            self.do_later(again)
        except BaseException:
            self.do_later(again)
            raise
        finally:
            # From here on it is a chore, and the collector's thread does not end before it is done.
            self._telling.pop(id(settlements), None)
            if self.draining:
                self.on_empty()

    def settle(self, settlements: Settlements, *, leading: bool = False) -> None:
        """Tell the sinks (holding no lock). After an exception it may be called again with the same list."""
        if not settlements:
            return
        if len(settlements) == 1 and settlements[0][0].sink._can_be_told_again:
            self._tell(settlements)
        else:
            with deferred_interrupts():
                self._tell(settlements)
        if not leading and self._board.words[FRONT]:
            # Another thread leads, and is asleep: wake it, because it may wait for one of these outcomes.
            self._board.words[FRONT] = 0
            ring_bell(self._board.front)

    def settle_surely(self, settlements: Settlements) -> None:
        """The same as `settle`; if it fails, it is done again in the collector's thread."""
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
        """Fetch and tell outcomes if there are any (for `done()`)."""
        dispatcher = self._dispatcher
        if dispatcher.has_outcomes():
            self.work()
