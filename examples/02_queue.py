"""A queue between processes: several workers, one order, and an end that all of them notice."""

from __future__ import annotations

from mpkit import BoundedQueue, WorkerProcess


def work(numbers: BoundedQueue[int], squares: BoundedQueue[tuple[int, int]]) -> None:
    for number in numbers:  # until the queue is shut down and empty
        squares.put((number, number * number))


if __name__ == "__main__":
    with BoundedQueue[int](maxsize=8) as numbers, BoundedQueue[tuple[int, int]]() as squares:
        with (
            WorkerProcess.call(work, numbers, squares) as first,
            WorkerProcess.call(work, numbers, squares) as second,
        ):
            numbers.put_many(range(100))  # waits for room whenever eight are queued
            numbers.shutdown()  # nothing more will come: the workers' loops end
            for worker in (first, second):
                worker.result()  # raises the worker's exception if it failed

        print("results:", squares.qsize())
        found = dict(squares.get_many())
        print("12 squared:", found[12])
        print("sum:", sum(found.values()))

        try:
            numbers.put(100)
        except Exception as error:  # noqa: BLE001  to show its name
            print("after the shutdown:", type(error).__name__)
