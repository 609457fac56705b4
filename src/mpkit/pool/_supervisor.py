"""The thread that looks after the workers: their deaths, time limits, memory, and the end of the pool.

It sleeps until something happens: a process ends, somebody pokes it, or the next moment comes at which it has
to look (a time limit that may be over, a step of a stop, a pause between start-ups, a sample of the memory
while tasks are running). An idle pool has none of them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mpkit._platform import families
from mpkit._platform.deadlines import NEVER
from mpkit._platform.exits import ExitWatcher
from mpkit._platform.identity import ProcessIdentity
from mpkit._platform.memory import rss_bytes
from mpkit._platform.readiness import read_available
from mpkit.errors import MpkitError, PoolBroken
from mpkit.pool._channel import RAISED, STOP
from mpkit.pool._collector import Collector
from mpkit.pool._crew import Crew
from mpkit.pool._dispatcher import Dispatcher, Settlements, ending_error
from mpkit.pool._lane import Lane, Stop
from mpkit.pool._ledger import CANCELLED, TIMED_OUT, TOO_BIG, Task
from mpkit.pool._options import PoolOptions
from mpkit.pool._reports import attempt, report
from mpkit.pool._stacks import live_stack

#: How often the memory of running workers is read: with a limit, and without one (for the error should one of
#: them die).
_SAMPLE_WITH_LIMIT = 0.05
_SAMPLE_WITHOUT = 1.0
#: How long a worker may take to write its stack before it is stopped all the same.
_STACK_SECONDS = 0.1

#: After so many turns in a row that raised an exception the pool is broken, and after as many more given up.
_MOST_FAILURES = 8
#: Seconds between a turn that failed and the next one: at first, and at most. Some 4 seconds until the pool
#: is broken, because what is lacking (descriptors, memory) may be there again in a moment.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

_INTERRUPTED = 1
_TERMINATED = 2
_KILLED = 3


class Supervised(Protocol):
    """What the supervisor looks after: the engine, as far as the supervisor knows it."""

    options: PoolOptions
    dispatcher: Dispatcher
    collector: Collector
    crew: Crew
    #: When to look at the end again though nobody pokes.
    told_by: float

    def bury(self, lane: Lane) -> None:
        """A worker is dead."""

    def look_after_crew(self, now: float) -> float:
        """Replace who is missing, send home who is not needed; when to look again."""
        ...

    def is_over(self) -> bool:
        """Whether no worker is left, and none will come."""
        ...

    def break_down(self, why: MpkitError) -> None:
        """The pool cannot go on: every pending task gets the reason."""

    def give_up(self, why: MpkitError) -> None:
        """Nobody looks after the workers any more: end what is left as well as it goes."""

    def begun(self) -> None:
        """The first act of the supervisor's thread."""

    def over(self) -> None:
        """The last act of the supervisor's thread."""


