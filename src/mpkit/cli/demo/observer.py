"""Watches the processes while the pool works: what each of them uses, and whether the writer lives."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING

from mpkit import introspect
from mpkit.errors import AccessDenied, ProcessGone

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from mpkit import BoundedQueue, TaskPool, WorkerProcess
    from mpkit.cli.demo.measure import FileFacts
    from mpkit.cli.demo.progress import Amount, ProgressLine
    from mpkit.introspect import ProcessSnapshot

#: The time between two looks.
_INTERVAL_SECONDS = 0.2


@dataclass
class Usage:
    """What a process has used so far.

    Attributes:
        cpu_s: CPU seconds.
        peak_rss_bytes: the most resident memory that was seen.
    """

    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


class Observer:
    """A thread that looks at the workers and the writer five times a second, and shows the progress.

    If the writer dies, it shuts the queue down: otherwise the workers would wait for room in it for ever.

    Args:
        writer: the process that empties the queue; it must have been started.
        rows: the queue.
        done: returns how much has been done.
        line: shows the progress.
    """

    def __init__(
        self,
        writer: WorkerProcess[int],
        rows: BoundedQueue[FileFacts],
        done: Callable[[], Amount],
        line: ProgressLine,
    ) -> None:
        self._writer = writer
        self._rows = rows
        self._done = done
        self._line = line
        self._pool: TaskPool | None = None
        self._usage: dict[int, Usage] = {}
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def looking_at(self, pool: TaskPool) -> Generator[None]:
        """Run the thread during the block."""
        self._pool = pool
        waker, stop = connection.Pipe(duplex=False)
        thread = threading.Thread(target=self._run, args=(waker,), name="demo-observer", daemon=True)
        with waker, stop:
            thread.start()
            try:
                yield
            finally:
                stop.send(None)
                thread.join()
                self._line.clear()

    def look(self) -> None:
        """Look at every process now."""
        pids = [worker.pid for worker in self._pool.workers()] if self._pool else []
        with self._guard:
            for pid in (*pids, self._writer.pid):
                # A worker may have been replaced since the pool was asked.
                with contextlib.suppress(ProcessGone, AccessDenied):
                    self._note(introspect.snapshot(pid))

    def usage(self) -> dict[int, Usage]:
        """What each process has used, by pid."""
        with self._guard:
            return dict(self._usage)

    def _run(self, waker: connection.Connection) -> None:
        while True:
            ready = connection.wait([waker, self._writer.sentinel], timeout=_INTERVAL_SECONDS)
            if waker in ready:
                return
            if ready:
                self._rows.shutdown(immediate=True)
                return
            self.look()
            self._line.show("indexing", self._done(), f", {self._rows.qsize()} rows waiting")

    def _note(self, now: ProcessSnapshot) -> None:
        used = self._usage.setdefault(now.pid, Usage())
        used.cpu_s = max(used.cpu_s, now.cpu_s)
        used.peak_rss_bytes = max(used.peak_rss_bytes, now.rss_bytes)
