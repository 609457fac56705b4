"""Time limits, memory limits and cancelling: a task that runs and must not go on is stopped.

It is interrupted, its worker is then terminated, and then killed, with a grace period after each; what it has
started ends with it (see `Programs`). All of this happens in the supervisor's thread.
"""

from __future__ import annotations

import signal

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, family_tree, identity, signalling
from mpkit._platform.resources.memory import rss_bytes
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.inbox import lock_inbox
from mpkit.pool._engine.lane import Lane, Stop
from mpkit.pool._engine.ledger import TIMED_OUT, TOO_BIG, Task
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.reports import attempt
from mpkit.pool._engine.settlements import ending_error
from mpkit.pool._engine.stacks import live_stack
from mpkit.pool._protocol.channel import RAISED, STARTED, STOP

#: How often the memory of running workers is read: with a limit, and without one (for the error should one of
#: them die).
_SAMPLE_WITH_LIMIT = 0.05
_SAMPLE_WITHOUT = 1.0
#: The first time not at once: the first task has just begun, and somebody waits for it.
_FIRST_SAMPLE = 0.05
#: With few tasks the shortest limit is looked for this seldom.
_FEW_LOOKS = 16
#: How often is looked after what need not be seen at once.
_LOOK_AROUND = 1.0
#: How many children of one worker are noted, should it die (each costs a tenth of a millisecond), of how many
#: of its threads (each a hundredth).
_MOST_CHILDREN = 100
_MOST_THREADS = 20
#: How long a worker may take to write its stack before it is stopped all the same.
_STACK_SECONDS = 0.1

# How far a stop has come.
_INTERRUPTED = 1
_TERMINATED = 2
_KILLED = 3


