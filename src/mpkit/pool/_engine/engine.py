"""One pool behind its facade: puts the parts together, takes tasks, and decides what the end means.

The facade (`TaskPool`) holds the engine; the threads hold the engine and never the facade, so that a pool
that is just dropped is noticed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
import time
import weakref
from typing import Any

from mpkit._platform.processes import families
from mpkit._platform.signals.interrupts import deferred_interrupts, without_interrupts
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.forks import in_forked_children
from mpkit.errors import ClosedError, MpkitError, PoolBroken, TaskCancelled
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.crew import Crew, exit_code
from mpkit.pool._engine.deaths import Deaths
from mpkit.pool._engine.dispatcher import Dispatcher, Settlements, cancelled_error
from mpkit.pool._engine.function_table import FunctionTable
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.initializer import packed_initializer
from mpkit.pool._engine.insight import Insight
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.lead import REENTERED, Lead
from mpkit.pool._engine.leavers import Leavers
from mpkit.pool._engine.ledger import CANCELLED, POOL_BROKEN, UNSENT, Sink, Task
from mpkit.pool._engine.limits import Limits
from mpkit.pool._engine.options import PoolOptions, TaskOptions
from mpkit.pool._engine.packing import packed_task
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.progress import Bars
from mpkit.pool._engine.reports import attempt, call_aside
from mpkit.pool._engine.room import Room
from mpkit.pool._engine.states import BROKEN, CLOSED, RUNNING, TERMINATED
from mpkit.pool._engine.supervisor import Supervisor
from mpkit.pool._protocol import logs
from mpkit.pool._protocol.channel import RAISED, Board
from mpkit.pool._worker.worker import Initializer

_logger = logging.getLogger("mpkit.pool")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Everything of a pool but its public face."""

    def __init__(self, options: PoolOptions) -> None:
        """Start everything. The caller keeps interrupts away meanwhile (`deferred_interrupts`)."""
        self.options = options
        self.pid: int = os.getpid()
        self.state: str = RUNNING
        self.dropped = False
        self._why_broken: MpkitError | None = None
        self._over = threading.Event()
        #: Until when the end waits for threads that have outcomes to tell; it does not wait yet.
        self.told_by: float = NEVER
        # Pickled before anything is created: what cannot be pickled leaves nothing behind.
        initializer = packed_initializer(options)
        self.board: Board = Board.create(options.name)
        # Else multiprocessing would wait at exit for workers that wait for tasks.
        self._forget_exit_hook = seam.at_exit_before_children_joined(
            functools.partial(_end_at_exit, weakref.ref(self))
        )
        try:
            self._assemble(initializer)
            try:
                for lane in self.crew.start_all(options.processes):
                    self.supervisor.add(lane)
                with without_interrupts():
                    self.supervisor.start()
                _engines.add(self)
            except BaseException:
                self._undo_start()
                raise
        except BaseException:
            self._forget_exit_hook()
            self.board.close()
            raise

    def _assemble(self, initializer: bytes | Initializer | None) -> None:
        """Make the parts, and tell each of those that it needs."""
        options, board, name = self.options, self.board, f"mpkit-{self.options.name}"
        self._numbers = itertools.count(1)
        self.functions: FunctionTable = FunctionTable()
        self.bars: Bars = Bars()
        # Tasks on their way.
        self.dispatcher: Dispatcher = Dispatcher()
        most = options.max_pending
        self.room: Room | None = None if most is None else Room(self.dispatcher, most)
        self.collector: Collector = Collector(self.dispatcher, board, name, logs.handle)
        self.lead: Lead = Lead(self.collector, self.dispatcher, board)
        # The workers, and what goes wrong with them.
        self.crew: Crew = Crew(options, self.dispatcher, board, initializer)
        self.supervisor: Supervisor = Supervisor(self, name)
        self.dispatcher.on_worker = self.collector.on_empty = self.supervisor.poke
        self.programs: Programs = Programs(options.grace_period, self.supervisor.watch)
        self.limits: Limits = Limits(options, self.dispatcher, self.collector, self.programs)
        self.leavers: Leavers = Leavers(
            options, board, self.dispatcher, self.collector, self.crew, self.programs
        )
        self.deaths: Deaths = Deaths(
            options, self.dispatcher, self.collector, self.crew, self.programs, self._numbers
        )
        self.insight: Insight = Insight(self.dispatcher, self.collector, self.crew)

    def _undo_start(self) -> None:
        if not self.supervisor.discard():
            # The handler of a signal has raised an exception at the end of all, just when its thread began.
            self.terminate()
            self.join(None)
            return
        for lane in list(self.dispatcher.lanes.values()):
            if lane.process is not None:
                lane.process.kill()
                lane.process.join()
            self.crew.dispose(lane)

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
        dispatcher = self.dispatcher
        lock = dispatcher.lock
        if lock.is_owned():
            # A signal handler or a `__del__`, in the middle of this very thread's work with the pool.
            self.check_usable()
            self.collector.do_later(functools.partial(self._submit_later, task))
            return task
        try:
            try:
                lock.acquire()
                if self.state is not RUNNING:
                    self._refuse()
                room = self.room
                # Callbacks do not wait: those of all other tasks would wait with them.
                if room is not None and room.is_short() and not self.collector.is_current_thread():
                    room.wait(task, self.check_usable)
                lane = dispatcher.submit(task)
                lock.release()
                if lane is not None:
                    dispatcher.nudge(lane)
            except BaseException as error:
                self._end_submit(task, error)
                raise
        except BaseException as error:
            # See `InterruptibleLock`.
            self._end_submit(task, error)
            raise
        if options.timeout is not None or self.supervisor.looks_at == NEVER:
            self._look_after_limit(options.timeout)
        if lane is None and dispatcher.is_look_due():
            self.collector.work()
        return task

    def _end_submit(self, task: Task, error: BaseException) -> None:
        """A `submit` that fails leaves nothing taken; may be done again."""
        try:
            if self.room is not None:
                self.room.leave(task)
        finally:
            self.dispatcher.lock.unwind()
        if not isinstance(error, MpkitError):
            # Ctrl-C, perhaps between a task and its count, or before its worker knew.
            self.dispatcher.note_interruption()
            self.collector.wake()

    def _submit_later(self, task: Task) -> None:
        """Submit a task of a signal handler or a `__del__`, in the collector's thread."""
        if self.dispatcher.lock.run(self._submit_if_running, task):
            self._look_after_limit(task.timeout)
            self.collector.work()
        else:
            text = f"{self.options.name} was {self.state} before the task was sent"
            self.collector.settle([(task, RAISED, TaskCancelled(text))])

    def _submit_if_running(self, task: Task) -> bool:
        if task.ending:
            # Cancelled before it was sent.
            return True
        if self.state is not RUNNING:
            return False
        lane = self.dispatcher.submit(task)
        if lane is not None:
            self.dispatcher.wake(lane)
        return True

    def _look_after_limit(self, timeout: float | None) -> None:
        """Have the supervisor know of a new task and its time limit."""
        looks_at = self.supervisor.looks_at
        if looks_at == NEVER or (timeout is not None and looks_at > time.monotonic() + timeout):
            self.supervisor.poke()

    def _refuse(self) -> None:
        if self.pid != os.getpid():
            raise ClosedError(self.forked_message())
        if self._why_broken is not None:
            raise _copy_of(self._why_broken)
        raise ClosedError(f"{self.options.name} is {self.state}; create a new pool for more tasks")

    def forked_message(self) -> str:
        """What to tell a fork of the process that this pool belongs to."""
        return _FORKED.format(self.options.name)

    def check_usable(self) -> None:
        """Raise what `submit` would raise."""
        if self.state is not RUNNING or self.pid != os.getpid():
            self._refuse()

    # -- cancelling ------------------------------------------------------------------------------------------

    def cancel(self, task: Task, *, even_begun: bool = True) -> None:
        """Cancel a task at whatever moment of its life; with `even_begun` false, unless it has begun.

        In the middle of this thread's work with the pool (a signal handler, a `__del__`) it happens a little
        later.
        """
        if self.pid != os.getpid():
            raise ClosedError(self.forked_message())
        dispatcher = self.dispatcher
        if dispatcher.lock.is_owned():
            self.cancel_later([task], even_begun=even_begun)
            return
        with self.collector.telling() as settlements, deferred_interrupts():
            try:
                never_began = dispatcher.lock.run(dispatcher.cancel, task, settlements, even_begun=even_begun)
                if task.ending == CANCELLED:
                    settlements.append((task, RAISED, cancelled_error(task)))
                self.collector.settle(settlements)
                if not never_began and even_begun:
                    # It runs: see `Limits`.
                    self.supervisor.poke()
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

        self.supervisor.request(cancel)

    def running_on(self, task: Task) -> int | None:
        """The pid of the worker that runs a task at this moment."""
        lane = self.dispatcher.lanes.get(task.worker)
        return lane.pid if lane is not None and lane.running() == task.number else None

    # -- workers (in the supervisor's thread: see `Supervised`) ----------------------------------------------

    def begun(self) -> None:
        """The first act of that thread: the caller need not wait for a second thread to start."""
        try:
            self.collector.start()
        except Exception as error:  # noqa: BLE001  whatever it is, this thread has to go on
            broken = PoolBroken(f"the system refuses {self.options.name} a thread: {error}")
            broken.__cause__ = error
            self.break_down(broken)

    def bury(self, lane: Lane) -> None:
        """A worker is dead."""
        broken = self.deaths.bury(lane)
        if broken is not None and self.state in (RUNNING, CLOSED):
            self.break_down(broken)

    def look_after_crew(self, now: float) -> float:
        """Replace who is missing, send home who is not needed; when to look again."""
        self.deaths.remains.look_after()
        if self.dropped and self.state is RUNNING:
            self.terminate()
        if self.state in (TERMINATED, BROKEN):
            return self.leavers.end_all(now)
        if self.state is CLOSED and not self.dispatcher.ledger.live:
            return self.leavers.send_home(now)
        next_look = self.leavers.look_after(now)
        # The process of one whose initializer has failed may not end, so its death is not waited for.
        errors = map(self.crew.initializer_error, self.dispatcher.lanes.values())
        broken: MpkitError | None = next(filter(None, errors), None)
        while broken is None and self._is_worker_missing(now):
            if now < self.crew.not_before:
                return min(next_look, self.crew.not_before)
            broken = self._start_worker()
        if broken is not None:
            self.break_down(broken)
            return now
        return next_look

    def _start_worker(self) -> PoolBroken | None:
        """Start one replacement; the error, once there is no more hope."""
        try:
            lane = self.crew.start()
        except Exception as error:  # noqa: BLE001  whatever it is, the pool has to say it in the end
            return self.crew.note_error(error)
        self.supervisor.add(lane)
        return None

    def _is_worker_missing(self, now: float) -> bool:
        wanted = self.options.processes
        if self.state is CLOSED:
            # What is left may be fewer tasks than that.
            wanted = min(wanted, self.dispatcher.ledger.live)
        present = len(self.dispatcher.lanes) - self.leavers.staying(now)
        return present < wanted and not self.leavers.are_too_many(now)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """No more tasks; those there are go on."""
        # First: whoever has fetched the last outcomes, and not told them yet, pokes the supervisor then.
        self.collector.draining = True
        if self.dispatcher.lock.run(self._close):
            # It has to be rung for every outcome from now on.
            self.collector.wake()
        self.supervisor.poke()

    def _close(self) -> bool:
        """Whether there are tasks that go on."""
        if self.state is RUNNING:
            self.state = CLOSED
        self._refuse_who_waits()
        return self.dispatcher.ledger.live > 0

    def _refuse_who_waits(self) -> None:
        """Have those who wait for room look at the state (holding the lock)."""
        if self.room is not None:
            self.room.notify_all()

    def terminate(self) -> None:
        """End everything now: pending tasks are cancelled, workers terminated."""
        how = "was terminated"
        if self.dropped:
            how = "was dropped without close(): keep a reference to it, or use it in a with statement"
        self._end(TERMINATED, TaskCancelled(f"{self.options.name} {how}"))

    def break_down(self, why: MpkitError) -> None:
        """The pool cannot go on: every pending task gets the reason."""
        self._why_broken = why
        self._end(BROKEN, why)

    def give_up(self, why: MpkitError) -> None:
        """Nobody looks after the workers any more: end what is left as well as it goes.

        In the supervisor's thread, which has failed too often.
        """
        attempt(lambda: self.break_down(why))
        dispatcher = self.dispatcher
        lanes = list(dispatcher.lanes.values())
        attempt(lambda: families.kill_families([lane.identity for lane in lanes if lane.identity]))
        attempt(self.programs.kill)
        with dispatcher.lock:
            if self.state in (RUNNING, CLOSED):
                self._why_broken = why
                self.state = BROKEN
                self._refuse_who_waits()
            dispatcher.lanes.clear()
            dispatcher.idle.clear()
            tasks: list[Task] = []
            dispatcher.ledger.fail_everything(tasks, POOL_BROKEN)
        attempt(lambda: self.collector.settle_surely([(task, RAISED, _copy_of(why)) for task in tasks]))
        for lane in lanes:
            if lane.process is not None:
                attempt(lane.process.kill)
            attempt(functools.partial(exit_code, lane))
            attempt(functools.partial(self.crew.dispose, lane))

    def _end(self, state: str, why: MpkitError) -> None:
        if self.dispatcher.lock.is_owned():
            # A signal handler that ends the pool, in the middle of this thread's work with it.
            self.state = CLOSED if self.state is RUNNING else self.state
            self.supervisor.request(functools.partial(self._end, state, why))
            return
        if self.state in (TERMINATED, BROKEN):
            return
        ended: list[Task] = []
        with self.collector.telling() as settlements, deferred_interrupts():
            finish = functools.partial(self._finish, state, why, settlements, ended)
            try:
                finish()
            except BaseException:
                # The handler of another signal than SIGINT: once more from the first, where none comes.
                self.supervisor.request(finish)
                raise

    def _finish(self, state: str, why: MpkitError, settlements: Settlements, ended: list[Task]) -> None:
        """End the pool; may be done again after an exception, with the same lists."""
        self.dispatcher.lock.run(self._end_tasks, state, settlements, ended)
        self.collector.draining = True
        self.collector.settle_surely([*settlements, *((task, RAISED, _copy_of(why)) for task in ended)])
        self.supervisor.poke()

    def _end_tasks(self, state: str, settlements: Settlements, ended: list[Task]) -> None:
        if self.state not in (TERMINATED, BROKEN):
            self.state = state
        for lane in list(self.dispatcher.lanes.values()):
            self.dispatcher.drain_lane(lane, settlements)
        self.dispatcher.ledger.fail_everything(ended, CANCELLED if state is TERMINATED else POOL_BROKEN)
        self._refuse_who_waits()

    def is_over(self) -> bool:
        """Whether no worker is left, none will come, what stopped tasks have started has ended, and all that
        has ended has been told.
        """
        dispatcher = self.dispatcher
        if self.state is RUNNING or dispatcher.lanes or dispatcher.ledger.live:
            return False
        if dispatcher.stopped or self.programs:
            return False
        if not self.collector.has_to_tell():
            return True
        # Another thread has outcomes in hand, and will poke. Not for ever: it may be gone.
        now = time.monotonic()
        self.told_by = min(self.told_by, now + _TELLING_SECONDS)
        return now >= self.told_by

    def over(self) -> None:
        """The last act of the supervisor's thread. Whatever happens here, `join` comes to an end."""
        try:
            self._give_back()
            self.bars.close(_CALLBACK_SECONDS)
        finally:
            self._forget_exit_hook()
            self._over.set()

    def _give_back(self) -> None:
        self.collector.stop()
        # Also of what has been killed and does not end.
        attempt(self.deaths.remains.look_after)
        # Callbacks of a closed pool are all called, unless it is terminated meanwhile. A terminated one does
        # not wait for one that hangs: its thread is a daemon, and ends when the callback does.
        ended = False
        while not ended and self.state is CLOSED:
            ended = self.collector.join(_LOOK_SECONDS)
        if not ended and not self.collector.join(_CALLBACK_SECONDS):
            # What hangs may be a log handler, which whoever logs would wait for.
            problem = "%s: a callback or a log handler has not returned; its thread is left alone"
            warn = functools.partial(_logger.warning, problem, self.options.name)
            attempt(functools.partial(call_aside, _CALLBACK_SECONDS, warn))
        # Now, and not when the garbage collector comes: a program may make and keep many pools. Handles have
        # their outcomes, and need nothing of it.
        self.board.close()

    def refuse_reentry(self) -> None:
        """Raise RuntimeError if this thread is in the middle of its work with the pool (a signal handler)."""
        if self.dispatcher.lock.is_owned():
            raise RuntimeError(REENTERED)

    def join(self, timeout: float | None) -> bool:
        """Wait until the workers and threads of a closed pool are gone."""
        if self.collector.is_current_thread():
            raise RuntimeError(
                "join() was called from a callback of this pool, and would wait for itself; call it elsewhere"
            )
        if timeout is not None:
            # Threads refuse to wait for longer.
            timeout = min(timeout, threading.TIMEOUT_MAX)
        if not self._over.wait(timeout):
            return False
        return self.supervisor.join(timeout)

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: rings, workers and threads are the parent's."""
        self.state = TERMINATED
        self.dispatcher.forget_after_fork()
        self.collector.forked = self.forked_message()
        self.supervisor.forget_after_fork()


#: How long the end of a pool waits for a thread that has taken outcomes and not told them: it takes some
#: microseconds, unless exceptions of signal handlers have kept it from it twice.
_TELLING_SECONDS = 5.0
#: How long the end of a terminated pool waits for a callback that is running.
_CALLBACK_SECONDS = 2.0
#: How often the end of a closed pool looks whether it has been terminated, while a callback is running.
_LOOK_SECONDS = 0.5
_FORKED = (
    "{} belongs to the process that created it; this process is a fork of that one and cannot use it. "
    "Create a pool here, or send the work to the parent through a queue"
)


def _copy_of(error: MpkitError) -> MpkitError:
    # One exception object raised in several threads would collect all their tracebacks.
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy


def _end_at_exit(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None and engine.pid == os.getpid():
        engine.terminate()
        engine.join(2 * engine.options.grace_period + 5.0)


@in_forked_children
def _forget_after_fork() -> None:
    # The child has copies of the parent's pools. They answer with an error, and never touch the parent's
    # workers.
    for engine in list(_engines):
        engine.forget_after_fork()
    _engines.clear()
