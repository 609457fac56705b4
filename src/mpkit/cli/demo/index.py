"""Indexing with many processes: who does what, and how it comes to a good end whatever happens."""

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

# Enough that the workers need not wait for one slow commit of the writer, little enough to be a bound.
_MAX_WAITING_ROWS = 1000
# Files handed out ahead of the workers, for each worker: what is in flight when the work is interrupted.
_AHEAD = 16


@dataclass(frozen=True)
class Outcome:
    """What indexing with a pool came to.

    Attributes:
        seconds: from the start to the last row on disk.
        rows: how many files the writer has written.
        counted: what the counters say.
        workers: how many workers the pool has.
        tasks: how many files each of them did, by pid; one that came too late for any is not in it.
        used: what each process used, by pid.
        writer_pid: which of them is the writer.
    """

    seconds: float
    rows: int
    counted: Amount
    workers: int
    tasks: Counter[int]
    used: dict[int, Usage]
    writer_pid: int


def index(root: str, database: str, *, processes: int | None, line: ProgressLine) -> Outcome:
    """Measure every Python file below `root` in a pool, and write what is found to `database`.

    Ctrl-C, like any other exception, ends the pool at once; rows that the workers had handed over are
    still written, and the writer closes the database before this function raises.
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
                # Only a writer that failed shuts the queue down this early: what ended it is the error to
                # show.
                writer.result()
                raise
            finally:
                # The writer takes what is in the queue and then ends by itself.
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
    """Have every file measured by a pool; how many workers it has, and how many files each one did."""
    with TaskPool(processes, initializer=prepare, initargs=(tools,)) as pool, observer.looking_at(pool):
        workers = len(pool.workers())
        # The folder is walked as the workers get on: little is listed ahead, and nothing is kept.
        files = measure.python_files(root)
        tasks = Counter(pool.imap_unordered(index_one, files, buffersize=_AHEAD * workers))
        observer.look()
        return workers, tasks


class Tools(NamedTuple):
    """What a worker needs for every file, given to it once when it starts."""

    root: str
    rows: BoundedQueue[FileFacts]
    files: LockedCounter
    size_bytes: LockedCounter


_tools: Tools | None = None


def prepare(tools: Tools) -> None:
    """Runs in each worker when it starts."""
    global _tools
    _tools = tools


def index_one(path: str) -> int:
    """Runs in a worker for each file: measure it, hand over the row, count it. Returns the worker's pid."""
    assert _tools is not None, "prepare() runs first"
    facts = measure.measure(_tools.root, path)
    _tools.rows.put(facts)
    _tools.files.add()
    _tools.size_bytes.add(facts.size_bytes)
    return os.getpid()


def write_rows(database: str, rows: BoundedQueue[FileFacts]) -> int:
    """Runs in the writer: take rows until the queue is shut down and empty. Returns how many there were."""
    # Ctrl-C in a terminal reaches every process of the program. The writer ends when its queue does, so
    # that all that was found is on disk.
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
        # Should the writing fail (a full disk), nobody takes rows any more: those who wait for room must
        # be told.
        rows.shutdown(immediate=True)
