"""Queues when a process that uses them is killed or stopped, forks, or exits; and the names that are left."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._shm.locks import robust_lock, sleepers
from mpkit._shm.queues import layout, put_side, regions
from mpkit.errors import QueueEmpty, QueueFull
from tests.contract import queue_targets as targets
from tests.helpers.processes import forked, python, reap, run_python, to_be_killed
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")

BIG = 100_000
METHODS = [m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]


def process(target: Any, *args: Any) -> Any:
    return resolve_context("fork").Process(target=target, args=args)  # type: ignore[attr-defined]


def states(queue: BoundedQueue[Any]) -> list[int]:
    """Return the state of each region that has been made in the queue's file."""
    assert queue._shared is not None
    table = queue._shared.regions
    entries = [
        table.words[table._start + number * regions.ENTRY_WORDS] for number in range(1, layout.REGION_SLOTS)
    ]
    return [state for state in entries if state != regions.NONE]


# --- killed and stopped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["put_lock", "get_lock"])
def test_a_queue_goes_on_after_a_process_has_died_with_its_internal_lock(
    queue: BoundedQueue[Any], side: str
) -> None:
    queue.put("before")
    assert forked(lambda: targets.die_inside_queue(queue, side)) == -signal.SIGKILL
    begin = time.monotonic()
    queue.put("after")
    assert [queue.get(), queue.get()] == ["before", "after"]
    # Half a second is promised, but the machine may be busy.
    assert time.monotonic() - begin < PATIENCE
    assert queue.statistics().recoveries == 1


