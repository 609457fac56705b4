"""Stops running tasks: those over their time limit or memory limit, and those that have been cancelled.

The task is interrupted; if it goes on, its worker is terminated, and then killed, with a grace period after
each step. What the task has started ends with it (see `Programs`). All of this
happens in the supervisor's thread.
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
from mpkit.pool._engine.lane import INTERRUPTED, KILLED, TERMINATED, Lane, Stop
from mpkit.pool._engine.ledger import TIMED_OUT, TOO_BIG, Task
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.settlements import ending_error
from mpkit.pool._engine.stacks import live_stack
from mpkit.pool._engine.threads import attempt
from mpkit.pool._protocol.channel import RAISED, STARTED, STOP

#: Seconds between two readings of the memory of running workers, if there is a limit, ...
_SAMPLE_WITH_LIMIT_SECONDS = 0.05
#: ... and if there is none. (`WorkerCrashed` says how much memory the worker had.)
_SAMPLE_WITHOUT_SECONDS = 1.0
#: The first reading comes so many seconds later: the first task has just begun, and somebody waits for it.
_FIRST_SAMPLE_SECONDS = 0.05
#: How many more checks than there are tasks lie between two searches for the shortest time limit.
_FEW_LOOKS = 16
#: Seconds between two checks of what need not be noticed at once.
_LOOK_AROUND_SECONDS = 1.0
#: How many children of one worker are noted in case it dies (each costs a tenth of a millisecond), ...
_MOST_CHILDREN = 100
#: ... and of how many of its threads (each costs a hundredth).
_MOST_THREADS = 20
#: How long a worker may take to write its stack before the next step is taken anyway.
_STACK_SECONDS = 0.1


class Limits:
    """Finds the running tasks of one pool that have to be stopped, and stops them."""

    def __init__(
        self, options: PoolOptions, dispatcher: Dispatcher, collector: Collector, programs: Programs
    ) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._collector = collector
        self._programs = programs
        # When to read the memory of the workers next, and when to call `_look_around`.
        self._sample_at = self._look_around_at = CLOCK.monotonic() + _FIRST_SAMPLE_SECONDS
        # How many checks there have been since the last search for the shortest time limit.
        self._looks = 0

    def look_at_running(self, now: float) -> float:
        """Stop tasks that have been cancelled or are over a limit; returns when to look again."""
        dispatcher = self._dispatcher
        if not dispatcher.ledger.live:
            with dispatcher.lock:
                # Checked again under the lock: a task may just have been submitted.
                if not dispatcher.ledger.live:
                    dispatcher.shortest_timeout = NEVER
                    return NEVER
        # A task with a time limit may begin at any moment. It cannot be over the limit before this.
        next_look = now + self._shortest_timeout()
        sample = now >= self._sample_at
        if sample:
            limited = self._options.max_memory_bytes is not None
            self._sample_at = now + (_SAMPLE_WITH_LIMIT_SECONDS if limited else _SAMPLE_WITHOUT_SECONDS)
        with dispatcher.lock:
            lanes = [lane for lane in dispatcher.lanes.values() if lane.sent or lane.set_aside]
        if now >= self._look_around_at:
            self._look_around_at = now + _LOOK_AROUND_SECONDS
            self._look_around(lanes)
        next_look = min(next_look, self._sample_at, self._look_around_at)
        for lane in lanes:
            next_look = min(next_look, self._look_at_task(lane, now, self._measure(lane) if sample else 0))
        return next_look

    def _measure(self, lane: Lane) -> int:
        """Read the memory of a worker; returns the task that it was running if over the limit, else 0."""
        # Read first: the memory is not held against a task that begins after this.
        number, _ = lane.running_since()
        lane.rss_bytes = rss_bytes(lane.pid) or lane.rss_bytes
        limit = self._options.max_memory_bytes
        is_big = limit is not None and lane.rss_bytes is not None and lane.rss_bytes > limit
        return number if is_big else 0

    def _look_at_task(self, lane: Lane, now: float, too_big: int) -> float:
        """Stop what a worker is running if it has been cancelled, or is over a limit, or is task `too_big`.

        Returns:
            When its time limit will be over; `NEVER` if it has none, or is being stopped.
        """
        stop = lane.stop
        if stop is not None:
            if stop.number == too_big and stop.stage < KILLED:
                # It must not use its grace period to take the rest of the memory.
                self._take_step(lane, stop, KILLED)
            return NEVER
        due = NEVER
        with self._dispatcher.lock:
            number, started = lane.running_since()
            task = lane.sent.get(number)
            if task is None:
                return NEVER
            reason = task.ending
            if number == too_big:
                reason = TOO_BIG
            elif task.timeout is not None and not reason:
                due = started / 1e9 + task.timeout
                if now >= due:
                    reason = TIMED_OUT
        if not reason:
            return due
        self._stop_task(lane, task, reason)
        return NEVER

    def _shortest_timeout(self) -> float:
        """The shortest time limit of the tasks there are, or there were a while ago.

        It has to be searched for again from time to time: otherwise a pool that always has tasks would be
        checked for ever as often as one task once required. A search takes time for each task, so there is
        one search for about as many checks as there are tasks.
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
        """Check what need not be noticed at once: stopped, torn and idle workers, and workers' children."""
        dispatcher = self._dispatcher
        for lane in lanes:
            with self._collector.under_lock() as settlements:
                if lane.key in dispatcher.lanes:
                    dispatcher.check_stopped(lane, settlements)
                    dispatcher.check_sane(lane)
        # This moves tasks from busy workers to idle ones. If no thread waits for outcomes and no task is
        # queued, workers do not ring for that.
        self._collector.wake()
        for lane in lanes:
            worker = lane.identity
            children = (
                family_tree.children_of(worker, _MOST_CHILDREN, _MOST_THREADS)
                if worker is not None and lane.running()
                else []
            )
            # If it has just died, its children can no longer be found: keep those that were seen before.
            if worker is None or identity.is_alive(worker):
                lane.children = children

    def _stop_task(self, lane: Lane, task: Task, reason: str) -> None:
        """Begin to stop a running task."""
        dispatcher = self._dispatcher
        stop: Stop | None = None
        with self._collector.under_lock() as settlements:
            dispatcher.drain_lane(lane, settlements)
            if task.number in lane.sent and lane.stop is None and lane.key in dispatcher.lanes:
                # Decided before anything is done to the worker, because even the signal that asks for its
                # stack may end a system call of the task.
                before, task.ending = task.ending, task.ending or reason
                stop = lane.stop = Stop(task.number, self._options.max_memory_bytes)
                lane.update_ready()
                # Tasks behind this one need not wait for it, and from here on the worker begins no other.
                dispatcher.give_to_others(lane, settlements)
                if lane.running() == task.number:
                    stop.began = lane.words[STARTED]
                else:
                    # It has ended since its outcome was looked for, so the worker may have begun the next
                    # task. What that has started must not be taken for its own.
                    task.ending = before
                    stop = lane.stop = None
                    lane.update_ready()
                    dispatcher.drain_lane(lane, settlements)
                    dispatcher.fill()
        if stop is None:
            return
        if reason == TIMED_OUT:
            # The stack is helpful, but if getting it fails, the task must be stopped nevertheless.
            attempt(lambda: self._ask_for_stack(lane, stop))
        with self._collector.under_lock() as settlements:
            if stop.ended is not None:
                # It ended while its stack was being written.
                settlements.append((stop.ended, RAISED, ending_error(stop.ended, lane)))
                dispatcher.roster.stop_is_over(lane)
                dispatcher.fill()
            else:
                stop.stage = INTERRUPTED
                stop.due = CLOCK.monotonic() + self._options.grace_period
        if lane.stop is not stop:
            return
        if reason == TOO_BIG:
            # Without a grace period, in which it might take the rest of the memory.
            self._take_step(lane, stop, KILLED)
        else:
            self._interrupt(lane, stop)

    def _interrupt(self, lane: Lane, stop: Stop) -> None:
        """Interrupt a task, and note what it has started."""
        worker = lane.identity
        if worker is None:
            return
        # Before the interrupt, which may end their parents: then they could no longer be found.
        programs = family_tree.descendants_since(worker, lane.start_clock.at(stop.began))
        with self._dispatcher.lock:
            if lane.stop is not stop:
                # It has ended meanwhile, and some of these may be what the next task has started.
                return
            stop.programs = programs
        parent_watch.take_along(programs)
        # If it ends now, this has no effect: the worker ignores an interrupt for another task.
        lane.words[STOP] = stop.number
        signalling.send_signal_if_allowed(worker, signal.SIGINT)

    def _ask_for_stack(self, lane: Lane, stop: Stop) -> None:
        stop.stack = live_stack(lane, _STACK_SECONDS)

    def look_at_stops(self, now: float) -> float:
        """Take the next step of each stop whose grace period is over; returns when to look again.

        Also ends what tasks have started whose stops are over, and kills torn workers.
        """
        dispatcher = self._dispatcher
        next_look = NEVER
        while dispatcher.roster.stopped:
            # Removed only when this is done: after an exception it is tried again.
            self._end_programs(*dispatcher.roster.stopped[0])
            dispatcher.roster.stopped.popleft()
        with dispatcher.lock:
            lanes = list(dispatcher.lanes.values())
        for lane in lanes:
            if lane.is_torn and not lane.doomed:
                # With its descendants: it may be one of these that has written over the shared memory.
                lane.kill()
            stop: Stop | None = lane.stop
            if stop is None:
                continue
            if stop.stage < KILLED and now >= stop.due:
                self._take_step(lane, stop, stop.stage + 1)
            if stop.stage < KILLED:
                next_look = min(next_look, stop.due)
        return next_look

    def _end_programs(self, lane: Lane, stop: Stop) -> None:
        """A stopped task has ended, and its worker goes on: end what it has started and not ended itself."""
        worker = lane.identity
        if worker is None:
            return
        clock = lane.start_clock
        # What was started later may belong to the next task.
        end = clock.at(stop.over_at)
        later = family_tree.descendants_since(worker, clock.at(stop.began))
        # A dictionary, so that each is there once, and parents come before their children.
        found = dict.fromkeys([*stop.programs, *(program for program in later if program.started < end)])
        # The fork server of the worker stays, even if this task had it started: later tasks need it.
        spared = family_tree.fork_servers_of(worker) if found else ()
        self._programs.terminate(
            program for program in found if program not in spared and identity.is_alive(program)
        )

    def _take_step(self, lane: Lane, stop: Stop, stage: int) -> None:
        """Take the step `TERMINATED` or `KILLED` (`stage`), unless the worker has let go of the task."""
        dispatcher = self._dispatcher
        with self._collector.under_lock() as settlements:
            dispatcher.drain_lane(lane, settlements)
            alive = lane.stop is stop and lane.key in dispatcher.lanes
            if alive and stop.stage < TERMINATED:
                # From now on the worker must not begin a task: it would be killed in the middle of it. The
                # lock is never released if the worker is terminated.
                locked = lane.lock_inbox()
                if stop.number in lane.sent:
                    lane.leaving = lane.doomed = True
                else:
                    alive = False
                    dispatcher.roster.stop_is_over(lane)
                    if locked:
                        lane.unlock_inbox()
            # If the worker has become idle, it may take tasks that wait behind one of another worker.
            dispatcher.fill()
        if not alive:
            return
        # So that this step is taken again after an exception in the lines below (for a lack of descriptors,
        # say).
        stop.stage = stage - 1
        stop.due = 0.0
        if lane.identity is not None:
            since = lane.start_clock.at(stop.began)
            doomed = [lane.identity, *stop.programs]
            if stage == TERMINATED:
                told = parent_watch.signal_to_end(doomed, signal.SIGTERM, since=since)
                self._programs.follow(process for process in told if process != lane.identity)
            else:
                families.kill_families(doomed, since=since)
        stop.stage = stage
        stop.due = CLOCK.monotonic() + self._options.grace_period
