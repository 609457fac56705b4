"""A counter that loses nothing, and a lock that survives its owner."""

from __future__ import annotations

import os
import signal

from mpkit import Lock, LockedCounter, WorkerProcess


def count(counter: LockedCounter, number: int) -> None:
    for _ in range(number):
        counter.add()


def die_with(lock: Lock) -> None:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    counter = LockedCounter()
    workers = [WorkerProcess.call(count, counter, 1000) for _ in range(2)]
    for worker in workers:
        worker.start()
    print("all counted:", counter.wait_for(2000, timeout=60), counter.value)
    with counter as locked:  # no other process can change it in the meantime
        locked.value = locked.value // 2 + 1
    print("updated:", counter.value)

    lock = Lock()
    careless = WorkerProcess.call(die_with, lock)
    careless.start()
    careless.join()
    with lock:  # no deadlock: the lock of a dead owner goes to the next process
        print("taken over from the dead:", lock.abandoned_by == careless.pid)
    for worker in workers:
        worker.join()
