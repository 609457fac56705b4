"""What type checkers see of mpkit.compat. Never run."""

from __future__ import annotations

import multiprocessing.shared_memory
from multiprocessing.pool import ThreadPool as StdlibThreadPool
from typing import Any

from typing_extensions import assert_type

from mpkit import compat
from mpkit import compat as mp
from mpkit.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from mpkit.compat.pool import Pool, ThreadPool
from mpkit.compat.queues import Empty, Queue
from mpkit.compat.shared_memory import SharedMemory


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
