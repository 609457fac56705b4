"""The same work in one process, for comparison."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from mpkit.cli.demo import measure, store
from mpkit.cli.demo.progress import Amount

if TYPE_CHECKING:
    from mpkit.cli.demo.progress import ProgressLine

#: How many files are written in one transaction: about as many as the writer of the pool finds waiting.
_BATCH = 100


class Spent(NamedTuple):
    """How long the work has taken.

    Attributes:
        seconds: elapsed seconds.
        cpu_s: CPU seconds; fewer than `seconds` if other programs use the machine as well.
    """

    seconds: float
    cpu_s: float


def index_alone(root: str, database: str, *, line: ProgressLine) -> Spent:
    """Do in this process what `index.index` does with several, and return how long it has taken."""
    started, cpu_before = time.perf_counter(), time.process_time()
    line.restart()
    done = Amount(0, 0)
    batch: list[measure.FileFacts] = []
    try:
        with store.writing(database) as connection:
            for path in measure.python_files(root):
                facts = measure.measure(root, path)
                batch.append(facts)
                done = Amount(done.files + 1, done.size_bytes + facts.size_bytes)
                if len(batch) == _BATCH:
                    store.add(connection, batch)
                    batch.clear()
                    line.show("the same in one process", done)
            store.add(connection, batch)
    finally:
        line.clear()
    return Spent(time.perf_counter() - started, time.process_time() - cpu_before)
