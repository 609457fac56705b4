"""Tasks are submitted and cancelled: by any thread, a signal handler or a `__del__`.

These may come in the middle of this very thread's work with the pool; then another thread does it, a little
later. And an exception (Ctrl-C, or of another handler) may come between any two lines: a `submit` that fails
has left nothing taken, a `cancel` is done all the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER
from mpkit.errors import MpkitError, TaskCancelled
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.ledger import CANCELLED, UNSENT, Sink, Task
from mpkit.pool._engine.options import TaskOptions
from mpkit.pool._engine.packing import packed_task
from mpkit.pool._engine.room import Room
from mpkit.pool._engine.settlements import cancelled_error
from mpkit.pool._engine.states import RUNNING, Status
from mpkit.pool._engine.supervisor import Supervisor
from mpkit.pool._protocol.channel import RAISED


class Submission:
    """Takes the tasks of one pool, and cancels them.

    Args:
        name: of the pool.
        status: whether it takes tasks.
        numbers: of new tasks.
        dispatcher: sends them.
        collector: tells what becomes of them.
        supervisor: stops those that must not go on.
        room: where those wait for whose task there is no room yet (`max_pending`); None: no limit.
    """

    def __init__(
        self,
        name: str,
        status: Status,
        numbers: Iterator[int],
        dispatcher: Dispatcher,
        collector: Collector,
        supervisor: Supervisor,
        room: Room | None,
    ) -> None:
        self._name = name
        self._status = status
        self._numbers = numbers
        self._dispatcher = dispatcher
        self._collector = collector
        self._supervisor = supervisor
        self._room = room

    # -- submitting ------------------------------------------------------------------------------------------

    def submit(
        self,
        function: Function,
        blob: bytes,
        flags: int,
        arguments: Any,
        sink: Sink,
        options: TaskOptions,
    ) -> Task:
        """Pickle the arguments and send or queue a task: see `packed_task`.

        Raises:
            SerializationError: the arguments cannot be pickled.
            ClosedError: the pool is closed.
            InitializerFailed, PoolBroken: the pool is broken.
        """
        task = packed_task(self._numbers, function, blob, flags, arguments, sink, options)
        sink._sent(task)
        dispatcher = self._dispatcher
        lock = dispatcher.lock
        if lock.is_owned():
            # A signal handler or a `__del__`, in the middle of this very thread's work with the pool.
            self._status.check_usable()
            self._collector.do_later(functools.partial(self._submit_later, task))
            return task
        try:
            try:
                lock.acquire()
                if self._status.state is not RUNNING:
                    self._status.refuse()
                room = self._room
                # Callbacks do not wait: those of all other tasks would wait with them.
                if room is not None and room.is_short() and not self._collector.is_current_thread():
                    room.wait(task, self._status.check_usable)
                lane = dispatcher.submit(task)
                lock.release()
                if lane is not None:
                    lane.nudge()
            except BaseException as error:
                self._end_submit(task, error)
                raise
        except BaseException as error:
            # See `InterruptibleLock`.
            self._end_submit(task, error)
            raise
        if options.timeout is not None or self._supervisor.looks_at == NEVER:
            self._look_after_limit(options.timeout)
        if lane is None and dispatcher.is_look_due():
            self._collector.work()
        return task

    def _end_submit(self, task: Task, error: BaseException) -> None:
        """A `submit` that fails leaves nothing taken; may be done again."""
        try:
            if self._room is not None:
                self._room.leave(task)
        finally:
            self._dispatcher.lock.unwind()
        if not isinstance(error, MpkitError):
            # Ctrl-C, perhaps between a task and its count, or before its worker knew.
            self._dispatcher.note_interruption()
            self._collector.wake()

    def _submit_later(self, task: Task) -> None:
        """Submit a task of a signal handler or a `__del__`, in the collector's thread."""
        if self._dispatcher.lock.run(self._submit_if_running, task):
            self._look_after_limit(task.timeout)
            self._collector.work()
        else:
            text = f"{self._name} was {self._status.state} before the task was sent"
            self._collector.settle([(task, RAISED, TaskCancelled(text))])

    def _submit_if_running(self, task: Task) -> bool:
        if task.ending:
            # Cancelled before it was sent.
            return True
        if self._status.state is not RUNNING:
            return False
        lane = self._dispatcher.submit(task)
        if lane is not None:
            lane.wake()
        return True

    def _look_after_limit(self, timeout: float | None) -> None:
        """Have the supervisor know of a new task and its time limit."""
        looks_at = self._supervisor.looks_at
        if looks_at == NEVER or (timeout is not None and looks_at > CLOCK.monotonic() + timeout):
            self._supervisor.poke()

    # -- cancelling ------------------------------------------------------------------------------------------

    def cancel(self, task: Task, *, even_begun: bool = True) -> None:
        """Cancel a task at whatever moment of its life; with `even_begun` false, unless it has begun.

        In the middle of this thread's work with the pool (a signal handler, a `__del__`) it happens a little
        later.
        """
        self._status.check_process()
        dispatcher = self._dispatcher
        if dispatcher.lock.is_owned():
            self.cancel_later([task], even_begun=even_begun)
            return
        with self._collector.telling() as settlements, deferred_interrupts():
            try:
                never_began = dispatcher.lock.run(dispatcher.cancel, task, settlements, even_begun=even_begun)
                if task.ending == CANCELLED:
                    settlements.append((task, RAISED, cancelled_error(task)))
                self._collector.settle(settlements)
                if not never_began and even_begun:
                    # It runs: see `Limits`.
                    self._supervisor.poke()
            except BaseException:
                # The handler of another signal than SIGINT.
                dispatcher.note_interruption()
                self.cancel_later([task], even_begun=even_begun)
                raise

    def cancel_later(self, tasks: list[Task], *, even_begun: bool = True) -> None:
        """Cancel tasks in the supervisor's thread; takes no lock, so a `__del__` may call it."""
        for task in tasks:
            if task.state == UNSENT:
                # Submitted by this very handler, a moment ago: see `_submit_later`.
                task.ending = CANCELLED

        def cancel() -> None:
            for task in tasks:
                self.cancel(task, even_begun=even_begun)

        self._supervisor.request(cancel)
