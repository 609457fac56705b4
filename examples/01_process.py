"""A process that returns a result, one that fails, and one that is stopped."""

from __future__ import annotations

import math
import time
from contextlib import suppress

from mpkit import LockedCounter, WorkerProcess


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def work_forever(begun: LockedCounter) -> None:
    with suppress(KeyboardInterrupt):  # stop() interrupts first
        begun.add()
        time.sleep(3600)


def main() -> None:
    with WorkerProcess.call(math.factorial, 20) as process:
        print("20! is", process.result())

    with WorkerProcess.call(average, []) as failing:
        try:
            failing.result()
        except ZeroDivisionError as error:  # the child's own exception, with its traceback
            print("it failed:", error)

    begun = LockedCounter()
    with WorkerProcess(target=work_forever, args=(begun,), name="restless") as restless:
        print(restless.name, "is running:", begun.wait_for(1))
        print("it ended with exit code", restless.stop())  # interrupt, terminate, kill; its children, too


if __name__ == "__main__":
    main()