class Supervisor:
    """See the top of this file."""

    def __init__(self, engine: Supervised, name: str) -> None:
        self._engine = engine
        self._watcher = ExitWatcher()
        self._by_identity: dict[ProcessIdentity, Lane] = {}
        self._poke_reader, self._poke_writer = os.pipe()
        # Whoever takes them out of here closes them.
        self._pipe = [(self._poke_reader, self._poke_writer)]
        # Who is just writing into it, and whether it may be written into.
        self._poking: list[None] = []
        self._pokable = True
        os.set_blocking(self._poke_reader, False)
        os.set_blocking(self._poke_writer, False)
        self._requests: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name=f"{name}-supervisor", daemon=True)
        #: When it looks next without being poked (monotonic).
        self.looks_at: float = 0.0
        self._sample_at = 0.0
        self._gone: list[Lane] = []
        # Whether the thread looks after all this, or it was discarded before. Who comes first decides, in one
        # step.
        self._claims: dict[None, str] = {}

    # -- from other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        # Daemon: the interpreter joins other threads before any exit handler of ours could stop this one. The
        # pool's end joins it.
        self._thread.start()

    def discard(self) -> bool:
        """Give back what the system lent, for there is to be no thread; False when it runs already."""
        discarded = self._claims.setdefault(None, "discarded") == "discarded"
        if discarded:
            self._watcher.close()
            self._close_pipe()
        return discarded

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread; True when it has ended (or this is it)."""
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def poke(self) -> None:
        """Have the thread look now."""
        # No lock, because a `__del__` may call this at any moment, in the middle of another poke, too. In a
        # reference cycle that is just being collected, the pipe may be gone before whoever pokes.
        self._poking.append(None)
        try:
            if self._pokable:
                os.write(self._poke_writer, b"!")
        except BlockingIOError:
            # Full of pokes: it is going to look.
            return
        finally:
            self._poking.pop()
            if not self._pokable:
                self._close_pipe_unless_poked()

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: there is no thread to poke, and the pipe is the parent's, too."""
        self._pokable = False
        self._close_pipe()

    def request(self, what: Callable[[], None]) -> None:
        """Have the thread do something."""
        self._requests.append(what)
        self.poke()

    def add(self, lane: Lane) -> None:
        """Watch a worker that has been started (before the thread runs, or in it)."""
        if lane.identity is None:
            self._gone.append(lane)
            # It had ended before anybody could look at it, or could not be looked at (no descriptor left).
            # Then it cannot be watched, and must not stay when it is buried.
            if lane.process is not None:
                lane.process.kill()
        elif not self._watcher.add(lane.identity):
            self._gone.append(lane)
        else:
            self._by_identity[lane.identity] = lane

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._claims.setdefault(None, "looked after") == "discarded":
            return
        attempt(self._engine.begun)
        failures = 0
        over = False
        while not over:
            try:
                over = self._take_turn()
                failures = 0
            except BaseException as error:  # noqa: BLE001  whatever it is, everybody depends on this thread
                failures += 1
                if failures == 1:
                    report()
                over = self._bear(error, failures)
        attempt(self._watcher.close)
        attempt(self._engine.over)
        self._pokable = False
        self._close_pipe_unless_poked()

    def _take_turn(self) -> bool:
        """Do what there is to do, then sleep; True when all is over."""
        engine = self._engine
        while self._gone:
            # It stays there until all is done: after an exception that is tried again.
            engine.bury(self._gone[0])
            del self._gone[0]
        while self._requests:
            self._requests.popleft()()
        if self._gone:
            return False
        now = time.monotonic()
        looks = [engine.look_after_crew(now), self._look_at_limits(now), self._look_at_stops(now)]
        if engine.is_over():
            return True
        if self._gone or self._requests:
            return False
        self.looks_at = min(*looks, engine.told_by)
        # Whoever gave a task a nearer limit before the line above took effect has been overlooked: look once
        # more, cheaply.
        wait = self._next_wait(now)
        ended, poked = self._watcher.wait(wait, also=self._poke_reader)
        if poked:
            read_available(self._poke_reader)
        for process in ended:
            lane_or_none = self._by_identity.pop(process, None)
            if lane_or_none is not None:
                self._gone.append(lane_or_none)
        return False

    def _bear(self, error: BaseException, failures: int) -> bool:
        """A turn has failed, the last one of so many in a row; True when there is no use in another one."""
        engine = self._engine
        if failures >= _MOST_FAILURES:
            broken = PoolBroken(
                f"the thread that looks after the workers of {engine.options.name} failed {failures} times "
                f"in a row, lastly with {type(error).__name__}: {error}"
            )
            broken.__cause__ = error
            if failures >= 2 * _MOST_FAILURES:
                attempt(lambda: engine.give_up(broken))
                return True
            # Again each time, should that be what fails.
            attempt(lambda: engine.break_down(broken))
        time.sleep(min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))
        return False

    def _next_wait(self, now: float) -> float | None:
        looks_at = min(self.looks_at, self._look_at_limits(now))
        self.looks_at = looks_at
        if looks_at == NEVER:
            return None
        return max(looks_at - time.monotonic(), 0.0)

    def _close_pipe_unless_poked(self) -> None:
        # Whoever has found it pokable is noted, and may be about to write: its number must not be another
        # file's meanwhile. The last one of them closes it.
        if not self._poking:
            self._close_pipe()

    def _close_pipe(self) -> None:
        try:
            pipe = self._pipe.pop()
        except IndexError:
            return
        for end in pipe:
            os.close(end)

    def __del__(self) -> None:
        if hasattr(self, "_pipe"):
            self._close_pipe()

    # -- limits ----------------------------------------------------------------------------------------------

    def _look_at_limits(self, now: float) -> float:
        """Stop what is over its limit; when to look again."""
        engine = self._engine
        dispatcher = engine.dispatcher
        if not dispatcher.ledger.live:
            with dispatcher.lock:
                # A task may just have come.
                if not dispatcher.ledger.live:
                    dispatcher.shortest_timeout = NEVER
                    return NEVER
        # Something with a limit may begin at any moment; it can be over its limit no sooner than this.
        next_look = now + dispatcher.shortest_timeout
        sample = now >= self._sample_at
        limit = engine.options.max_memory_bytes
        if sample:
            self._sample_at = now + (_SAMPLE_WITHOUT if limit is None else _SAMPLE_WITH_LIMIT)
        next_look = min(next_look, self._sample_at)
        with dispatcher.lock:
            lanes = [lane for lane in dispatcher.lanes.values() if lane.sent or lane.set_aside]
        if sample:
            self._look_whether_stopped(lanes)
        for lane in lanes:
            measured = 0
            if sample:
                measured, _ = lane.running_since()
                lane.rss_bytes = rss_bytes(lane.pid) or lane.rss_bytes
            is_big = limit is not None and lane.rss_bytes is not None and lane.rss_bytes > limit
            stop = lane.stop
            if stop is not None:
                if is_big and stop.number == measured and stop.stage < _KILLED:
                    # It must not use its grace period to take what is left of the memory.
                    self._doom(lane, stop, _KILLED)
                continue
            with dispatcher.lock:
                number, started = lane.running_since()
                task = lane.sent.get(number)
                # Only of the task that ran while it was measured: the next one may be innocent.
                if is_big and task is not None and number == measured:
                    reason = TOO_BIG
                elif task is not None and task.timeout is not None:
                    due = started / 1e9 + task.timeout
                    reason = TIMED_OUT if now >= due else ""
                    if not reason:
                        next_look = min(next_look, due)
                else:
                    reason = ""
            if reason and task is not None:
                self.stop_task(lane, task, reason)
        return next_look

    def _look_whether_stopped(self, lanes: list[Lane]) -> None:
        engine = self._engine
        settlements: Settlements = []
        for lane in lanes:
            with engine.dispatcher.lock:
                if lane.key in engine.dispatcher.lanes:
                    engine.dispatcher.look_whether_stopped(lane, settlements)
        engine.collector.settle_surely(settlements)

    def stop_task(self, lane: Lane, task: Task, reason: str) -> None:
        """Begin to stop a running task (in this thread)."""
        engine = self._engine
        dispatcher = engine.dispatcher
        settlements: Settlements = []
        stop: Stop | None = None
        with dispatcher.lock:
            dispatcher.drain_lane(lane, settlements)
            if task.number in lane.sent and lane.stop is None and lane.key in dispatcher.lanes:
                # Decided before anything is done to the worker: already the signal that asks for its stack
                # may end a system call of the task.
                if not task.ending:
                    task.ending = reason
                stop = lane.stop = Stop(task.number, engine.options.max_memory_bytes)
                lane.ready = False
                # The others need not wait for it.
                dispatcher.give_to_others(lane, settlements)
        engine.collector.settle_surely(settlements)
        if stop is None:
            return
        if reason == TIMED_OUT:
            # Good to have, and no more than that: whatever happens, the task must be stopped.
            attempt(lambda: self._ask_for_stack(lane, stop))
        settlements = []
        with dispatcher.lock:
            if stop.ended is not None:
                # It ended while its stack was being written.
                settlements.append((stop.ended, RAISED, ending_error(stop.ended, lane)))
                dispatcher.stop_is_over(lane)
                dispatcher.fill()
            else:
                stop.stage = _INTERRUPTED
                stop.due = time.monotonic() + engine.options.grace_period
        engine.collector.settle_surely(settlements)
        if lane.stop is not stop:
            return
        if reason == TOO_BIG:
            # Every moment of grace may cost the machine its memory.
            self._doom(lane, stop, _KILLED)
        else:
            lane.words[STOP] = task.number
            if lane.identity is not None:
                families.send_signal_if_allowed(lane.identity, signal.SIGINT)

    def _ask_for_stack(self, lane: Lane, stop: Stop) -> None:
        stop.stack = live_stack(lane, _STACK_SECONDS)

    def _look_at_stops(self, now: float) -> float:
        """Take the next step where a grace period is over; when to look again."""
        dispatcher = self._engine.dispatcher
        next_look = NEVER
        with dispatcher.lock:
            lanes = [lane for lane in dispatcher.lanes.values() if lane.stop is not None]
        for lane in lanes:
            stop: Stop | None = lane.stop
            if stop is None:
                continue
            if stop.stage < _KILLED and now >= stop.due:
                self._doom(lane, stop, stop.stage + 1)
            if stop.stage < _KILLED:
                next_look = min(next_look, stop.due)
        return next_look

    def _doom(self, lane: Lane, stop: Stop, stage: int) -> None:
        """Terminate or kill a worker, unless it has let go of the task at last."""
        engine = self._engine
        dispatcher = engine.dispatcher
        settlements: Settlements = []
        with dispatcher.lock:
            dispatcher.drain_lane(lane, settlements)
            alive = lane.stop is stop and lane.key in dispatcher.lanes
            if alive and stop.stage < _TERMINATED:
                # From here on it gets no task any more: it must not begin an innocent one just before the
                # signal arrives. The lock is never given back; it goes with the worker.
                locked = dispatcher.lock_inbox(lane)
                if stop.number in lane.sent:
                    lane.leaving = lane.doomed = True
                else:
                    alive = False
                    dispatcher.stop_is_over(lane)
                    if locked:
                        lane.unlock_inbox()
            # Whoever has become idle may take what waits behind a task of another one.
            dispatcher.fill()
        engine.collector.settle_surely(settlements)
        if not alive:
            return
        # Should an exception come from here on (no descriptor to look for its descendants with), this step is
        # taken again.
        stop.stage = stage - 1
        stop.due = 0.0
        if lane.identity is not None:
            if stage == _TERMINATED:
                families.send_signal_if_allowed(lane.identity, signal.SIGTERM)
            else:
                families.kill_families([lane.identity])
        stop.stage = stage
        stop.due = time.monotonic() + engine.options.grace_period

    def terminate(self, lane: Lane) -> None:
        """Send SIGTERM (in this thread), also to what its task has started."""
        lane.doomed = True
        if lane.identity is None:
            return
        if lane.running():
            families.signal_families([lane.identity], signal.SIGTERM)
        else:
            # What earlier tasks have left there is nobody's business.
            families.send_signal_if_allowed(lane.identity, signal.SIGTERM)

    def kill(self, lane: Lane) -> None:
        """Kill a worker and its descendants (in this thread)."""
        lane.doomed = True
        if lane.identity is not None:
            families.kill_families([lane.identity])

    def cancel_running(self, task: Task) -> None:
        """Stop a task that was cancelled while it ran (in this thread)."""
        dispatcher = self._engine.dispatcher
        lane = dispatcher.lanes.get(task.worker)
        if lane is not None and lane.stop is None and task.number in lane.sent:
            self.stop_task(lane, task, CANCELLED)

    # -- starting --------------------------------------------------------------------------------------------

    def start_worker(self) -> PoolBroken | None:
        """Start one replacement (in this thread); the error, once there is no more hope."""
        engine = self._engine
        try:
            lane = engine.crew.start()
        except Exception as error:  # noqa: BLE001  whatever it is, the pool has to say it in the end
            return engine.crew.note_error(error)
        self.add(lane)
        return None
