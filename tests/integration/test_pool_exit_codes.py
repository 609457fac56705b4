"""The exit code of a worker reaches the pool, whoever else asks multiprocessing for its children."""

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
def test_nobody_takes_a_worker_s_exit_code_away(start_method: str) -> None:
    over = threading.Event()

    def ask() -> None:
        # What every start of a process does, too, in whatever thread.
        while not over.is_set():
            # Before 3.12 the standard library trips over a process that is closed while it looks.
            with contextlib.suppress(AttributeError):
                multiprocessing.active_children()

    before = sys.getswitchinterval()
    # They turn in the pool's way more often, and it waits less for its turn.
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
