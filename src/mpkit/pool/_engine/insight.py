"""What a pool and its workers are doing, for `TaskPool.workers`, `statistics` and `stacks`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit._platform.resources import memory
from mpkit._platform.resources.cpu_time import cpu_seconds
from mpkit._platform.threads.clock import CLOCK
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.crew import Crew
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import ENDED, Task
from mpkit.pool._engine.stacks import live_stack
from mpkit.pool._protocol.channel import DONE, STATE, state_name

if TYPE_CHECKING:
    from mpkit.pool._engine.statistics import PoolStatistics, WorkerSnapshot

#: How long `stacks` may take for all workers together.
_STACKS_SECONDS = 1.0
#: How long it waits for a worker at least, even if the others have used up the time.
_LEAST_STACK_SECONDS = 0.01


class Insight:
    """Reads the state of a pool and its workers, in any thread."""

    def __init__(self, dispatcher: Dispatcher, collector: Collector, crew: Crew) -> None:
        self._dispatcher = dispatcher
        self._collector = collector
        self._crew = crew

    def worker_snapshots(self) -> list[WorkerSnapshot]:
        """What each worker is doing now."""
        from mpkit.pool._engine.statistics import WorkerSnapshot  # noqa: PLC0415  dataclasses load a dozen modules

        now = CLOCK.monotonic_ns()
        return [
            WorkerSnapshot(
                pid=lane.pid,
                state=_state_of(lane, number),
                task_id=number or None,
                function=function,
                running_s=max(now - started, 0) / 1e9 if number else None,
                tasks_done=lane.words[DONE],
                rss_bytes=memory.rss_bytes(lane.pid),
                cpu_percent=_cpu_percent(lane),
            )
            for lane, number, started, function in self._dispatcher.lock.run(self._look_at_lanes)
        ]

    def _look_at_lanes(self) -> list[tuple[Lane, int, int, str | None]]:
        """For each worker: the number of its task, when that began, and what it calls (holding the lock)."""
        seen: list[tuple[Lane, int, int, str | None]] = []
        for lane in self._dispatcher.lanes.values():
            number, started = lane.running_since()
            task = lane.sent.get(number)
            seen.append((lane, number, started, task.function.name if task is not None else None))
        return seen

    def running_on(self, task: Task) -> int | None:
        """The pid of the worker that is running a task at this moment, or None."""
        lane = self._dispatcher.lanes.get(task.worker)
        return lane.pid if lane is not None and lane.running() == task.number else None

    def unfinished(self) -> dict[int, str]:
        """The calls that have not ended: the name of the function by the number of a task.

        A whole map counts as one call, and so does everything that an imap has sent so far.
        """
        self._collector.look()
        tasks = self._dispatcher.lock.run(self._dispatcher.ledger.snapshot)
        one_of_each = {id(task.sink): task for task in tasks if task.state != ENDED}
        return {task.number: task.function.name for task in one_of_each.values()}

    def statistics(self) -> PoolStatistics:
        """How many tasks there are, and what happened to those that have ended."""
        from mpkit.pool._engine.statistics import PoolStatistics  # noqa: PLC0415  dataclasses load a dozen modules

        self._collector.look()
        return self._dispatcher.lock.run(self._count, PoolStatistics)

    def _count(self, statistics: type[PoolStatistics]) -> PoolStatistics:
        ledger = self._dispatcher.ledger
        lanes = self._dispatcher.lanes.values()
        running = sum(1 for lane in lanes if lane.running())
        return statistics(
            workers=len(lanes),
            idle=sum(1 for lane in lanes if lane.ready and _state_of(lane, lane.running()) == "idle"),
            running=running,
            queued=max(ledger.live - running, 0),
            submitted=ledger.submitted,
            succeeded=ledger.succeeded,
            failed=ledger.failed,
            cancelled=ledger.cancelled,
            crashed=ledger.crashed,
            retried=ledger.retried,
            workers_started=self._crew.workers_started,
        )

    def stacks(self) -> dict[int, str]:
        """The Python stack of each worker now, by pid."""
        lanes = self._dispatcher.lock.run(list, self._dispatcher.lanes.values())
        deadline = CLOCK.monotonic() + _STACKS_SECONDS
        return {
            lane.pid: live_stack(lane, max(deadline - CLOCK.monotonic(), _LEAST_STACK_SECONDS))
            for lane in lanes
        }


def _cpu_percent(lane: Lane) -> float | None:
    used, seconds = cpu_seconds(lane.pid), CLOCK.monotonic() - lane.started_at
    return None if used is None or seconds <= 0 else 100.0 * used / seconds


def _state_of(lane: Lane, running: int) -> str:
    if lane.leaving:
        return "leaving"
    return state_name(lane.words[STATE], running)
