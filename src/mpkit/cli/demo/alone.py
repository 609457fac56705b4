"""The same work in one process, to compare time and result with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpkit.cli.demo import measure, store
from mpkit.cli.demo.progress import Amount

if TYPE_CHECKING:
    from mpkit.cli.demo.progress import ProgressLine

# About what the writer of the pool finds waiting.
_BATCH = 100


def index_alone(root: str, database: str, *, line: ProgressLine) -> float:
    """Do in this process what `index.index` does with many, and return the seconds it took."""
    started = time.perf_counter()
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
    return time.perf_counter() - started
