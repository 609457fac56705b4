"""The state of a pool and its workers at one moment, as immutable objects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolStatistics:
    """How many tasks a pool has, and what happened to those that have ended.

    A chunk of a map counts as one task, and so does a group of short items of an imap.

    Attributes:
        workers: Worker processes now, including those that are starting or leaving.
        idle: Workers that are ready and have no task.
        running: Workers that are running a task.
        queued: Tasks that no worker has begun.
        submitted: Tasks ever submitted.
        succeeded: Tasks that returned.
        failed: Tasks that raised or exceeded a limit, or that could not run because the pool is broken.
        cancelled: Tasks that were cancelled, or ended by `terminate`.
        crashed: Tasks whose worker died while it ran them, without retries left.
        retried: How often a task was sent again because its worker had died.
        workers_started: Worker processes ever started.
    """

    workers: int
    idle: int
    running: int
    queued: int
    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    crashed: int
    retried: int
    workers_started: int


@dataclass(frozen=True)
class WorkerSnapshot:
    """One worker at one moment.

    Attributes:
        pid: Its process id.
        state: ``"starting"``, ``"initializing"``, ``"idle"``, ``"running"`` or ``"leaving"``.
        task_id: The number of the task that it is running, or None.
        function: The name of the function that this task calls, or None.
        running_s: Seconds since that task began, or None.
        tasks_done: Tasks that it has finished.
        rss_bytes: Its resident memory, or None if that cannot be read.
        cpu_percent: CPU time since it started, in percent of one CPU, or None if that cannot be read.
    """

    pid: int
    state: str
    task_id: int | None
    function: str | None
    running_s: float | None
    tasks_done: int
    rss_bytes: int | None
    cpu_percent: float | None
