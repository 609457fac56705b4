"""One pool behind its facade: puts the parts together, and decides what a death, a cancel or the end means.

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
from collections.abc import Callable, Iterable
from typing import Any, cast

from mpkit._platform import families, identity, memory, seam
from mpkit._platform.deadlines import NEVER
from mpkit._platform.forks import in_forked_children
from mpkit._platform.identity import ProcessIdentity
from mpkit._platform.interrupts import deferred_interrupts, without_interrupts
from mpkit._platform.signals import signal_name
from mpkit._shm.memory import trail
from mpkit._wire import failure
from mpkit.errors import (
    ClosedError,
    InitializerFailed,
    MpkitError,
    PoolBroken,
    SerializationError,
    TaskCancelled,
)
from mpkit.pool._engine import crew as crew_module
from mpkit.pool._engine.collector import REENTERED, Collector
from mpkit.pool._engine.crew import Crew
from mpkit.pool._engine.dispatcher import Dispatcher, Settlements, cancelled_error
from mpkit.pool._engine.function_table import FunctionTable
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.initializer import packed_initializer
from mpkit.pool._engine.insight import Insight
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.leavers import Leavers
from mpkit.pool._engine.ledger import CANCELLED, POOL_BROKEN, UNSENT, Chunk, ChunkSink, Death, Sink, Task
from mpkit.pool._engine.limits import Limits
from mpkit.pool._engine.losses import settle_loss
from mpkit.pool._engine.options import PoolOptions, TaskOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.progress import Progress
from mpkit.pool._engine.remains import Remains
from mpkit.pool._engine.reports import attempt
from mpkit.pool._engine.room import Room
from mpkit.pool._engine.seen_shared import pickles_for_tasks, seen_shared, take_seen_shared
from mpkit.pool._engine.stacks import last_words
from mpkit.pool._engine.states import BROKEN, CLOSED, RUNNING, TERMINATED
from mpkit.pool._engine.supervisor import Supervisor
from mpkit.pool._protocol import logs, payload
from mpkit.pool._protocol.channel import (
    BY_REFERENCE,
    BY_VALUE,
    CHUNK,
    FUNCTION_INSIDE,
    HEAD_SIZE,
    LEAVE_RECORD,
    LEAVING,
    LONGEST_TASK,
    LOW,
    PARCELS,
    RAISED,
    RANGE,
    STATE,
    TASK_HEAD,
    Board,
)

_logger = logging.getLogger("mpkit.pool")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Engine:
    """Everything of a pool but its public face."""

    def __init__(self, options: PoolOptions) -> None:
        """Start everything. The caller keeps interrupts away meanwhile (`deferred_interrupts`)."""
        self.options = options
        self.pid: int = os.getpid()
        self.state: str = RUNNING
        self._numbers = itertools.count(1)
        self.functions: FunctionTable = FunctionTable()
        self._why_broken: MpkitError | None = None
        self._over = threading.Event()
        self.dropped = False
        self._bars: set[weakref.ref[Progress]] = set()
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
            self.dispatcher: Dispatcher = Dispatcher(self._on_queue)
            most = options.max_pending
            self.room: Room | None = None if most is None else Room(self.dispatcher, most)
            self.collector: Collector = Collector(
                self.dispatcher, self.board, f"mpkit-{options.name}", logs.handle, self._on_empty
            )
            self.crew: Crew = Crew(options, self.dispatcher, self.board, initializer)
            self.insight: Insight = Insight(self.dispatcher, self.collector, self.crew)
            self.leavers: Leavers = Leavers(options, self.dispatcher, self.collector)
            self.supervisor: Supervisor = Supervisor(self, f"mpkit-{options.name}")
            self.programs: Programs = Programs(options.grace_period, self.supervisor.watch)
            self.remains: Remains = Remains(self.programs)
            self.limits: Limits = Limits(options, self.dispatcher, self.collector, self.programs)
            self.dispatcher.on_worker = self.supervisor.poke
            try:
                for _ in range(options.processes):
                    self.supervisor.add(self.crew.start())
                with without_interrupts():
                    self.supervisor.start()
            except BaseException:
                self._undo_start()
                raise
        except BaseException:
            self._forget_exit_hook()
            self.board.close()
            raise
        _engines.add(self)

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

    @pickles_for_tasks
    def submit(
        self,
        function: Function,
        blob: bytes,
        flags: int,
        arguments: Any,
        sink: Sink,
        options: TaskOptions,
    ) -> Task:
        """Pickle the arguments and send or queue a task. With the flag `CHUNK` the sink is a `ChunkSink`.

        Raises:
            SerializationError: the arguments cannot be pickled.
            ClosedError: the pool is closed.
            InitializerFailed, PoolBroken: the pool is broken.
        """
        kept: Any = None
        items = len(arguments)
        given, given_flags = arguments, flags
        if len(blob) > payload.INLINE_BYTES:
            # A big closure travels like a big argument.
            arguments, flags = (blob, arguments), flags & ~BY_REFERENCE | FUNCTION_INSIDE
            blob = b""
        if arguments:
            # Function and arguments together: of a longer record nobody would ever be rid.
            most = LONGEST_TASK - HEAD_SIZE - RANGE.size - len(blob)
            try:
                more, data, kept = payload.dump_arguments(arguments, options.pickler, most)
            except SerializationError as error:
                from mpkit.pool._engine.blame import blame, parts_of_task  # noqa: PLC0415  rarely needed

                parts = parts_of_task(function.name, given, given_flags, sink._next_item())
                raise blame(error, parts, options.pickler) from error.__cause__
            flags |= more
        else:
            data = b""
        if seen_shared:
            kept = (kept, take_seen_shared())
        if options.retries or flags & CHUNK:
            # What is sent may be sent again: queues, locks and counters among the arguments must live until
            # then, though the caller has let go of them and the worker that had them open is dead.
            kept = (kept, arguments)
        number = next(self._numbers)
        if options.pickler == "cloudpickle":
            flags |= BY_VALUE
        record = TASK_HEAD.pack(number, len(blob), flags) + blob
        task: Task
        if flags & CHUNK:
            record += RANGE.pack(0, items) + data
            chunk_sink = cast("ChunkSink", sink)
            task = Chunk(
                number, chunk_sink, record, function, options.timeout, options.retries, kept, 0, items
            )
        else:
            task = Task(number, sink, record + data, function, options.timeout, options.retries, kept)
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

    def _on_queue(self) -> None:
        # The collector sleeps with the wrong level on the board. Under the dispatcher's lock; ringing takes
        # no lock.
        self.collector.wake()

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
                # Of other tasks, perhaps: an interrupt comes after them.
                self.collector.settle(settlements)
                if task.ending == CANCELLED:
                    self.collector.settle([(task, RAISED, cancelled_error(task))])
                if not never_began and even_begun:
                    self.supervisor.request(lambda: self.limits.cancel_running(task))
            except BaseException:
                # The handler of another signal than SIGINT.
                dispatcher.note_interruption()
                self.cancel_later([task], even_begun=even_begun)
                raise
        self._on_change()

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

    # -- workers ---------------------------------------------------------------------------------------------

    def bury(self, lane: Lane) -> None:
        """A worker is dead: settle what it had, and see whether it must be replaced. In the supervisor's
        thread.
        """
        exitcode = crew_module.exit_code(lane)
        words = last_words(lane)
        died = signal_name(exitcode)
        likely_oom = died == "SIGKILL" and not lane.doomed and memory.oom_killed_since(lane.oom_kills)
        death = Death(lane.pid, exitcode, died, words, lane.rss_bytes, likely_oom)
        dispatcher = self.dispatcher
        settlements: Settlements = []
        try:
            with dispatcher.lock:
                # Not a second time, should something after this have failed.
                if lane.key in dispatcher.ledger.sent:
                    settle_loss(dispatcher, lane, death, self._numbers, settlements)
                dispatcher.fill()
        finally:
            # Also what was found before it failed (no memory); the rest when it is tried again.
            self.collector.settle_surely(settlements)
        if lane.is_torn:
            problem = (
                "%s: worker %d was killed: something in it has written into the memory that it shares with "
                "the pool"
            )
            self.collector.log(_logger.error, problem, self.options.name, lane.pid)
        told = self.programs.terminate(self._left_by(lane))
        if lane.identity is not None and (
            exitcode != 0 or lane.words[STATE] != LEAVING or lane.words[PARCELS]
        ):
            # Else it has left in order, and removed what was its own, and has never made a parcel.
            self.remains.add(lane.identity, trail.notes_in(lane.channel.segment), told)
            self.remains.look_after()
        broken: MpkitError | None = self.crew.note_death_of(lane, exitcode, words)
        broken = self._initializer_error(lane) or broken
        self.crew.dispose(lane)
        if broken is not None and self.state in (RUNNING, CLOSED):
            self.break_down(broken)

    def _left_by(self, lane: Lane) -> list[ProcessIdentity]:
        """What the task that a worker has died with had started, as far as it has been seen."""
        known = [] if lane.stop is None else lane.stop.programs
        since = lane.task_since()
        if since is not None:
            known = known + [child for child in lane.children if child.started >= since]
        return [program for program in known if identity.is_alive(program)]

    def look_after_crew(self, now: float) -> float:
        """Replace who is missing, send home who is not needed; when to look again. In the supervisor's
        thread.
        """
        self.remains.look_after()
        if self.dropped and self.state is RUNNING:
            self.terminate()
        if self.state in (TERMINATED, BROKEN):
            return self._end_all(now)
        if self.state is CLOSED and not self.dispatcher.ledger.live:
            return self._send_home(now)
        next_look = self.leavers.look_after(now)
        # Its process may not end, so its death is not waited for.
        failed = next((lane for lane in self.dispatcher.lanes.values() if lane.bad_initializer), None)
        broken = None if failed is None else self._initializer_error(failed)
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

    def _send_home(self, now: float) -> float:
        has_told = False
        for lane in list(self.dispatcher.lanes.values()):
            if not lane.told_to_leave:
                lane.told_to_leave = has_told = True
                lane.leave_by = now + max(_LEAVE_SECONDS, 10 * self.options.grace_period)
                with self.dispatcher.lock:
                    lane.leaving = True
                    lane.update_ready()
                    lane.words[LOW] = 0
                    lane.channel.inbox.try_put(LEAVE_RECORD)
                    self.dispatcher.wake(lane)
                if not lane.greeted and lane.process is not None and not self.crew.is_initializing(lane):
                    # It is still starting, for nothing. (The initializer finishes what it has begun.)
                    lane.process.kill()
            elif now >= lane.leave_by:
                lane.kill()
                lane.leave_by = NEVER
        # While they end, which takes longer: they have open what they need, and nobody comes after them. (The
        # files of the workers stay: by them those are found whose pool dies meanwhile.)
        if has_told:
            self.board.discard()
            for lane in list(self.dispatcher.lanes.values()):
                lane.channel.discard_semaphores()
        return self._next_leave()

    def _end_all(self, now: float) -> float:
        for lane in list(self.dispatcher.lanes.values()):
            if not lane.told_to_end:
                # Also one that was told to leave, or leaves by itself, and has not ended.
                lane.told_to_end = lane.told_to_leave = True
                with self.dispatcher.lock:
                    lane.leaving = True
                    lane.update_ready()
                lane.leave_by = now + self.options.grace_period
                self.programs.follow(lane.terminate())
                # They are told as well: a program that has given up its rights (setuid) may send no signal.
                with self.dispatcher.lock:
                    lane.channel.inbox.try_put(LEAVE_RECORD)
                    self.dispatcher.wake(lane)
            elif now >= lane.leave_by:
                lane.kill(spare_earlier=True)
                lane.leave_by = NEVER
        return self._next_leave()

    def _next_leave(self) -> float:
        """When to look again after workers that leave."""
        return min((lane.leave_by for lane in self.dispatcher.lanes.values()), default=NEVER)

    def _initializer_error(self, lane: Lane) -> MpkitError | None:
        """What the initializer of a worker has raised, for those who wait for the pool."""
        if lane.bad_initializer is None:
            return None
        cause = failure.unpack_exception(lane.bad_initializer[HEAD_SIZE:], contain=True)
        broken = InitializerFailed(
            f"the initializer of {self.options.name} raised {type(cause).__name__}: {cause}"
        )
        broken.__cause__ = cause
        return broken

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
            attempt(functools.partial(crew_module.exit_code, lane))
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

    def begun(self) -> None:
        """The first act of the supervisor's thread: the caller need not wait for a second thread to start."""
        try:
            self.collector.start()
        except Exception as error:  # noqa: BLE001  whatever it is, this thread has to go on
            broken = PoolBroken(f"the system refuses {self.options.name} a thread: {error}")
            broken.__cause__ = error
            self.break_down(broken)

    def has_bar(self, progress: Progress) -> None:
        """Close this progress bar at the end of the pool, should nobody have done so before."""
        if progress.is_shown:
            # Added, and taken out again with its bar, in one step each: this needs no lock.
            self._bars.add(weakref.ref(progress, self._bars.discard))

    def over(self) -> None:
        """The last act of the supervisor's thread. Whatever happens here, `join` comes to an end."""
        try:
            self._give_back()
            self._close_bars()
        finally:
            self._forget_exit_hook()
            self._over.set()

    def _give_back(self) -> None:
        self.collector.stop()
        # Also of what has been killed and does not end.
        self.remains.look_after()
        # Callbacks of a closed pool are all called, unless it is terminated meanwhile. A terminated one does
        # not wait for one that hangs: its thread is a daemon, and ends when the callback does.
        ended = False
        while not ended and self.state is CLOSED:
            ended = self.collector.join(_LOOK_SECONDS)
        if not ended and not self.collector.join(_CALLBACK_SECONDS):
            attempt(self._tell_of_hanging_callback)
        # Now, and not when the garbage collector comes: a program may make and keep many pools. Handles have
        # their outcomes, and need nothing of it.
        self.board.close()
        self.collector.let_go()

    def _close_bars(self) -> None:
        """Close what is shown of an `imap` that somebody still holds: at the end of the program, when modules
        are half gone, tqdm cannot do it any more (on Python 3.13.0 it crashes).
        """
        bars = [bar for reference in list(self._bars) if (bar := reference()) is not None and bar.is_shown]
        if bars:
            # The terminal may take nothing, and the lock of all bars be held by a thread which waits for this
            # end in a signal's handler.
            try:
                _call_aside(_close_each, bars)
            except RuntimeError:
                # The system refuses a thread, or the interpreter is ending.
                _close_each(bars)

    def _tell_of_hanging_callback(self) -> None:
        """Warn of it. What hangs may be a log handler, which whoever logs would wait for."""
        problem = "%s: a callback or a log handler has not returned; its thread is left alone"
        _call_aside(_logger.warning, problem, self.options.name)

    def refuse_reentry(self) -> None:
        """Raise RuntimeError if this thread is in the middle of its work with the pool (a signal handler)."""
        if self.dispatcher.lock.is_owned():
            raise RuntimeError(REENTERED)

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: rings, workers and threads are the parent's."""
        self.state = TERMINATED
        self.dispatcher.forget_after_fork()
        self.collector.forked = self.forked_message()
        self.supervisor.forget_after_fork()

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

    def _on_empty(self) -> None:
        self.supervisor.poke()

    def _on_change(self) -> None:
        if self.state is not RUNNING and not self.dispatcher.ledger.live:
            self.supervisor.poke()


#: How long the end of a pool waits for a thread that has taken outcomes and not told them: it takes some
#: microseconds, unless exceptions of signal handlers have kept it from it twice.
_TELLING_SECONDS = 5.0
#: How long the end of a terminated pool waits for a callback that is running.
_CALLBACK_SECONDS = 2.0
#: How often the end of a closed pool looks whether it has been terminated, while a callback is running.
_LOOK_SECONDS = 0.5
#: How long a worker that has been told to leave may take to run its exit handlers.
_LEAVE_SECONDS = 10.0
_FORKED = (
    "{} belongs to the process that created it; this process is a fork of that one and cannot use it. "
    "Create a pool here, or send the work to the parent through a queue"
)


def _call_aside(function: Callable[..., object], *arguments: object) -> None:
    """Call something that may hang in a thread of its own, which is left alone then.

    Raises:
        RuntimeError: There can be no further thread.
    """
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(_CALLBACK_SECONDS)


def _close_each(bars: Iterable[Progress]) -> None:
    for bar in bars:
        bar.close()


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
