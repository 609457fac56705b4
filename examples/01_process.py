"""A process that returns a result, one that fails, and one that is stopped."""

from __future__ import annotations

import math
import time

from mpkit import WorkerProcess


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def work_for_ever() -> None:
    while True:
        time.sleep(1)


def main() -> None:
    with WorkerProcess.call(math.factorial, 20) as process:
        print("20! is", process.result())

    with WorkerProcess.call(average, []) as failing:
        try:
            failing.result()
        except ZeroDivisionError as error:  # the child's own exception, with its traceback
            print("it failed:", error)

    restless = WorkerProcess(target=work_for_ever, name="restless")
    restless.start()
    print(restless.name, "is running:", restless.is_alive())
    restless.terminate()
    print("it ended with exit code", restless.stop())  # interrupt, terminate, kill: with all its children


if __name__ == "__main__":
    main()