class Limits:
    """Finds the tasks that must not go on, and stops them."""

    def __init__(
        self, options: PoolOptions, dispatcher: Dispatcher, collector: Collector, programs: Programs
    ) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._collector = collector
        self._programs = programs
        # When the memory of the workers is read next, and when it is looked around.
        self._sample_at = self._look_around_at = CLOCK.monotonic() + _FIRST_SAMPLE
        # Since the shortest time limit was looked for last.
        self._looks = 0

    def look_at_running(self, now: float) -> float:
        """Stop what has been cancelled, or is over its limit; when to look again."""
        dispatcher = self._dispatcher
        if not dispatcher.ledger.live:
            with dispatcher.lock:
                # A task may just have come.
                if not dispatcher.ledger.live:
                    dispatcher.shortest_timeout = NEVER
                    return NEVER
        # Something with a limit may begin at any moment; it can be over its limit no sooner than this.
        next_look = now + self._shortest_timeout()
        sample = now >= self._sample_at
        limit = self._options.max_memory_bytes
        if sample:
            self._sample_at = now + (_SAMPLE_WITHOUT if limit is None else _SAMPLE_WITH_LIMIT)
        with dispatcher.lock:
            lanes = [lane for lane in dispatcher.lanes.values() if lane.sent or lane.set_aside]
        if now >= self._look_around_at:
            self._look_around_at = now + _LOOK_AROUND
            self._look_around(lanes)
        next_look = min(next_look, self._sample_at, self._look_around_at)
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
                    self._take_step(lane, stop, _KILLED)
                continue
            with dispatcher.lock:
                number, started = lane.running_since()
                task = lane.sent.get(number)
                reason = "" if task is None else task.ending
                # Only of the task that ran while it was measured: the next one may be innocent.
                if is_big and task is not None and number == measured:
                    reason = TOO_BIG
                elif task is not None and task.timeout is not None and not reason:
                    due = started / 1e9 + task.timeout
                    if now >= due:
                        reason = TIMED_OUT
                    else:
                        next_look = min(next_look, due)
            if reason and task is not None:
                self._stop_task(lane, task, reason)
        return next_look

    def _shortest_timeout(self) -> float:
        """The shortest time limit of the tasks there are, or were a while ago.

        A pool that always has tasks would else be looked at for ever as often as one task needed it once. To
        go through all of them takes as many looks as there are tasks, so each look costs the same.
        """
        dispatcher = self._dispatcher
        if dispatcher.shortest_timeout != NEVER:
            self._looks += 1
            if self._looks > dispatcher.ledger.live + _FEW_LOOKS:
                self._looks = 0
                with dispatcher.lock:
                    dispatcher.shortest_timeout = dispatcher.ledger.shortest_timeout()
        return dispatcher.shortest_timeout

    def _look_around(self, lanes: list[Lane]) -> None:
        """What may take a second to be seen."""
        dispatcher = self._dispatcher
        with self._collector.telling() as settlements:
            for lane in lanes:
                with dispatcher.lock:
                    if lane.key in dispatcher.lanes:
                        dispatcher.look_whether_stopped(lane, settlements)
                        dispatcher.look_whether_sane(lane)
            self._collector.settle(settlements)
        # It sees whether one worker idles while another one has more than it can do: where nobody waits for
        # outcomes, no worker rings as long as no task is queued.
        self._collector.wake()
        for lane in lanes:
            worker = lane.identity
            children = (
                family_tree.children_of(worker, _MOST_CHILDREN, _MOST_THREADS)
                if worker is not None and lane.running()
                else []
            )
            # It may have just died, and nothing tells then what it has started: what was seen before stays.
            if worker is None or identity.is_alive(worker):
                lane.children = children

    def _stop_task(self, lane: Lane, task: Task, reason: str) -> None:
        """Begin to stop a running task."""
        dispatcher = self._dispatcher
        stop: Stop | None = None
        with self._collector.telling() as settlements:
            with dispatcher.lock:
                dispatcher.drain_lane(lane, settlements)
                if task.number in lane.sent and lane.stop is None and lane.key in dispatcher.lanes:
                    # Decided before anything is done to the worker: already the signal that asks for its
                    # stack may end a system call of the task.
                    if not task.ending:
                        task.ending = reason
                    stop = lane.stop = Stop(task.number, self._options.max_memory_bytes)
                    lane.update_ready()
                    # The others need not wait for it.
                    dispatcher.give_to_others(lane, settlements)
                    # Of this task, perhaps ended by now: it can get no other one.
                    stop.began = lane.words[STARTED]
            self._collector.settle(settlements)
        if stop is None:
            return
        if reason == TIMED_OUT:
            # Good to have, and no more than that: whatever happens, the task must be stopped.
            attempt(lambda: self._ask_for_stack(lane, stop))
        with self._collector.telling() as settlements:
            with dispatcher.lock:
                if stop.ended is not None:
                    # It ended while its stack was being written.
                    settlements.append((stop.ended, RAISED, ending_error(stop.ended, lane)))
                    dispatcher.roster.stop_is_over(lane)
                    dispatcher.fill()
                else:
                    stop.stage = _INTERRUPTED
                    stop.due = CLOCK.monotonic() + self._options.grace_period
            self._collector.settle(settlements)
        if lane.stop is not stop:
            return
        if reason == TOO_BIG:
            # Every moment of grace may cost the machine its memory.
            self._take_step(lane, stop, _KILLED)
        else:
            if lane.identity is not None:
                stop.programs = family_tree.descendants_since(lane.identity, lane.start_clock.at(stop.began))
                # An interrupt may cost them their parent.
                parent_watch.take_along(stop.programs)
            lane.words[STOP] = task.number
            if lane.identity is not None:
                signalling.send_signal_if_allowed(lane.identity, signal.SIGINT)

    def _ask_for_stack(self, lane: Lane, stop: Stop) -> None:
        stop.stack = live_stack(lane, _STACK_SECONDS)

    def look_at_stops(self, now: float) -> float:
        """Take the next step where a grace period is over, and end what is left of stops that are over; kill
        torn workers. When to look again.
        """
        dispatcher = self._dispatcher
        next_look = NEVER
        while dispatcher.roster.stopped:
            # It stays there until all is done: after an exception that is tried again.
            self._end_programs(*dispatcher.roster.stopped[0])
            dispatcher.roster.stopped.popleft()
        with dispatcher.lock:
            lanes = list(dispatcher.lanes.values())
        for lane in lanes:
            if lane.is_torn and not lane.doomed:
                # With its descendants, which may be what has done it.
                lane.kill()
            stop: Stop | None = lane.stop
            if stop is None:
                continue
            if stop.stage < _KILLED and now >= stop.due:
                self._take_step(lane, stop, stop.stage + 1)
            if stop.stage < _KILLED:
                next_look = min(next_look, stop.due)
        return next_look

    def _end_programs(self, lane: Lane, stop: Stop) -> None:
        """A stopped task has ended, and its worker goes on: end what it has started and not ended itself."""
        worker = lane.identity
        if worker is None:
            return
        clock = lane.start_clock
        # What is later than that may be of the next task.
        end = clock.at(stop.over_at)
        later = family_tree.descendants_since(worker, clock.at(stop.began))
        # Each once, and parents before their children.
        found = dict.fromkeys([*stop.programs, *(program for program in later if program.started < end)])
        # Tasks to come need the fork server: it is the worker's, whoever had it started.
        spared = family_tree.fork_servers_of(worker) if found else ()
        self._programs.terminate(
            program for program in found if program not in spared and identity.is_alive(program)
        )

    def _take_step(self, lane: Lane, stop: Stop, stage: int) -> None:
        """Terminate or kill a worker, unless it has let go of the task at last."""
        dispatcher = self._dispatcher
        with self._collector.telling() as settlements:
            with dispatcher.lock:
                dispatcher.drain_lane(lane, settlements)
                alive = lane.stop is stop and lane.key in dispatcher.lanes
                if alive and stop.stage < _TERMINATED:
                    # From here on it gets no task any more: it must not begin an innocent one just before the
                    # signal arrives. The lock is never given back; it goes with the worker.
                    locked = lock_inbox(lane)
                    if stop.number in lane.sent:
                        lane.leaving = lane.doomed = True
                    else:
                        alive = False
                        dispatcher.roster.stop_is_over(lane)
                        if locked:
                            lane.unlock_inbox()
                # Whoever has become idle may take what waits behind a task of another one.
                dispatcher.fill()
            self._collector.settle(settlements)
        if not alive:
            return
        # Should an exception come from here on (no descriptor to look for its descendants with), this step is
        # taken again.
        stop.stage = stage - 1
        stop.due = 0.0
        if lane.identity is not None:
            since = lane.start_clock.at(stop.began)
            doomed = [lane.identity, *stop.programs]
            if stage == _TERMINATED:
                told = parent_watch.signal_to_end(doomed, signal.SIGTERM, since=since)
                self._programs.follow(process for process in told if process != lane.identity)
            else:
                families.kill_families(doomed, since=since)
        stop.stage = stage
        stop.due = CLOCK.monotonic() + self._options.grace_period
