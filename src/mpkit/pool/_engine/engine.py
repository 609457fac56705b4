"""One pool behind its facade: puts the parts together, replaces workers, and ends the pool.

The facade (`TaskPool`) refers to the engine. The threads of the pool refer to the engine and never to the
facade, so the facade is collected, and the pool ended, when the program drops it.
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
from mpkit.pool._engine.room import Room
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._engine.states import BROKEN, CLOSED, RUNNING, TERMINATED, Status, copy_of
from mpkit.pool._engine.submission import Submission
from mpkit.pool._engine.supervisor import Supervisor
from mpkit.pool._engine.threads import attempt, call_aside
from mpkit.pool._protocol import logs
from mpkit.pool._protocol.channel import RAISED, Board
from mpkit.pool._worker.worker import Initializer

_logger = logging.getLogger("mpkit.pool")

#: How long the end of a pool waits for a thread that has taken outcomes and not told them yet. That takes
#: some microseconds, unless exceptions of signal handlers have twice prevented it.
_TELLING_SECONDS = 5.0
#: How long the end of a terminated pool waits for a callback that is running.
_CALLBACK_SECONDS = 2.0
#: How often the end of a closed pool checks whether it has been terminated, while a callback is running.
_LOOK_SECONDS = 0.5
#: How long a program that ends waits for a pool, in addition to two grace periods.
_EXIT_SECONDS = 5.0

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """A whole pool, except for its public methods."""

    def __init__(self, options: PoolOptions) -> None:
        """Start everything. The caller defers interrupts meanwhile (`deferred_interrupts`)."""
        self.options = options
        self.status: Status = Status(options.name)
        #: Set when the program has dropped the pool without closing it.
        self.dropped = False
        self._over = threading.Event()
        #: Until when the end of the pool waits for threads that have outcomes to tell (monotonic); `NEVER`:
        #: it does not wait yet.
        self.tell_deadline: float = NEVER
        # Pickled first: if this fails, there is nothing to give back.
        initializer = packed_initializer(options)
        self.board: Board = Board.create(options.name)
        # Otherwise multiprocessing would join the workers at exit, which wait for tasks.
        self._forget_exit_hook = at_exit_before_children_joined(
            functools.partial(_end_at_exit, weakref.ref(self))
        )
        try:
            self._assemble(initializer)
            try:
                for lane in self.crew.start(options.processes):
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
        """Create the parts, and pass to each of them the ones that it needs."""
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
            self.status, self._numbers, self.dispatcher, self.collector, self.supervisor, self.room
        )
        self.insight: Insight = Insight(self.dispatcher, self.collector, self.crew)

    def _undo_start(self) -> None:
        if not self.supervisor.discard():
            # A signal handler has raised an exception when the supervisor's thread was running already.
            self.terminate()
            self.join(None)
            return
        for lane in list(self.dispatcher.lanes.values()):
            lane.process.kill()
            lane.process.join()
            self.crew.dispose(lane)

    # -- workers (called in the supervisor's thread: see `Supervised`) ---------------------------------------

    def begun(self) -> None:
        """Start the collector: here, so that creating a pool need not wait for two threads to start."""
        try:
            self.collector.start()
        except Exception as error:  # noqa: BLE001  whatever it is, the supervisor has to go on
            broken = PoolBroken(f"the system refuses {self.options.name} a thread: {error}")
            broken.__cause__ = error
            self.break_down(broken)

    def bury(self, lane: Lane) -> None:
        """Do all that follows from the death of a worker."""
        broken = self.deaths.bury(lane)
        if broken is not None and not self.status.has_ended():
            self.break_down(broken)

    def look_after_crew(self, now: float) -> float:
        """Replace missing workers, send home those that are not needed; returns when to look again."""
        self.deaths.remains.look_after()
        if self.dropped and self.status.state is RUNNING:
            self.terminate()
        if self.status.has_ended():
            return self.leavers.end_all(now)
        if self.status.state is CLOSED and not self.dispatcher.ledger.live:
            return self.leavers.send_home(now)
        next_look = self.leavers.look_after(now)
        # If an initializer has failed, its process may not end for long, so this does not wait for its death.
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
        """Start one worker; returns the error for the pool once too many start-ups have failed."""
        try:
            (lane,) = self.crew.start(1)
        except Exception as error:  # noqa: BLE001  whatever it is, it becomes the reason if the pool breaks
            return self.crew.start_ups.note_error(error)
        self.supervisor.add(lane)
        return None

    def _is_worker_missing(self, now: float) -> bool:
        wanted = self.options.processes
        if self.status.state is CLOSED:
            # There may be fewer tasks left than workers.
            wanted = min(wanted, self.dispatcher.ledger.live)
        staying = self.leavers.staying(now)
        if staying > self.options.processes:
            # One of them has to end before another worker may be started.
            return False
        return len(self.dispatcher.lanes) - staying < wanted

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more tasks; those already submitted go on."""
        # First: a thread that has fetched the last outcomes already then pokes the
        # supervisor when it has told them.
        self.collector.draining = True
        if self.dispatcher.lock.run(self._close):
            # From now on workers have to ring for every outcome: have the collector say so on the board.
            self.collector.wake()
        self.supervisor.poke()

    def _close(self) -> bool:
        """Mark the pool as closed (holding the lock); returns whether there are tasks left."""
        if self.status.state is RUNNING:
            self.status.state = CLOSED
        self._refuse_who_waits()
        return self.dispatcher.ledger.live > 0

    def _refuse_who_waits(self) -> None:
        """Have threads that wait for room check the state of the pool, and raise (holding the lock)."""
        if self.room is not None:
            self.room.notify_all()

    def terminate(self) -> None:
        """End the pool now: pending tasks are cancelled, and workers are terminated."""
        how = "was terminated"
        if self.dropped:
            how = "was dropped without close(): keep a reference to it, or use it in a with statement"
        self._end(TERMINATED, TaskCancelled(f"{self.options.name} {how}"))

    def break_down(self, why: MpkitError) -> None:
        """End a pool that cannot go on: every pending task fails with `why`."""
        self.status.why_broken = why
        self._end(BROKEN, why)

    def give_up(self, why: MpkitError) -> None:
        """End what is left, as far as possible: the supervisor's thread has failed too often, and is ending.

        Called in that thread. A step that fails is reported, and does not keep the others from being taken.
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
            attempt(lane.process.kill)
            attempt(functools.partial(exit_code, lane))
            attempt(functools.partial(self.crew.dispose, lane))

    def _end(self, state: str, why: MpkitError) -> None:
        if self.dispatcher.lock.is_owned():
            # A signal handler ends the pool, in the middle of this thread's work with it.
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
                # The handler of another signal than SIGINT has raised. Start over in a
                # thread where no handler runs.
                self.supervisor.request(finish)
                raise

    def _finish(self, state: str, why: MpkitError, settlements: Settlements, ended: list[Task]) -> None:
        """End the pool. After an exception it may be called again, with the same lists."""
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
        """Whether the pool has ended.

        That is so when no worker is left and none will come, all processes that stopped tasks have started
        have ended, and all outcomes have been told.
        """
        dispatcher = self.dispatcher
        if self.status.state is RUNNING or dispatcher.lanes or dispatcher.ledger.live:
            return False
        if dispatcher.roster.stopped or self.programs:
            return False
        if not self.collector.has_to_tell():
            return True
        # Another thread is telling outcomes, and will then poke the supervisor. Wait for it, but with a time
        # limit, because it may be gone.
        now = CLOCK.monotonic()
        self.tell_deadline = min(self.tell_deadline, now + _TELLING_SECONDS)
        return now >= self.tell_deadline

    def over(self) -> None:
        """Give everything back: the last act of the supervisor's thread. Whatever happens, `join` returns."""
        try:
            self._give_back()
            self.bars.close(_CALLBACK_SECONDS)
        finally:
            self._forget_exit_hook()
            self._over.set()

    def _give_back(self) -> None:
        self.collector.stop()
        # Also what dead workers have left whose descendants have been killed and have still not ended.
        attempt(self.deaths.remains.look_after)
        # All callbacks of a closed pool are called, unless it is terminated meanwhile. A terminated pool does
        # not wait for a callback that hangs: its thread is a daemon, and ends when the callback returns.
        ended = False
        while not ended and self.status.state is CLOSED:
            ended = self.collector.join(_LOOK_SECONDS)
        if not ended and not self.collector.join(_CALLBACK_SECONDS):
            # Logged aside: what hangs may be a log handler, and then logging hangs as well.
            problem = "%s: a callback or a log handler has not returned; its thread is left alone"
            warn = functools.partial(_logger.warning, problem, self.options.name)
            attempt(functools.partial(call_aside, _CALLBACK_SECONDS, warn))
        # Now, and not when the pool is garbage: a program may keep many pools that have ended. Handles have
        # their outcomes, and do not need the board.
        self.board.close()

    def refuse_reentry(self) -> None:
        """Raise RuntimeError if this is a signal handler in the middle of this thread's own work here."""
        if self.dispatcher.lock.is_owned():
            raise RuntimeError(REENTERED)

    def join(self, timeout: float | None) -> bool:
        """Wait until a closed pool has ended, `timeout` seconds at most; returns whether it has."""
        if self.collector.is_current_thread():
            raise RuntimeError(
                "join() was called from a callback of this pool, and would wait for itself; call it elsewhere"
            )
        if timeout is not None:
            # `threading` raises an error for longer timeouts.
            timeout = min(timeout, threading.TIMEOUT_MAX)
        if not self._over.wait(timeout):
            return False
        return self.supervisor.join(timeout)

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: rings, workers and threads belong to the parent."""
        self.status.state = TERMINATED
        self.dispatcher.forget_after_fork()
        self.collector.forked = self.status.forked_message()
        self.supervisor.forget_after_fork()


def _end_at_exit(reference: weakref.ref[Engine]) -> None:
    engine = reference()
    if engine is not None and not engine.status.is_forked():
        engine.terminate()
        engine.join(2 * engine.options.grace_period + _EXIT_SECONDS)


@in_forked_children
def _forget_after_fork() -> None:
    # The child has copies of the parent's pools. Their methods raise an error, and never touch the workers.
    for engine in list(_engines):
        engine.forget_after_fork()
    _engines.clear()
