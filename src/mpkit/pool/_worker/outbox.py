"""How a worker puts records into its outbox: outcomes from the main thread, log records from any."""

from __future__ import annotations

import threading
import time

from mpkit._platform.hints import override
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._protocol.channel import (
    LOG,
    RESULT_HEAD,
    SLEEPING,
    SLEEPS_FOR_ROOM,
    STOP,
    Barrier,
    Channel,
    ring_bell,
)
from mpkit.pool._worker.bells import Bells
from mpkit.pool._worker.fork import end_fork

#: While log records come faster than the parent handles them, each takes so much longer at most (it looks now
#: and then whether it may go on). Not for ever: what handles them may be waiting for this very task.
_LATE_SECONDS = 0.1
_LATE_SLICE_SECONDS = 0.005


class Outbox:
    """A worker's end of its outbox."""

    def __init__(self, channel: Channel, bells: Bells) -> None:
        self._channel = channel
        self._ring = channel.outbox
        self._bells = bells
        self._lock = InterruptibleLock()
        self._late: list[bytes] = []
        #: An interrupt came in the middle of a put; it is raised when the record is there.
        self.interrupted = False

    def put(self, record: bytes) -> None:
        """Add a record; waits for room."""
        lock = self._lock
        if lock.is_owned():
            # A `__del__` that logs, in the middle of a put of this very thread.
            self._late.append(record)
            return
        try:
            try:
                lock.acquire()
                if not self._ring.try_put(record):
                    self._put_when_room(record)
                while self._late:
                    self._put_when_room(self._late.pop(0))
                lock.release()
            except BaseException:
                # A signal handler of the task, say.
                lock.unwind()
                raise
        except BaseException:
            lock.unwind()
            raise

    def put_log(self, record: bytes) -> None:
        """Add a log record, from inside a task."""
        if self._bells.logs_are_late() and not self.busy_here():
            self._wait_for_log_handlers()
        self.put(RESULT_HEAD.pack(0, 0, LOG) + record)
        self._bells.ring_for_logs()
        self._catch_up()

    def _wait_for_log_handlers(self) -> None:
        deadline = CLOCK.monotonic() + _LATE_SECONDS
        while self._bells.logs_are_late() and CLOCK.monotonic() < deadline:
            time.sleep(_LATE_SLICE_SECONDS)

    def put_part(self, record: bytes) -> None:
        """Add some results of a chunk, from inside the task."""
        self.put(record)
        self._catch_up()

    def _catch_up(self) -> None:
        # The interrupt that came while a record was being put.
        if (
            self.interrupted
            and not self.busy_here()
            and threading.current_thread() is threading.main_thread()
        ):
            self.interrupted = False
            self._channel.words[STOP] = 0
            raise KeyboardInterrupt

    def busy_here(self) -> bool:
        """Whether this thread is in the middle of a put."""
        return self._lock.is_owned()

    def _put_when_room(self, record: bytes) -> None:
        if self._ring.try_put(record):
            return
        words = self._channel.words
        barrier = Barrier()
        while True:
            self._bells.ring_all()
            words[SLEEPING] = SLEEPS_FOR_ROOM
            barrier()
            if self._ring.try_put(record):
                break
            self._channel.wake.acquire(True, 0.05)
        words[SLEEPING] = 0
        # The token may have been meant for the main thread, which waits for records.
        ring_bell(self._channel.wake)


class OutboxOfFork(Outbox):
    """What a fork of the worker has: it has come back from the task, where its life is over."""

    @override
    def put(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)

    @override
    def put_part(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)
