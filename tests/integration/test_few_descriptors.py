"""Operations with no, one, two, ... free file descriptors: each works, or raises an error and leaks nothing.

Once there are enough descriptors again, everything works as before.
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing import forkserver

import numpy as np
import psutil
import pytest

from mpkit import BoundedQueue, Lock, LockedCounter, TaskPool, WorkerProcess
from mpkit.errors import MpkitError, WorkerCrashed
from mpkit.pool._engine import start_ups as _start_ups
from tests.contract import pool_tasks as tasks
from tests.helpers.shortage import open_descriptors, spare_descriptors
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors (Linux)")

#: More than any of the operations needs.
MOST = 60


def use_queue() -> None:
    with BoundedQueue[object]() as queue:
        queue.put(1)
        with suppress(OSError):
            # If this put fails, the item must not be in the queue.
            queue.put(np.zeros(300_000))
        assert queue.put_many([2, 3]) == 2
        assert queue.get(timeout=PATIENCE) == 1
        while queue.qsize():
            queue.get(timeout=PATIENCE)


def use_lock() -> None:
    with closing(Lock()) as lock:
        with lock:
            assert lock.locked()
        assert not lock.locked()


def use_counter() -> None:
    with closing(LockedCounter(4)) as counter:
        with counter as locked:
            locked.value += 1
        assert counter.add() == 6


def use_process(method: str) -> None:
    process = WorkerProcess(target=bytes, args=(30_000,), start_method=method)
    process.start()
    try:
        # If the child has too few descriptors, it ends with an exit code that says so.
        with suppress(WorkerCrashed):
            assert len(process.result(PATIENCE)) == 30_000
    finally:
        process.stop(0.0)
        process.close()


def use_pool(method: str) -> None:
    with TaskPool(1, context=method) as pool:
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        for act in (
            lambda: pool.submit(np.zeros, 30_000).result(PATIENCE),
            lambda: pool.submit(len, np.zeros(30_000)).result(PATIENCE),
        ):
            # A task with a big argument or result may fail, but no other task with it.
            with suppress(OSError):
                assert act() is not None
        assert pool.submit(tasks.square, 4).result(PATIENCE) == 16


def lose_worker(method: str) -> None:
    with TaskPool(1, context=method) as pool:
        with pytest.raises(WorkerCrashed):
            pool.submit(os._exit, 3).result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


OPERATIONS: dict[str, Callable[[], None]] = {
    "queue": use_queue,
    "lock": use_lock,
    "counter": use_counter,
    "process-fork": lambda: use_process("fork"),
    "process-forkserver": lambda: use_process("forkserver"),
    "pool-fork": lambda: use_pool("fork"),
    "loss-fork": lambda: lose_worker("fork"),
    "loss-forkserver": lambda: lose_worker("forkserver"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_with_few_descriptors_an_operation_works_or_raises_and_leaks_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_start_ups, "_LONGEST_PAUSE_SECONDS", 0.01)
    operation = OPERATIONS[name]
    # The first run opens what stays open until the end: helper processes, modules.
    operation()
    gc.collect()
    before = open_descriptors()
    spare = went_well = refused = 0
    while went_well < 3:
        assert spare < MOST
        try:
            with spare_descriptors(spare):
                operation()
        except (OSError, MpkitError):
            went_well = 0
            refused += 1
        else:
            went_well += 1
        # Threads that are just ending may still have descriptors open. So may mappings in reference cycles:
        # before Python 3.13, each mapping has a descriptor.
        if open_descriptors() > before:
            gc.collect()
        given_back = f"descriptors are given back ({spare} to spare)"
        wait_until(lambda: open_descriptors() <= before, given_back)
        spare += 1
    assert refused
    operation()


@pytest.mark.parametrize("refused", [("pipe", 2), ("dup", 1)])
def test_a_start_that_runs_out_of_descriptors_half_way_leaks_nothing(
    refused: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """mpkit checks in advance that there are enough descriptors, but another thread may take one after that.

    The ones that are open already must be closed, and a process that the fork server has forked must not go
    on waiting for its orders.
    """
    # Stop the present fork server: one that multiprocessing itself has started, in another test, would not
    # survive what follows.
    vars(forkserver)["_forkserver"]._stop()
    use_process("forkserver")
    server = psutil.Process(vars(forkserver)["_forkserver"]._forkserver_pid)
    children = set(server.children())
    name, number = refused
    real = getattr(os, name)
    calls = itertools.count(1)

    def refuse(*args: int) -> object:
        if "forkserver" in sys._getframe(1).f_code.co_filename and next(calls) == number:
            raise OSError(errno.EMFILE, "too many open files")
        return real(*args)

    before = open_descriptors()
    with monkeypatch.context() as patches:
        patches.setattr(os, name, refuse)
        with pytest.raises(OSError, match="too many open files"):
            WorkerProcess(target=print, start_method="forkserver").start()
    wait_until(lambda: open_descriptors() <= before, "descriptors are given back")
    wait_until(lambda: set(server.children()) <= children, "the fork has ended")
    use_process("forkserver")