@pytest.mark.parametrize("side", ["put_lock", "get_lock"])
def test_the_internal_lock_of_a_stopped_process_is_never_taken_over(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The protocol works in the same way with shorter times.
    for module in (put_side, sleepers):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(robust_lock, "SLICE_SECONDS", 0.01)
    monkeypatch.setattr(robust_lock, "STUCK_SECONDS", 0.02)
    with BoundedQueue[int]() as reached, BoundedQueue[Any](maxsize=3) as queue:
        queue.put("there")
        child = process(targets.stop_inside_queue, queue, side, reached)
        with reap(child):
            pid = reached.get(timeout=PATIENCE)
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the child is stopped")
            # The timeout covers the whole call, whatever delays it. Waiting processes find the owner alive.
            if side == "put_lock":
                for item in ("x", b"x" * BIG):
                    with pytest.raises(QueueFull):
                        queue.put(item, timeout=0.15)
                assert queue.put_many([1, 2], timeout=0.1) == 0
                assert queue.qsize() == 1
                assert queue.get() == "there"
            else:
                with pytest.raises(QueueEmpty):
                    queue.get(timeout=0.15)
                with pytest.raises(QueueEmpty):
                    queue.get_many(timeout=0.1)
                queue.put("more", timeout=PATIENCE)
                assert queue.qsize() == 2
            assert queue.statistics().recoveries == 0
            os.kill(pid, signal.SIGCONT)
            queue.put("last", timeout=PATIENCE)
            assert queue.get_many(timeout=PATIENCE)[-1] in ("last", "there", "more")
        assert child.exitcode == 0
        assert queue.statistics().recoveries == 0


@pytest.mark.parametrize("item", ["x", b"x" * BIG], ids=["small", "big"])
def test_a_coroutine_that_waits_for_a_stopped_process_lets_others_run(
    item: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_side, "PATIENCE_SECONDS", 0.05)
    with BoundedQueue[int]() as reached, BoundedQueue[Any]() as queue:
        child = process(targets.stop_inside_queue, queue, "put_lock", reached)

        async def put() -> None:
            putting = asyncio.create_task(queue.aput(item))
            for _ in range(5):
                await asyncio.sleep(0.01)
            assert not putting.done()
            os.kill(pid, signal.SIGCONT)
            # There is room, and no item is taken: it must be enough that the lock is free again.
            await asyncio.wait_for(putting, PATIENCE)

        with reap(child):
            pid = reached.get(timeout=PATIENCE)
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the child is stopped")
            asyncio.run(put())
        assert queue.get() == item


def test_killing_waiting_processes_costs_the_others_no_wake_ups() -> None:
    """A getter and a putter that are killed while they sleep must not take wake-ups from living processes."""
    with BoundedQueue[Any](maxsize=1) as queue, BoundedQueue[Any](maxsize=1) as full:
        full.put(0)
        children = [process(queue.get), process(full.put, 1)]
        with reap(*children):
            wait_until(
                lambda: queue.statistics().waiting_getters and full.statistics().waiting_putters, "both sleep"
            )
            for child in children:
                child.kill()
                child.join()
        for number in range(5):
            echo = process(targets.answer, queue, full)
            with reap(echo):
                wait_until(lambda: queue.statistics().waiting_getters, "the child sleeps")
                queue.put(number + 2)
                assert full.get(timeout=PATIENCE) == (0 if number == 0 else (number + 1) ** 2)
                wait_until(lambda: full.qsize() == 1, "the answer has come")
                echo.kill()
                echo.join()


def test_the_memory_of_arrays_that_a_killed_getter_held_is_reused(queue: BoundedQueue[Any]) -> None:
    assert queue._shared is not None
    size = 0
    for round_ in range(12):
        queue.put(np.zeros(BIG))

        def take_and_die() -> None:
            held = queue.get()
            os.kill(os.getpid(), signal.SIGKILL)
            del held

        assert forked(take_and_die) == -signal.SIGKILL
        if round_ == 2:
            size = os.fstat(queue._shared.segment.fd).st_size
    assert os.fstat(queue._shared.segment.fd).st_size == size
    assert queue.empty()


def test_the_region_of_a_putter_killed_just_before_publishing_is_reused(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The region is already marked as that of the next item. It must not count as that of another item."""
    monkeypatch.setattr(robust_lock, "SLICE_SECONDS", 0.002)
    monkeypatch.setattr(robust_lock, "STUCK_SECONDS", 0.002)
    real = regions.Regions.mark_queued

    def mark_and_die(self: regions.Regions, *args: int) -> None:
        real(self, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    def put_and_die() -> None:
        regions.Regions.mark_queued = mark_and_die  # type: ignore[method-assign, assignment]
        queue.put(bytes(BIG))

    for _ in range(6):
        assert forked(put_and_die) == -signal.SIGKILL
        queue.put("small")
        assert queue.statistics().bytes < 100
        assert queue.get() == "small"
    queue.put(bytes(BIG))
    assert queue.get() == bytes(BIG)
    assert len(states(queue)) <= 3


# --- fork ---------------------------------------------------------------------------------------------------


def test_received_arrays_stay_valid_in_a_forked_child(queue: BoundedQueue[Any]) -> None:
    queue.put(np.full(BIG, 1))
    held = queue.get()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(go_read, 1)
            code = 0 if (held == 1).all() else 2
        finally:
            os._exit(code)
    del held
    for value in (2, 3):
        queue.put(np.full(BIG, value))
    os.write(go_write, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for value in (2, 3):
        assert (queue.get() == value).all()
    os.close(go_read)
    os.close(go_write)


def test_a_forked_child_can_use_an_inherited_queue(queue: BoundedQueue[Any]) -> None:
    queue.put("before")
    assert queue.get() == "before"

    def work() -> None:
        queue.put_many(["from the child", b"x" * BIG])
        assert queue.get() == "from the child"
        queue.close()

    assert forked(work) == 0
    assert queue.get_nowait() == b"x" * BIG
    queue.put("after")
    assert queue.get() == "after"


def test_coroutines_can_wait_in_a_forked_child(queue: BoundedQueue[Any]) -> None:
    async def take(put: Callable[[], None]) -> Any:
        asyncio.get_running_loop().call_later(0.01, put)
        return await asyncio.wait_for(queue.aget(), PATIENCE)

    # The thread that waits on behalf of this coroutine does not exist in the child.
    assert asyncio.run(take(lambda: queue.put(1))) == 1

    def work() -> None:
        assert asyncio.run(take(lambda: queue.put(2))) == 2

    assert forked(work) == 0


# --- exits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_names_are_removed_only_after_the_children_have_been_joined(method: str, tmp_path: Path) -> None:
    """A program leaves joining to multiprocessing's exit, and its child opens the queue only then."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, sys
            from mpkit import BoundedQueue, LockedCounter

            def work(leaving, courier, counter):
                leaving.wait_for(1)              # the parent is at its exit
                with courier.get() as queue:     # a handle that is opened only now
                    print(counter.add(), queue.get(timeout=60), flush=True)

            if __name__ == "__main__":
                context = multiprocessing.get_context(sys.argv[1])
                courier, queue = BoundedQueue(), BoundedQueue()
                counter, leaving = LockedCounter(41), LockedCounter()
                courier.put(queue)
                queue.put("answer")
                child = context.Process(target=work, args=(leaving, courier, counter))
                child.start()
                print(os.path.basename(queue._name), queue._shared.semaphores[0].name, flush=True)
                # At the exit, multiprocessing joins the children. The child goes on only then.
                join = child.join
                child.join = lambda *args: (leaving.add(), join(*args))
            """
        )
    )
    done = run_python(program, method)
    names, answer = done.stdout.splitlines()
    assert answer == "42 answer"
    assert done.stderr == ""
    segment, semaphore = names.split()
    assert not os.path.exists(f"/dev/shm/{segment}")
    assert not os.path.exists(f"/dev/shm/sem.{semaphore[1:]}")


CLOSED_TERMINAL = """
import resource, signal, sys
from mpkit import BoundedQueue, TaskPool, WorkerProcess

# The tests may have been started with these signals ignored (nohup, in the background), which is inherited.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    first = sys.argv[1]
    if first == "pool":
        pool = TaskPool(1)
    elif first != "queue":
        WorkerProcess(target=signal.pause, start_method=first).start()
    queue = BoundedQueue()
    queue.put(bytes(100_000))
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
@pytest.mark.parametrize("first", ["queue", "pool", "spawn", "forkserver"])
@pytest.mark.parametrize("what", ["SIGHUP", "SIGQUIT"])
def test_a_program_ended_by_a_terminal_signal_leaves_no_names(tmp_path: Path, what: str, first: str) -> None:
    (tmp_path / "program.py").write_text(CLOSED_TERMINAL)
    with to_be_killed() as environment, python(tmp_path / "program.py", first, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        mark = f"-{program.pid}-"
        assert [name for name in os.listdir("/dev/shm") if mark in name]
        # A terminal sends it to the whole process group.
        os.killpg(program.pid, getattr(signal, what))
        assert program.wait(PATIENCE) == -getattr(signal, what)
        wait_until(
            lambda: not [name for name in os.listdir("/dev/shm") if mark in name], "its names are gone"
        )


def test_the_names_of_a_killed_program_are_removed(tmp_path: Path) -> None:
    """The resource tracker of multiprocessing removes them, even if no other process has opened them yet."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal
            from mpkit import BoundedQueue, Lock, LockedCounter
            things = BoundedQueue(), Lock(), LockedCounter()
            things[0].put(bytes(100_000))
            print(*(thing._name for thing in things), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = run_python(program, check=False)
    assert done.returncode == -signal.SIGKILL
    names = done.stdout.split()
    assert len(names) == 3
    mark = names[0].split("-")[2]
    wait_until(lambda: not [name for name in names if os.path.exists(name)], "the files have gone")
    wait_until(
        lambda: not [name for name in os.listdir("/dev/shm") if f"-{mark}-" in name],
        "the semaphores have gone",
    )


def test_the_resource_tracker_of_another_process_removes_nothing_that_is_in_use(
    queue: BoundedQueue[bytes], lock: Lock, counter: LockedCounter
) -> None:
    """multiprocessing's tracker would also remove names that its processes have only opened, not created."""
    program = textwrap.dedent(
        """
        import os, pickle, sys
        from multiprocessing import resource_tracker
        resource_tracker.ensure_running()
        queue, lock, counter = pickle.loads(bytes.fromhex(sys.argv[1]))
        with lock:
            queue.put(bytes(100_000))
            counter.add()
        os.kill(os.getpid(), int(sys.argv[2]))
        """
    )
    for signum in (signal.SIGKILL, 0):
        # The process's tracker has the same standard error, so this waits for both of them. The second
        # process opens what the first one had open.
        done = run_python(
            "-c", program, pickle.dumps((queue, lock, counter)).hex(), str(int(signum)), check=False
        )
        assert (done.returncode, done.stderr) == (-signum, "")
    for thing in (queue, lock, counter):
        assert os.path.exists(thing._name)
    assert (queue.qsize(), counter.value, lock.locked()) == (2, 2, False)


def test_a_program_that_exits_while_threads_wait_prints_no_errors(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio, threading
            import numpy as np
            from mpkit import BoundedQueue, Lock, LockedCounter
            queue, lock, counter = BoundedQueue(maxsize=2), Lock(), LockedCounter()
            queue.put(np.ones(100_000))
            held = queue.get()
            lock.acquire()
            def loop():
                asyncio.run(queue.aget())
            for target in (queue.get, lock.acquire, lambda: counter.wait_for(1), loop):
                threading.Thread(target=target, daemon=True).start()
            while queue.statistics().waiting_getters < 2:
                pass
            print("leaving")
            """
        )
    )
    done = run_python(program)
    assert (done.stdout, done.stderr) == ("leaving\n", "")


def test_a_queue_inside_a_queue_outlives_the_object_of_its_creator(queue: BoundedQueue[Any]) -> None:
    inner: BoundedQueue[int] = BoundedQueue()
    inner.put(1)
    queue.put(inner)
    del inner
    gc.collect()
    assert queue.get().get_nowait() == 1
