"""Keep a pool's collector thread from fetching outcomes, for tests in which another thread has to do it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mpkit import TaskPool
from tests.helpers.waiting import PATIENCE

__all__ = ["collector_held"]


@contextlib.contextmanager
def collector_held(pool: TaskPool) -> Iterator[Callable[[], None]]:
    """Hold the collector thread while the block runs. The block gets a function that releases it earlier."""
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        holds.set()
        let_go.wait(PATIENCE)

    pool._engine.collector.do_later(hold)
    try:
        assert holds.wait(PATIENCE)
        yield let_go.set
    finally:
        let_go.set()
