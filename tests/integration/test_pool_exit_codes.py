"""The exit code of a worker reaches the pool even if other threads call `multiprocessing.active_children`."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections import Counter

from mpkit import TaskPool
from mpkit.errors import WorkerCrashed
from tests.conftest import own_or_of_the_server
from tests.contract import pool_tasks as tasks


@own_or_of_the_server
def test_other_threads_do_not_take_a_workers_exit_code_away(start_method: str) -> None:
    over = threading.Event()

    def ask() -> None:
        # Each start of a process calls this too. It reaps children that have ended.
        while not over.is_set():
            # Before 3.12, it may raise AttributeError if a process is closed at the same time.
            with contextlib.suppress(AttributeError):
                multiprocessing.active_children()

    before = sys.getswitchinterval()
    # The threads take turns more often, so that they get in each other's way more often.
    sys.setswitchinterval(before / 25)
    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    seen: Counter[tuple[int | None, str | None]] = Counter()
    try:
        with TaskPool(2, context=start_method) as pool:
            for _ in range(20):
                try:
                    pool.submit(tasks.kill_myself).result()
                except WorkerCrashed as error:
                    seen[error.exitcode, error.signal] += 1
    finally:
        sys.setswitchinterval(before)
        over.set()
        for asker in askers:
            asker.join()
    assert seen == {(-signal.SIGKILL, "SIGKILL"): 20}
