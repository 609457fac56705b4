"""`pools`: the pools that a process has created, and what their workers are doing."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import psutil

from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect import _segments
from mpkit.introspect._processes import read
from mpkit.introspect._translate import checked_pid, find, translated
from mpkit.pool import WorkerSnapshot
from mpkit.pool._outside import WorkerRow, read_name, read_row

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class PoolSnapshot:
    """One pool at one moment, as it is seen from another process.

    Attributes:
        name: The name of its file, which identifies it.
        pid: The process that created it and sends its tasks.
        workers: Its workers, oldest first. Only the pool's own process knows the names of functions, so
            `function` is None.
        sent: How many tasks have been sent to workers and have not begun. More may be
            queued in the pool's process.
        label: The argument `name` of `TaskPool`, cut off after 255 bytes.
    """

    name: str
    pid: int
    workers: tuple[WorkerSnapshot, ...]
    sent: int
    label: str = ""


class FoundWorker(NamedTuple):
    """A worker and what its status row says."""

    process: psutil.Process
    row: WorkerRow


def pools(pid: int | None = None) -> list[PoolSnapshot]:
    """Look at every `TaskPool` that a process has created and that has not ended, without affecting it.

    Args:
        pid: The process. None, the default, is the calling process.

    Returns:
        One snapshot for each pool, in the order of their names.

    Raises:
        ProcessGone: There is no such process, or it ended while being looked at.
        AccessDenied: The system does not allow this user to examine it.
        TypeError, ValueError: `pid` is not an integer, or negative.

    Blocking: never.
    Safe from: any thread, any process.

    Examples:
        >>> from mpkit import TaskPool
        >>> with TaskPool(2, name="indexer"):
        ...     [found.label for found in pools()]
        ['indexer']
    """
    owner = find(checked_pid(pid))
    boards = [
        segment
        for segment in _segments.segments_of(owner, "pool")
        # Removing the name is the last act of a pool.
        if not segment.removed
        and (made_by := _segments.creator(segment.name)) is not None
        and made_by.pid == owner.pid
    ]
    if not boards:
        # This saves the search for workers in most processes.
        return []
    with translated(owner.pid):
        descendants = owner.children(recursive=True)
    workers: list[tuple[WorkerRow, WorkerSnapshot]] = []
    for process, row in workers_among(sorted(descendants, key=_age)):
        with contextlib.suppress(ProcessGone, AccessDenied):
            workers.append((row, _worker(process, row)))
    return [_pool(board, owner.pid, workers) for board in boards]


def worker_row(process: psutil.Process) -> WorkerRow | None:
    """The status row of a process that is a pool's worker; None for any other process.

    Raises:
        ProcessGone, AccessDenied: The process cannot be looked at.
    """
    for segment in _segments.segments_of(process, "worker"):
        with contextlib.suppress(FileNotFoundError):
            row = read_row(segment.path)
            # A forked worker has also inherited the channels of workers that were forked before it, and a
            # worker that has created a pool has those of its own workers.
            if row is not None and row.pid == process.pid:
                return row
    return None


def workers_among(processes: list[psutil.Process]) -> Iterator[FoundWorker]:
    """Those of the processes that are workers, and can be looked at."""
    for process in processes:
        with contextlib.suppress(ProcessGone, AccessDenied):
            row = worker_row(process)
            if row is not None:
                yield FoundWorker(process, row)


def _age(process: psutil.Process) -> tuple[float, int]:
    # Costs nothing: psutil has read the time already, to recognise reused pids.
    return process.create_time(), process.pid


def _worker(process: psutil.Process, row: WorkerRow) -> WorkerSnapshot:
    seen = read(process)
    return WorkerSnapshot(
        pid=process.pid,
        state=row.state,
        task_id=row.task_id,
        function=None,
        # `time.monotonic_ns` is the same clock in all processes.
        running_s=None if row.started_ns is None else max(time.monotonic_ns() - row.started_ns, 0) / 1e9,
        tasks_done=row.tasks_done,
        rss_bytes=seen.rss_bytes,
        cpu_percent=seen.cpu_percent,
    )


def _pool(
    board: _segments.OpenSegment, pid: int, workers: list[tuple[WorkerRow, WorkerSnapshot]]
) -> PoolSnapshot:
    mine = [(row, worker) for row, worker in workers if row.pool == int(board.name.rpartition("-")[2], 16)]
    label = ""
    # The pool may just have ended.
    with contextlib.suppress(OSError):
        label = read_name(board.path)
    return PoolSnapshot(
        name=board.name,
        pid=pid,
        workers=tuple(worker for _, worker in mine),
        sent=sum(row.waiting for row, _ in mine),
        label=label,
    )
