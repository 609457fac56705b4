"""What type checkers see of the exceptions. Never run."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import queue

from typing_extensions import assert_type

import mpkit
from mpkit import errors
from mpkit.errors import TaskTimeout, WorkerCrashed, WorkerMemoryExceeded


def attributes(timeout: TaskTimeout, crash: WorkerCrashed, memory: WorkerMemoryExceeded) -> None:
    assert_type(timeout.task_id, "int | None")
    assert_type(timeout.timeout, "float | None")
    assert_type(timeout.stack, "str | None")
    assert_type(crash.exitcode, "int | None")
    assert_type(crash.signal, "str | None")
    assert_type(crash.likely_oom, bool)
    assert_type(memory.rss_bytes, "int | None")
    assert_type(memory.limit, "int | None")


def bases() -> None:
    builtin: type[TimeoutError] = errors.WaitTimeout
    stdlib: type[multiprocessing.TimeoutError] = errors.TaskTimeout
    empty: type[queue.Empty] = errors.QueueEmpty
    cancelled: type[concurrent.futures.CancelledError] = errors.TaskCancelled
    missing: type[FileNotFoundError] = errors.HandleLost
    print(builtin, stdlib, empty, cancelled, missing)


def through_the_doorway() -> None:
    try:
        raise mpkit.errors.SharedMemoryExhausted(requested_bytes=1)
    except OSError as error:
        assert_type(error, OSError)
