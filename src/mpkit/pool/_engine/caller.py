"""The caller: the pool's thread that calls code of the program in the parent (callbacks and log handlers).

Such code may take long, or wait for other tasks of the same pool. So it has a thread of its own, and the
collector's thread goes on fetching outcomes and sending tasks meanwhile. The caller makes all calls one after
the other, in the order in which they were asked for.

The thread is started when there is a first call, by the collector's thread: a signal handler or a `__del__`
may ask for a call in the middle of anything, where no thread should be started. If the system refuses a
thread, the collector's thread makes the calls from then on, so that all calls of one pool
are still made in one thread.

No call is lost, and none waits for a wake-up that does not come:

- Calls are in a `queue.SimpleQueue`. Its `put` takes no lock that a signal handler or a `__del__` might find
  taken, and its `get` sleeps until there is a call: once the thread is running, nothing else has to wake it.
- While the thread is not running, a thread that adds a call rings the collector's bell. The bell is a
  semaphore, so the ring is kept until the collector takes it.
- At the end, the request to stop is queued behind all calls. Having taken it, the thread first stores that it
  has ended, and then empties the queue for the last time. A thread that adds a call first adds it, and then
  checks whether the caller has ended; if so, it makes the call itself. At least
  one of the two sees the other.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from mpkit.pool._engine.threads import attempt, join_thread, new_thread, report
from mpkit.pool._protocol.channel import LOGS_LATE

_logger = logging.getLogger("mpkit.pool")

#: When more calls than this are waiting, workers that log have to slow down, ...
_MOST_CALLS = 10_000
#: ... until there are fewer than this.
_FEW_CALLS = 5_000
#: How long the thread pauses after a failure of its own: if that lasts (no memory), it
#: need not be reported more often.
_PAUSE_SECONDS = 0.5


class HasWords(Protocol):
    """What is used here of the pool's board."""

    words: memoryview[int]


class Caller:
    """Calls code of the program, for one pool.

    Args:
        name: what the name of the thread begins with.
        handle_log: handles a worker's log record.
        wake_collector: has the collector's thread call `serve`. It is called in signal handlers, too.
        board: tells workers that log to slow down while records come faster than they are handled. (Otherwise
            they would fill the memory.)

    Safe from: any thread, signal handlers and `__del__`, unless said otherwise.
    """

    def __init__(
        self,
        name: str,
        handle_log: Callable[[bytes], None],
        wake_collector: Callable[[], None],
        board: HasWords,
    ) -> None:
        self._name = name
        self._handle_log = handle_log
        self._wake_collector = wake_collector
        self._board = board
        self._pid = os.getpid()
        # None is the request to stop.
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # The system has refused a thread.
        self._is_refused = False
        # The thread has ended: from now on, threads make their calls themselves.
        self._ended = False
        # The threads that are just making calls: the caller's own, or others in its place.
        self._calling: set[int] = set()

    def call(self, call: Callable[[], object]) -> None:
        """Have something called, after all earlier calls. Once the thread has ended, it is called here."""
        self._calls.put(call)
        if self._ended:
            self._call_here()
        elif self._thread is None:
            self._wake_collector()

    def handle_log(self, record: bytes) -> None:
        """Have a log record handled. Unlike `call`, this never calls it here: the pool's lock is held."""
        self._calls.put(functools.partial(self._handle_log, record))
        if self._calls.qsize() > _MOST_CALLS:
            # If the calls have just been made, the next call takes the word back.
            self._board.words[LOGS_LATE] = 1
        if self._thread is None:
            self._wake_collector()

    def is_current_thread(self) -> bool:
        """Whether this thread is making a call."""
        return threading.get_ident() in self._calling

    # -- called by the collector's thread, or at the end of a pool that could not start it -------------------

    def serve(self) -> None:
        """If there are calls, start the thread; or make them here if the system refuses a thread."""
        if self._thread is None and not self._calls.empty():
            if not self._is_refused:
                self._start()
            if self._is_refused:
                self._call_here()

    def stop(self) -> None:
        """Have the thread end when all calls have been made."""
        if self._thread is None:
            self._end()
        else:
            self._calls.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread, `timeout` seconds at most; True if it has ended (or this is it)."""
        return self._thread is None or join_thread(self._thread, timeout)

    def _start(self) -> None:
        thread = new_thread(self._run, f"{self._name}-caller")
        try:
            thread.start()
        except Exception as error:  # noqa: BLE001  whatever it is, the collector's thread has to go on
            self._is_refused = True
            problem = "%s: the system refuses a thread for callbacks (%s); while one runs, no task is sent"
            self.call(functools.partial(_logger.warning, problem, self._name, error))
        else:
            self._thread = thread

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        me = threading.get_ident()
        self._calling.add(me)
        over = False
        while not over:
            try:
                over = self._take_turn()
            except BaseException:  # noqa: BLE001  whatever it is, the pool depends on this thread
                report()
                time.sleep(_PAUSE_SECONDS)
        self._end()
        # The system may give its number to another thread.
        self._calling.discard(me)

    def _take_turn(self) -> bool:
        """Make the next call; True if the thread is to end."""
        # A function of its own, so that no variable keeps a call alive while waiting for the next one.
        call = self._calls.get()
        if call is not None:
            attempt(call)
        self._check_late()
        return call is None or self._is_forked()

    def _check_late(self) -> None:
        words = self._board.words
        if words[LOGS_LATE] and self._calls.qsize() < _FEW_CALLS and not self._is_forked():
            words[LOGS_LATE] = 0

    def _is_forked(self) -> bool:
        """Whether this is a child process that a callback has forked: the calls belong to the parent."""
        return os.getpid() != self._pid

    def _end(self) -> None:
        if not self._is_forked():
            # In this order: a thread that adds a call either sees the flag, or its call is seen here.
            self._ended = True
            self._call_here()

    def _call_here(self) -> None:
        """Make all waiting calls, in this thread."""
        me = threading.get_ident()
        is_inner = me in self._calling
        self._calling.add(me)
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                # Perhaps another thread has made the rest of them.
                break
            if call is not None:
                attempt(call)
            self._check_late()
        if not is_inner:
            self._calling.discard(me)
