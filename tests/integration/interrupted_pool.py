"""A program whose main thread is interrupted again and again while it uses a pool; see `test_pool_failures`.

It prints what went wrong, or "right" if each task ran once and gave its result.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from mpkit.errors import TaskCancelled
from mpkit.pool import TaskHandle, TaskPool
from tests.contract import pool_tasks as tasks

LOST = "lost when Ctrl-C"


def main(path: str, interrupts: int, seed: int) -> None:
    rng = random.Random(seed)
    handles: list[tuple[int, TaskHandle[int]]] = []
    over = threading.Event()
    inside = False

    def interrupt() -> None:
        for _ in range(interrupts):
            time.sleep(rng.random() * 0.02)
            os.kill(os.getpid(), signal.SIGINT)
        over.set()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        # Checked here, not before sending: `inside` may change before the signal arrives.
        nonlocal inside
        if inside:
            inside = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    with TaskPool(processes=2, context="fork") as pool:
        thread = threading.Thread(target=interrupt)
        thread.start()
        number = 0
        while not over.is_set():
            try:
                inside = True
                for _ in range(20):
                    number += 1
                    handles.append((number, pool.submit(tasks.note, number, path)))
                for n, handle in handles[-10:]:
                    assert handle.result(30) == n
                inside = False
            except KeyboardInterrupt:
                continue
        thread.join()
        wrong: list[str] = []
        lost: set[int] = set()
        for n, handle in handles:
            try:
                if handle.result(30) != n:
                    wrong.append(f"{n}: {handle!r}")
            except TaskCancelled as error:
                # Before 3.11, an interrupt can come between any two instructions, so a task may be lost.
                if sys.version_info >= (3, 11) or LOST not in str(error):
                    wrong.append(f"{n}: {error!r}")
                lost.add(n)
    times: dict[int, int] = {}
    for word in Path(path).read_text().split():
        times[int(word)] = times.get(int(word), 0) + 1
    wrong += [f"{n} ran {k} times" for n, k in times.items() if k > 1]
    wrong += [f"{n} never ran" for n, _ in handles if n not in times and n not in lost]
    print("; ".join(wrong[:10]) or "right")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
