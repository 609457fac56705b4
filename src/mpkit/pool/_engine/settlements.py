"""Outcomes on their way to the sinks of tasks, and the errors of tasks that were stopped."""

from __future__ import annotations

from typing import Any

from mpkit.errors import TaskCancelled, TaskTimeout, WorkerMemoryExceeded
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import TIMED_OUT, TOO_BIG, Task

#: Outcomes that are collected under the pool's lock, and told to the sinks after it has been released: the
#: task, kind and data.
Settlements = list[tuple[Task, int, Any]]


def ending_error(task: Task, lane: Lane) -> BaseException:
    """The error of a task that was to be stopped: see `Task.ending`."""
    stop = lane.stop
    stack = stop.stack if stop is not None and stop.number == task.number else ""
    if task.ending == TIMED_OUT:
        return TaskTimeout(task_id=task.number, pid=lane.pid, timeout=task.timeout, stack=stack or None)
    if task.ending == TOO_BIG:
        limit = None if stop is None else stop.limit
        return WorkerMemoryExceeded(task_id=task.number, pid=lane.pid, rss_bytes=lane.rss_bytes, limit=limit)
    return cancelled_error(task)


def cancelled_error(task: Task) -> TaskCancelled:
    """The error of a task that was cancelled."""
    return TaskCancelled(f"task {task.number} was cancelled")


def do_nothing(*_: object) -> None:
    """The callback where nobody has set one."""
