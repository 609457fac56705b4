"""Submitting and cancelling tasks: by any thread, in a signal handler or in a `__del__`.

A signal handler or a `__del__` may come in the middle of the same thread's work with the pool. What it asks
for is then done by another thread, a little later. And an exception (Ctrl-C, or one of another signal's
handler) may come between any two lines: a `submit` that fails leaves no lock and no place in a line taken,
and a `cancel` that fails is done nevertheless.
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
    """Accepts and cancels the tasks of one pool.

    Args:
        status: says whether the pool accepts tasks.
        numbers: the numbers of new tasks.
        dispatcher: sends tasks.
        collector: tells the sinks of tasks that have ended.
        supervisor: stops running tasks.
        room: where threads wait while there is no room for more tasks (`max_pending`); None: no limit.
    """

    def __init__(
        self,
        status: Status,
        numbers: Iterator[int],
        dispatcher: Dispatcher,
        collector: Collector,
        supervisor: Supervisor,
        room: Room | None,
    ) -> None:
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
            SharedMemoryExhausted: there is no room for big ones.
            ClosedError: the pool is closed, or this process is a fork of the pool's.
            InitializerFailed, PoolBroken: the pool is broken.

        Blocking: only with `max_pending`, while there is no room.
        """
        task = packed_task(self._numbers, function, blob, flags, arguments, sink, options)
        sink._sent(task)
        dispatcher = self._dispatcher
        lock = dispatcher.lock
        if lock.is_owned():
            # This is a signal handler or a `__del__` in the middle of this thread's own work with the pool.
            self._status.check_usable()
            self._collector.do_later(functools.partial(self._submit_later, task))
            return task
        try:
            try:
                lock.acquire()
                if self._status.state is not RUNNING:
                    self._status.refuse()
                room = self._room
                # A callback does not wait for room: the callbacks of all other tasks would have to wait, too.
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
            # Again, in case an exception came in the handler above: see `InterruptibleLock`.
            self._end_submit(task, error)
            raise
        if options.timeout is not None or self._supervisor.looks_at == NEVER:
            self._look_after_limit(options.timeout)
        if lane is None and dispatcher.is_look_due():
            self._collector.work()
        return task

    def _end_submit(self, task: Task, error: BaseException) -> None:
        """Release what a `submit` that fails has taken; may be called again."""
        try:
            if self._room is not None:
                self._room.leave(task)
        finally:
            self._dispatcher.lock.unwind()
        if not isinstance(error, MpkitError):
            # Ctrl-C, say: perhaps before the task was counted, or before its worker was woken.
            self._dispatcher.note_interruption()
            self._collector.wake()

    def _submit_later(self, task: Task) -> None:
        """Submit a task for a signal handler or a `__del__` (in the collector's thread)."""
        if self._dispatcher.lock.run(self._submit_if_running, task):
            self._look_after_limit(task.timeout)
            self._collector.work()
        else:
            text = f"{self._status.name} was {self._status.state} before the task was sent"
            self._collector.settle([(task, RAISED, TaskCancelled(text))])

    def _submit_if_running(self, task: Task) -> bool:
        """Send or queue a task; False if the pool accepts none any more (holding the dispatcher's lock)."""
        if task.ending:
            # It has been cancelled meanwhile.
            return True
        if self._status.state is not RUNNING:
            return False
        lane = self._dispatcher.submit(task)
        if lane is not None:
            lane.wake()
        return True

    def _look_after_limit(self, timeout: float | None) -> None:
        """Poke the supervisor if it would next look at running tasks too late for a new task."""
        looks_at = self._supervisor.looks_at
        if looks_at == NEVER or (timeout is not None and looks_at > CLOCK.monotonic() + timeout):
            self._supervisor.poke()

    # -- cancelling ------------------------------------------------------------------------------------------

    def cancel(self, task: Task, *, even_begun: bool = True) -> None:
        """Cancel a task in whatever state it is; with `even_begun` false, unless it has begun.

        If this is a signal handler or a `__del__` in the middle of this thread's work with the pool, the task
        is cancelled a little later.

        Raises:
            ClosedError: this process is a fork of the pool's.
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
                    # It is running: have the supervisor stop it (see `Limits`).
                    self._supervisor.poke()
            except BaseException:
                # The handler of another signal than SIGINT has raised.
                dispatcher.note_interruption()
                self.cancel_later([task], even_begun=even_begun)
                raise

    def cancel_later(self, tasks: list[Task], *, even_begun: bool = True) -> None:
        """Have tasks cancelled in the supervisor's thread. Takes no lock, so a `__del__` may call it."""
        for task in tasks:
            if task.state == UNSENT:
                # The same signal handler has just submitted it, and it has not been sent: see
                # `_submit_later`.
                task.ending = CANCELLED

        def cancel() -> None:
            for task in tasks:
                self.cancel(task, even_begun=even_begun)

        self._supervisor.request(cancel)
