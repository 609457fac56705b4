"""Indexing with several processes: what each of them does, and how all of them end, whatever happens."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mpkit import BoundedQueue, LockedCounter, TaskPool, WorkerProcess
from mpkit.cli.demo import measure, store
from mpkit.cli.demo.measure import FileFacts
from mpkit.cli.demo.observer import Observer, Usage
from mpkit.cli.demo.progress import Amount
from mpkit.errors import QueueShutDown

if TYPE_CHECKING:
    from mpkit.cli.demo.progress import ProgressLine

#: The bound of the queue: large enough that the workers need not wait for a slow commit of the writer.
_MAX_WAITING_ROWS = 1000
#: How many files per worker are sent ahead, and so are unfinished if the work is interrupted.
_AHEAD = 16


@dataclass(frozen=True)
class Outcome:
    """The outcome of indexing with a pool.

    Attributes:
        seconds: elapsed seconds, from the start until the last row was on disk.
        rows: how many files the writer has written.
        counted: what the counters say.
        workers: how many workers the pool has.
        tasks: how many files each worker has measured, by pid; without those that have measured none.
        used: what each process has used, by pid.
        writer_pid: the pid of the writer.
    """

    seconds: float
    rows: int
    counted: Amount
    workers: int
    tasks: Counter[int]
    used: dict[int, Usage]
    writer_pid: int


def index(root: str, database: str, *, processes: int | None, line: ProgressLine) -> Outcome:
    """Measure every Python file below `root` in a pool, and write the results to `database`.

    Ctrl-C, or any other exception, ends the pool at once. Rows that the workers had put into the queue are
    still written, and the writer closes the database before this function raises the exception.
    """
    started = time.perf_counter()
    with (
        closing(LockedCounter()) as files,
        closing(LockedCounter()) as size_bytes,
        BoundedQueue[FileFacts](_MAX_WAITING_ROWS) as rows,
    ):
        writer = WorkerProcess.call(write_rows, database, rows)
        with writer:
            observer = Observer(writer, rows, lambda: Amount(files.value, size_bytes.value), line)
            try:
                workers, tasks = _measure_all(root, processes, Tools(root, rows, files, size_bytes), observer)
            except QueueShutDown:
                # The queue is shut down this early only if the writer has failed: raise its error instead.
                writer.result()
                raise
            finally:
                # The writer takes the rows that are in the queue, and then ends.
                rows.shutdown()
                writer.join()
            return Outcome(
                seconds=time.perf_counter() - started,
                rows=writer.result(),
                counted=Amount(files.value, size_bytes.value),
                workers=workers,
                tasks=tasks,
                used=observer.usage(),
                writer_pid=writer.pid or 0,
            )


def _measure_all(
    root: str, processes: int | None, tools: Tools, observer: Observer
) -> tuple[int, Counter[int]]:
    """Have a pool measure all files; returns how many workers it has, and how many files each measured."""
    with TaskPool(processes, initializer=prepare, initargs=(tools,)) as pool, observer.looking_at(pool):
        workers = len(pool.workers())
        # A generator: files are listed only as fast as the workers measure them.
        files = measure.python_files(root)
        tasks = Counter(pool.imap_unordered(index_one, files, buffersize=_AHEAD * workers))
        observer.look()
        return workers, tasks


class Tools(NamedTuple):
    """What a worker needs for each file; it gets this once, when it starts."""

    root: str
    rows: BoundedQueue[FileFacts]
    files: LockedCounter
    size_bytes: LockedCounter


_tools: Tools | None = None


def prepare(tools: Tools) -> None:
    """Initialize a worker: called in each of them when it starts."""
    global _tools
    _tools = tools


def index_one(path: str) -> int:
    """Called in a worker for each file: measure it, send the row, count it. Returns the worker's pid."""
    assert _tools is not None, "prepare() runs first"
    facts = measure.measure(_tools.root, path)
    _tools.rows.put(facts)
    _tools.files.add()
    _tools.size_bytes.add(facts.size_bytes)
    return os.getpid()


def write_rows(database: str, rows: BoundedQueue[FileFacts]) -> int:
    """The target of the writer: write rows until the queue is shut down and empty; returns their number."""
    # Ctrl-C in a terminal reaches every process of the program. The writer ignores it and ends with its
    # queue, so that everything that was sent to it gets written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    written = 0
    try:
        with store.writing(database) as connection:
            while True:
                try:
                    batch = rows.get_many()
                except QueueShutDown:
                    return written
                written += store.add(connection, batch)
    finally:
        # If writing has failed (the disk is full, say), workers that wait for room in the
        # queue must not wait for ever.
        rows.shutdown(immediate=True)
