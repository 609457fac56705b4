"""The programs that `test_parent_death` starts and kills: ``python -m tests.stress.death_programs``.

Arguments: a start method, a seed, and in which way the program will die (`test_parent_death.WAYS`). The
environment names a directory for notes. Each note is a file that appears together with its content.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from mpkit import BoundedQueue, Lock, LockedCounter, TaskPool, WorkerProcess, compat
from mpkit._platform.processes import identity
from mpkit.compat import futures
from tests.helpers import marked

#: A word in the command line of each program that does not use mpkit.
PROGRAM = "a-program-of-the-test"

#: The environment variable with the mark of "strangers": programs that the main program itself starts, not
#: one of its mpkit children. Nothing ends them together with it.
STRANGERS = "MPKIT_TEST_STRANGERS"

_notes = Path(os.environ.get("MPKIT_TEST_NOTES", "."))


def note(kind: str, pid: int, moment: float | None = None) -> None:
    """Write the time into a note ``<kind>-<pid>-<start time of the process>``."""
    process = identity.of(pid)
    if process is not None:
        new = _notes / f"new-{os.getpid()}-{time.monotonic_ns()}"
        new.write_text(repr(time.monotonic() if moment is None else moment))
        os.replace(new, _notes / f"{kind}-{process.pid}-{process.started}")


def start_program(*, own_way: bool = False) -> int:
    """Start a program that does not use mpkit. `own_way`: mark it as a stranger, which will survive."""
    code = f"'{PROGRAM}'; import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    env = {**os.environ, marked.NAME: os.environ[STRANGERS if own_way else marked.NAME]}
    return subprocess.Popen(  # nobody reaps it
        [sys.executable, "-S", "-c", code], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ).pid


# --- what a child or a task may do ------------------------------------------------------------------------


def doze(rng: random.Random, method: str, depth: int) -> None:
    time.sleep(600)


def hold_the_interpreter_lock(rng: random.Random, method: str, depth: int) -> None:
    # A single call of a C function that takes an hour or so.
    pow(7, 10**10)


def be_stopped(rng: random.Random, method: str, depth: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def have_a_program(rng: random.Random, method: str, depth: int) -> None:
    start_program()
    time.sleep(600)


def start_programs(rng: random.Random, method: str, depth: int) -> None:
    for _ in range(20):
        start_program()
        time.sleep(rng.uniform(0.0, 0.05))
    time.sleep(600)


def fork(rng: random.Random, method: str, depth: int) -> None:
    if os.fork() == 0:
        note("forked", os.getpid())
        start_program()
    time.sleep(600)


def have_children(rng: random.Random, method: str, depth: int) -> None:
    for _ in range(rng.randint(1, 2)):
        seed = rng.randrange(1 << 32)
        WorkerProcess(target=live, args=(seed, method, depth - 1), start_method=method).start()
    rng.choice([doze, hold_the_interpreter_lock, have_a_program])(rng, method, depth)


def have_a_pool(rng: random.Random, method: str, depth: int) -> None:
    with TaskPool(1, context=method) as pool:
        pool.submit(live, rng.randrange(1 << 32), method, depth - 1).result()


def have_an_orphan(rng: random.Random, method: str, depth: int) -> None:
    orphan = WorkerProcess(target=live_as_orphan, args=(method,), start_method=method, orphan=True)
    orphan.start()
    # From now on it must survive, whatever happens to this process.
    note("orphan", orphan.pid or 0)
    time.sleep(600)


def live_as_orphan(method: str) -> None:
    """What an orphan does: start a program and a `WorkerProcess`, then sleep."""
    note("arrived", os.getpid())
    note("below", start_program())
    child = WorkerProcess(target=time.sleep, args=(600,), start_method=method)
    child.start()
    note("below", child.pid or 0)
    time.sleep(600)


_LIVES = [
    doze,
    hold_the_interpreter_lock,
    be_stopped,
    have_a_program,
    start_programs,
    fork,
    have_children,
    have_children,
    have_a_pool,
    have_an_orphan,
    have_an_orphan,
]


def live(seed: int, method: str, depth: int) -> None:
    """The target of a child, or a task: do one random thing until the process is ended."""
    rng = random.Random(seed)
    choice = rng.choice(_LIVES)
    if depth <= 0 and choice in {have_children, have_a_pool, have_an_orphan}:
        choice = have_a_program
    choice(rng, method, depth)


def work(seed: int) -> bytes:
    """A task that ends by itself."""
    rng = random.Random(seed)
    time.sleep(rng.choice([0.0, 0.0, 0.001, 0.01]))
    return bytes(rng.choice([10, 1000, 500_000]))


def measure(data: object) -> int:
    """A task with a shared object."""
    assert isinstance(data, bytes)
    return len(data)


def exchange(
    there: BoundedQueue[bytes], back: BoundedQueue[bytes], lock: Lock, counter: LockedCounter
) -> None:
    """Pass each item on, and count it."""
    for item in there:
        with lock:
            counter.add()
        back.put(item)


# --- what the program itself does ----------------------------------------------------------------------


def with_processes(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    for _ in range(rng.randint(1, 4)):
        process: WorkerProcess[None] = WorkerProcess(
            target=live, args=(rng.randrange(1 << 32), method, 2), start_method=method
        )
        stack.enter_context(process)
        time.sleep(rng.choice([0.0, 0.0, 0.05]))


def one_after_the_other(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    """Start one child after the other until the program dies; note when each start began."""
    while True:
        began = time.monotonic()
        process: WorkerProcess[None] = WorkerProcess(target=time.sleep, args=(600,), start_method=method)
        stack.enter_context(process)
        note("begun", process.pid or 0, began)
        time.sleep(0.05)


def with_pool(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    pool = stack.enter_context(TaskPool(rng.randint(1, 3), context=method))
    shared = pool.share(bytes(100_000))
    for _ in range(rng.randint(1, 60)):
        pool.submit(work, rng.randrange(1 << 32))
        pool.submit(measure, shared)
    for _ in range(rng.randint(0, 3)):
        pool.submit(live, rng.randrange(1 << 32), method, 1)


def with_queues(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    there, back = BoundedQueue[bytes](maxsize=10), BoundedQueue[bytes]()
    args = (there, back, Lock(), LockedCounter())
    for _ in range(2):
        stack.enter_context(WorkerProcess(target=exchange, args=args, start_method=method))
    for _ in range(rng.randint(1, 300)):
        there.put(bytes(rng.choice([1, 100, 200_000])))
        back.get()
    stack.callback(there.shutdown)


def with_compat(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    context = compat.get_context(method)
    pool = stack.enter_context(context.Pool(2))
    pool.map_async(work, range(50))
    executor = stack.enter_context(futures.ProcessPoolExecutor(2, mp_context=context))
    for seed in range(20):
        executor.submit(work, seed)
    executor.submit(live, rng.randrange(1 << 32), method, 1)


def with_a_stranger(rng: random.Random, method: str, stack: contextlib.ExitStack) -> None:
    """Start a program as the main program, not as one of its mpkit children: it must survive."""
    note("stranger", start_program(own_way=True))


SCENES = [with_processes, with_processes, with_pool, with_queues, with_compat, with_a_stranger]


def end_by_itself(rng: random.Random) -> None:
    """End this program at a random moment, by `os._exit` or a crash, from another thread."""
    end: Callable[[], object] = rng.choice([lambda: os._exit(3), os.abort])
    timer = threading.Timer(rng.uniform(0.0, 0.6), end)
    timer.daemon = True
    timer.start()


def main(method: str, seed: str, way: str) -> None:
    """Do one to three of `SCENES`, then wait to be killed."""
    rng = random.Random(seed)
    os.write(1, b"begun\n")
    if way == "itself":
        end_by_itself(rng)
    with contextlib.ExitStack() as stack:
        for scene in rng.sample(SCENES, rng.randint(1, 3)):
            scene(rng, method, stack)
        if way == "guardian":
            one_after_the_other(rng, method, stack)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
