"""One pool behind its facade: puts the parts together, and decides what the end means.

The facade (`TaskPool`) holds the engine; the threads hold the engine and never the facade, so that a pool
that is just dropped is noticed.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import weakref

from mpkit._platform.processes import families
from mpkit._platform.signals.interrupts import deferred_interrupts, without_interrupts
from mpkit._platform.stdlib.exit_hooks import at_exit_before_children_joined
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.forks import in_forked_children
from mpkit.errors import MpkitError, PoolBroken, TaskCancelled
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.crew import Crew, exit_code
from mpkit.pool._engine.deaths import Deaths
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.function_table import FunctionTable
from mpkit.pool._engine.initializer import packed_initializer
from mpkit.pool._engine.insight import Insight
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.lead import REENTERED, Lead
from mpkit.pool._engine.leavers import Leavers
from mpkit.pool._engine.ledger import CANCELLED, POOL_BROKEN, Task
from mpkit.pool._engine.limits import Limits
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.progress import Bars
from mpkit.pool._engine.reports import attempt, call_aside
from mpkit.pool._engine.room import Room
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._engine.states import BROKEN, CLOSED, RUNNING, TERMINATED, Status, copy_of
from mpkit.pool._engine.submission import Submission
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
        self.status: Status = Status(options.name)
        self.dropped = False
        self._over = threading.Event()
        #: Until when the end waits for threads that have outcomes to tell; it does not wait yet.
        self.told_by: float = NEVER
        # Pickled before anything is created: what cannot be pickled leaves nothing behind.
        initializer = packed_initializer(options)
        self.board: Board = Board.create(options.name)
        # Else multiprocessing would wait at exit for workers that wait for tasks.
        self._forget_exit_hook = at_exit_before_children_joined(
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
        self.dispatcher.roster.on_worker = self.collector.on_empty = self.supervisor.poke
        self.programs: Programs = Programs(options.grace_period, self.supervisor.watch)
        self.limits: Limits = Limits(options, self.dispatcher, self.collector, self.programs)
        self.leavers: Leavers = Leavers(
            options, board, self.dispatcher, self.collector, self.crew, self.programs
        )
        self.deaths: Deaths = Deaths(
            options, self.dispatcher, self.collector, self.crew, self.programs, self._numbers
        )
        self.submission: Submission = Submission(
            options.name,
            self.status,
            self._numbers,
            self.dispatcher,
            self.collector,
            self.supervisor,
            self.room,
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
        if broken is not None and not self.status.has_ended():
            self.break_down(broken)

    def look_after_crew(self, now: float) -> float:
        """Replace who is missing, send home who is not needed; when to look again."""
        self.deaths.remains.look_after()
        if self.dropped and self.status.state is RUNNING:
            self.terminate()
        if self.status.has_ended():
            return self.leavers.end_all(now)
        if self.status.state is CLOSED and not self.dispatcher.ledger.live:
            return self.leavers.send_home(now)
        next_look = self.leavers.look_after(now)
        # The process of one whose initializer has failed may not end, so its death is not waited for.
        errors = map(self.crew.initializer_error, self.dispatcher.lanes.values())
        broken: MpkitError | None = next(filter(None, errors), None)
        while broken is None and self._is_worker_missing(now):
            if now < self.crew.start_ups.not_before:
                return min(next_look, self.crew.start_ups.not_before)
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
            return self.crew.start_ups.note_error(error)
        self.supervisor.add(lane)
        return None

    def _is_worker_missing(self, now: float) -> bool:
        wanted = self.options.processes
        if self.status.state is CLOSED:
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
        if self.status.state is RUNNING:
            self.status.state = CLOSED
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
        self.status.why_broken = why
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
            if not self.status.has_ended():
                self.status.why_broken = why
                self.status.state = BROKEN
                self._refuse_who_waits()
            dispatcher.lanes.clear()
            dispatcher.roster.idle.clear()
            tasks: list[Task] = []
            dispatcher.ledger.fail_everything(tasks, POOL_BROKEN)
        attempt(lambda: self.collector.settle_surely([(task, RAISED, copy_of(why)) for task in tasks]))
        for lane in lanes:
            if lane.process is not None:
                attempt(lane.process.kill)
            attempt(functools.partial(exit_code, lane))
            attempt(functools.partial(self.crew.dispose, lane))

    def _end(self, state: str, why: MpkitError) -> None:
        if self.dispatcher.lock.is_owned():
            # A signal handler that ends the pool, in the middle of this thread's work with it.
            self.status.state = CLOSED if self.status.state is RUNNING else self.status.state
            self.supervisor.request(functools.partial(self._end, state, why))
            return
        if self.status.has_ended():
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
        self.collector.settle_surely([*settlements, *((task, RAISED, copy_of(why)) for task in ended)])
        self.supervisor.poke()

    def _end_tasks(self, state: str, settlements: Settlements, ended: list[Task]) -> None:
        if not self.status.has_ended():
            self.status.state = state
        for lane in list(self.dispatcher.lanes.values()):
            self.dispatcher.drain_lane(lane, settlements)
        self.dispatcher.ledger.fail_everything(ended, CANCELLED if state is TERMINATED else POOL_BROKEN)
        self._refuse_who_waits()

    def is_over(self) -> bool:
        """Whether no worker is left, none will come, what stopped tasks have started has ended, and all that
        has ended has been told.
        """
        dispatcher = self.dispatcher
        if self.status.state is RUNNING or dispatcher.lanes or dispatcher.ledger.live:
            return False
        if dispatcher.roster.stopped or self.programs:
            return False
        if not self.collector.has_to_tell():
            return True
        # Another thread has outcomes in hand, and will poke. Not for ever: it may be gone.
        now = CLOCK.monotonic()
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
        while not ended and self.status.state is CLOSED:
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
        self.status.state = TERMINATED
        self.dispatcher.forget_after_fork()
        self.collector.forked = self.status.forked_message()
        self.supervisor.forget_after_fork()


#: How long the end of a pool waits for a thread that has taken outcomes and not told them: it takes some
#: microseconds, unless exceptions of signal handlers have kept it from it twice.
_TELLING_SECONDS = 5.0
#: How long the end of a terminated pool waits for a callback that is running.
_CALLBACK_SECONDS = 2.0
#: How often the end of a closed pool looks whether it has been terminated, while a callback is running.
_LOOK_SECONDS = 0.5


def _end_at_exit(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None and not engine.status.is_forked():
        engine.terminate()
        engine.join(2 * engine.options.grace_period + 5.0)


@in_forked_children
def _forget_after_fork() -> None:
    # The child has copies of the parent's pools. They answer with an error, and never touch the parent's
    # workers.
    for engine in list(_engines):
        engine.forget_after_fork()
    _engines.clear()
