"""How a worker puts records into its outbox: outcomes in its main thread, log records in any thread."""

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

#: While log records come faster than the parent handles them, each is delayed by up to this. There is a limit
#: because a log handler in the parent may be waiting for this very task.
_LATE_SECONDS = 0.1
#: How often to check meanwhile whether the parent has caught up.
_LATE_SLICE_SECONDS = 0.005
#: How long to sleep for room in the outbox before checking again. A safety net only.
_SLICE_SECONDS = 0.05


class Outbox:
    """The worker's end of its outbox."""

    def __init__(self, channel: Channel, bells: Bells) -> None:
        self._channel = channel
        self._ring = channel.outbox
        self._bells = bells
        self._lock = InterruptibleLock()
        # Records to be added by the `put` that this thread is in the middle of.
        self._late: list[bytes] = []
        #: An interrupt has come in the middle of `put`: it is raised when the record is in the outbox.
        self.interrupted = False

    def put(self, record: bytes) -> None:
        """Add a record; waits for room."""
        lock = self._lock
        if lock.is_owned():
            # This is a `__del__` (or a signal handler) that logs, in the middle
            # of a `put` of the same thread.
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
                # An exception of a signal handler that the task has installed, say.
                lock.unwind()
                raise
        except BaseException:
            lock.unwind()
            raise

    def put_log(self, record: bytes) -> None:
        """Add a log record, in any thread. Pauses while the parent is late with handling log records."""
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
        """Add results of some items of a chunk that is still running."""
        self.put(record)
        self._catch_up()

    def _catch_up(self) -> None:
        # Raise the interrupt that came while a record was being added.
        if (
            self.interrupted
            and not self.busy_here()
            and threading.current_thread() is threading.main_thread()
        ):
            self.interrupted = False
            self._channel.words[STOP] = 0
            raise KeyboardInterrupt

    def busy_here(self) -> bool:
        """Whether this thread is in the middle of `put`."""
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
            self._channel.wake.acquire(True, _SLICE_SECONDS)
        words[SLEEPING] = 0
        # The release that ended this sleep may have been meant for the main thread, which sleeps for records.
        ring_bell(self._channel.wake)


class OutboxOfFork(Outbox):
    """The outbox in a fork of the worker. A fork that uses it has returned from the task, and is to end."""

    @override
    def put(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)

    @override
    def put_part(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)
