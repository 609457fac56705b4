"""The thread that runs the program's own code in the parent: callbacks, and what handles log records.

Such code may take long, or wait for other tasks of the same pool. So it has a thread of its own, the
*caller*: the collector's goes on fetching outcomes and sending tasks meanwhile. The caller makes all calls
one after the other, in the order in which they were asked for.

The thread is started with the first call, by the collector's thread: whoever asks for a call may be a signal
handler or a `__del__` in the middle of anything, where no thread should be started. If the system has none
left, the collector's thread makes the calls from then on: all those of one pool are made in one thread.

No call is forgotten, and none waits for a ring that is lost:

- calls are in a `queue.SimpleQueue`, whose `put` takes no lock that a signal handler or a `__del__` might
  find taken, and whose `get` sleeps until there is one: a thread that runs needs no ring;
- while none runs, whoever has added a call rings the collector's bell, which keeps the ring until it is
  heard. Whoever sees a thread, and so does not ring, is served by it;
- at the end, the request to stop stands behind all calls. Then the thread stores that it has ended, and looks
  into the queue for the last time; whoever adds a call looks afterwards whether it has ended, and if so makes
  the call itself. Of the two, one at least sees the other.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Protocol

from mpkit.pool._engine.reports import attempt, report
from mpkit.pool._protocol.channel import LOGS_LATE

_logger = logging.getLogger("mpkit.pool")

#: While more calls than the former wait, workers that log slow down, until there are fewer than the latter.
_MOST_CALLS = 10_000
_FEW_CALLS = 5_000
#: How long the thread pauses when it has failed itself: should that be lasting (no memory), once in a while
#: is often enough.
_PAUSE_SECONDS = 0.5


class HasWords(Protocol):
    """The pool's board, as far as it is used here."""

    words: memoryview[int]


class Caller:
    """Makes the calls of one pool.

    Args:
        name: of the thread.
        handle_log: what is done with a worker's log record.
        wake_collector: has the collector's thread call `serve`. It may be called at any line.
        board: where workers see whether those that log have to slow down, because records come faster than
            they are handled: the memory would be full of them in the end.

    Safe from: any thread, signal handlers and `__del__`, where nothing else is said.
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
        #: None: stop.
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_refused = False
        # Who wants something called calls it.
        self._ended = False
        #: The threads that are just making calls: its own, or one that stands in for it.
        self._calling: set[int] = set()

    def call(self, call: Callable[[], object]) -> None:
        """Have something called, after all that was asked for before."""
        self._calls.put(call)
        if self._ended:
            self._call_here()
        elif self._thread is None:
            self._wake_collector()

    def handle_log(self, record: bytes) -> None:
        """Have a log record handled. Unlike `call` it never calls anything: it comes under a lock."""
        self._calls.put(functools.partial(self._handle_log, record))
        if self._calls.qsize() > _MOST_CALLS:
            # Should they have been made just now, the next one finds out.
            self._board.words[LOGS_LATE] = 1
        if self._thread is None:
            self._wake_collector()

    def is_current_thread(self) -> bool:
        """Whether this thread is making a call."""
        return threading.get_ident() in self._calling

    # -- of the collector's thread, or of whoever ends a pool that has none ----------------------------------

    def serve(self) -> None:
        """See to it that the calls are made."""
        if self._thread is None and not self._calls.empty():
            if not self._is_refused:
                self._start()
            if self._is_refused:
                self._call_here()

    def stop(self) -> None:
        """Have it end when all calls there are have been made."""
        if self._thread is None:
            self._end()
        else:
            self._calls.put(None)

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread; True when it has ended (or this is it)."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _start(self) -> None:
        # Daemon: the interpreter joins other threads before any exit handler of ours could stop this one. The
        # pool's end joins it.
        thread = threading.Thread(target=self._run, name=f"{self._name}-caller", daemon=True)
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
            except BaseException:  # noqa: BLE001  whatever it is, everybody depends on this thread
                report()
                time.sleep(_PAUSE_SECONDS)
        self._end()
        # Its number may soon be another thread's.
        self._calling.discard(me)

    def _take_turn(self) -> bool:
        """Make the next call; True when all is over."""
        # In a function of its own: a call that has been made must not live until there is another one.
        call = self._calls.get()
        if call is not None:
            attempt(call)
        self._look_whether_late()
        return call is None or self._is_copy()

    def _look_whether_late(self) -> None:
        words = self._board.words
        if words[LOGS_LATE] and self._calls.qsize() < _FEW_CALLS and not self._is_copy():
            words[LOGS_LATE] = 0

    def _is_copy(self) -> bool:
        """Whether this is a child that a callback has forked: the calls are the parent's."""
        return os.getpid() != self._pid

    def _end(self) -> None:
        if not self._is_copy():
            # In this order: whoever adds a call either sees this, or is seen here.
            self._ended = True
            self._call_here()

    def _call_here(self) -> None:
        """Make the calls there are, in this thread."""
        me = threading.get_ident()
        is_inner = me in self._calling
        self._calling.add(me)
        for call in _taken_from(self._calls):
            if call is not None:
                attempt(call)
            self._look_whether_late()
        if not is_inner:
            self._calling.discard(me)


def _taken_from(
    calls: SimpleQueue[Callable[[], object] | None],
) -> Iterator[Callable[[], object] | None]:
    """What is in a queue, taken out one by one; several threads may do that."""
    while True:
        try:
            yield calls.get_nowait()
        except Empty:
            return
