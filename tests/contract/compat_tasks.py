"""What child processes run in the tests of `mpkit.compat`. Spawned ones import this module."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from mpkit import compat


def square(x: int) -> int:
    return x * x


def put_unpicklable(queue: compat.Queue[object]) -> None:
    queue.put(lambda: 1)


class BrokenInWorkers:
    """Can be unpickled only by the process that pickled it."""

    def __init__(self, pid: int | None = None) -> None:
        if pid not in (None, os.getpid()):
            raise LookupError("at unpickle")

    def __reduce__(self) -> tuple[type[BrokenInWorkers], tuple[int]]:
        return BrokenInWorkers, (os.getpid(),)


class Unfit:
    """Cannot be unpickled anywhere."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


def name_of_this_process(_x: object = None) -> str:
    return multiprocessing.current_process().name


class Team:
    """Two processes as attributes of one object, a method of which is the target of the first one."""

    def __init__(self, context: Any) -> None:
        self.results = context.SimpleQueue()
        self.first = context.Process(target=self.misuse_second)
        self.second = context.Process(target=put_square, args=(self.results, 3))

    def misuse_second(self) -> None:
        """Use the object of the second process in the first one, to which it does not belong."""
        for use in (self.second.start, self.second.is_alive, self.second.join):
            try:
                use()
            except AssertionError:
                self.results.put("refused")


def put_square(queue: compat.SimpleQueue[int], x: int) -> None:
    queue.put(x * x)


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(x: object) -> NoReturn:
    raise KeyError(x)


def crash(_x: object = None) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def unpicklable(_x: object = None) -> object:
    return threading.Lock()


def raise_a_local_error() -> NoReturn:
    class LocalError(Exception):
        pass

    raise LocalError("lost")


def wait_for(event: Any, x: int) -> int:
    event.wait()
    return x


def take(gate: compat.SimpleQueue[None]) -> None:
    """Wait until the test puts something into `gate`."""
    gate.get()


def nap(x: int) -> int:
    time.sleep(0.02)
    return x


def sleep_for_ever(_x: object = None) -> NoReturn:
    while True:
        time.sleep(60)


def echo(inbox: compat.Queue[object], outbox: compat.JoinableQueue[object]) -> None:
    while (item := inbox.get()) is not None:
        outbox.put(item)


class CountingQueue(compat.queues.Queue[int]):
    """A subclass of the kind that programs write for the standard library's `Queue`."""

    def __init__(self, start_method: str) -> None:
        context = compat.get_context(start_method)
        super().__init__(ctx=context)
        self.puts = context.Value("i", 0)

    def __getstate__(self) -> Any:
        return {"parent": super().__getstate__(), "puts": self.puts}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state["parent"])
        self.puts = state["puts"]

    def put(self, obj: int, block: bool = True, timeout: float | None = None) -> None:
        super().put(obj, block, timeout)
        self.puts.value += 1


def put_two(queue: CountingQueue) -> None:
    queue.put(1)
    queue.put(2)


def exit_with(code: int) -> NoReturn:
    sys.exit(code)


def put_pid_when_let_through(gate: compat.SimpleQueue[None], queue: compat.SimpleQueue[int]) -> None:
    gate.get()
    queue.put(os.getpid())


def guarded_add(lock: compat.Lock, value: Any, times: int) -> None:
    for _ in range(times):
        with lock:
            value.value += 1


def wait_on(condition: Any, ready: compat.SimpleQueue[str]) -> None:
    with condition:
        ready.put("waiting")
        condition.wait()
    ready.put("woken")


_STATE: list[object] = []


def initialize(value: object) -> None:
    _STATE.append(value)


def initialized(_x: object = None) -> list[object]:
    return list(_STATE)


def broken_initializer() -> NoReturn:
    raise LookupError("no such thing")


# Workers wait at queues of mpkit, not at events of multiprocessing: if the garbage collector frees a
# semaphore of multiprocessing while another one is being registered, there is a warning.
_kept: list[Any] = []


def keep(*objects: Any) -> None:
    _kept[:] = objects


def wait_for_kept(x: int) -> int:
    return wait_for(_kept[-1], x)


def wait_at_gate(x: int) -> int:
    _kept[-1].get()
    return x


def tell_and_wait(x: int) -> int:
    """Report the beginning, wait until the test lets it go on, and report the end."""
    told, gate = _kept
    told.put(f"begun {x}")
    gate.get()
    told.put(f"ended {x}")
    return x


def leave_work(path: str, keep: bool) -> None:
    from mpkit.compat import futures

    executor = futures.ProcessPoolExecutor(1)
    # More tasks than a worker is sent in advance.
    for _ in range(8):
        executor.submit(nap, 7)
    executor.submit(open, path, "w")
    if keep:
        # A global variable exists until the child ends.
        _kept.append(executor)


def log_into(path: str) -> None:
    logging.basicConfig(filename=path, level=logging.INFO, format="%(message)s")


def log(item: int) -> None:
    logging.getLogger("app").info("item %d", item)
