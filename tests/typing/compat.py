"""What type checkers see of mpkit.compat. Never run."""

from __future__ import annotations

import concurrent.futures
import ctypes
import multiprocessing.pool
import multiprocessing.shared_memory
import multiprocessing.synchronize
from multiprocessing.pool import ThreadPool as StdlibThreadPool
from typing import Any

from typing_extensions import assert_type

from mpkit import compat
from mpkit import compat as mp
from mpkit.compat.context import BaseContext, ForkContext, ForkServerContext, SpawnContext, SpawnProcess
from mpkit.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from mpkit.compat.pool import AsyncResult, MapResult, Pool, ThreadPool
from mpkit.compat.queues import Empty, Queue
from mpkit.compat.shared_memory import SharedMemory
from mpkit.compat.synchronize import Lock


def submodules(queue: Queue[int]) -> None:
    assert_type(ThreadPool(2), StdlibThreadPool)
    assert_type(Pool(2), compat.Pool)
    assert_type(SharedMemory("x"), multiprocessing.shared_memory.SharedMemory)
    assert_type(mp.shared_memory.SharedMemory("x"), multiprocessing.shared_memory.SharedMemory)
    assert_type(mp.synchronize.Lock(), compat.Lock)
    try:
        assert_type(queue.get(), int)
    except (Empty, BrokenProcessPool):
        ProcessPoolExecutor(2).shutdown()


def as_in_a_program_written_for_multiprocessing() -> None:
    queue = mp.Queue()
    assert_type(queue, mp.Queue[Any])
    assert_type(mp.JoinableQueue(3), mp.JoinableQueue[Any])
    assert_type(mp.SimpleQueue(), mp.SimpleQueue[Any])
    numbers: mp.Queue[int] = mp.Queue()
    assert_type(numbers.get(), int)


def contexts(context: BaseContext) -> SpawnProcess:
    """Contexts, annotated with the names of the standard library (as in uvicorn)."""
    queue: Queue[int] = context.Queue()
    lock: Lock = context.Lock()
    assert_type(mp.get_context("fork"), ForkContext)
    assert_type(mp.get_context("forkserver"), ForkServerContext)
    spawn: SpawnContext = mp.get_context("spawn")
    return spawn.Process(target=print, args=(queue, lock))


def a_lock_where_the_standard_library_takes_one() -> None:
    lock = mp.Lock()
    mp.Condition(lock)
    mp.Value("i", 0, lock=lock)
    assert_type(mp.Value(ctypes.c_int, 0, lock=lock).value, int)
    mp.Array("i", 3, lock=lock)


def results(pool: Pool) -> None:
    result: MapResult[int] = pool.map_async(abs, [1])
    assert_type(result.get(), list[int])
    single: AsyncResult[int] = pool.apply_async(abs, (1,))
    assert_type(single.get(), int)


def in_a_program_that_uses_both(
    pool: multiprocessing.pool.Pool,
    result: multiprocessing.pool.AsyncResult[int],
    lock: multiprocessing.synchronize.Lock,
    executor: concurrent.futures.ProcessPoolExecutor,
) -> None:
    with lock, executor, pool:
        print(result.get())
    with mp.Pool() as ours:
        in_a_program_that_uses_both(ours, ours.apply_async(abs, (1,)), mp.Lock(), ProcessPoolExecutor(2))
