"""A pool: calls, maps, time limits, and a worker that dies."""

from __future__ import annotations

import os
import signal
import time

from mpkit import TaskPool
from mpkit.errors import TaskTimeout, WorkerCrashed


def square(x: int) -> int:
    return x * x


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with TaskPool(processes=2) as pool:
        print("one call:", pool.submit(square, 12).result())
        print("many:", pool.map(square, range(8)))
        print("as they come:", sum(pool.imap_unordered(square, range(1000))))

        queued = [pool.submit(square, n) for n in range(3)]
        try:
            pool.submit(crash).result()
        except WorkerCrashed as error:
            print("only this task failed:", error.signal)
        print("the others did not:", [handle.result() for handle in queued])

        try:
            pool.with_options(timeout=0.2).submit(time.sleep, 60).result()
        except TaskTimeout as error:
            print("stopped after", error.timeout, "s")
