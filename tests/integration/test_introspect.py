"""`mpkit.introspect` on other processes: living ones, ended ones, and the queues and pools that they have."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mpkit import BoundedQueue, TaskPool, introspect
from mpkit.errors import ProcessGone
from mpkit.process import ProcessState
from tests.conftest import own_or_of_the_server
from tests.helpers.waiting import PATIENCE, wait_until

SLEEPER = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def child(program: str = SLEEPER) -> Iterator[subprocess.Popen[str]]:
    """Give the block a process that runs `program` and has printed "ready". It is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_child_is_seen_waiting_stopped_and_gone() -> None:
    with child() as process:
        wait_until(lambda: introspect.snapshot(process.pid).state is ProcessState.WAITING, "it waits")
        seen = introspect.snapshot(process.pid)
        assert (seen.pid, seen.ppid) == (process.pid, os.getpid())
        assert seen.cmdline[1:] == ("-c", SLEEPER)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: introspect.snapshot(process.pid).state is ProcessState.STOPPED, "it is stopped")
    with pytest.raises(ProcessGone):
        introspect.snapshot(process.pid)


def test_a_zombie_is_shown_as_one() -> None:
    with child() as process:
        process.kill()
        # Wait until it is dead, but do not reap it: it stays a zombie until the end of the block.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seen = introspect.snapshot(process.pid)
        assert seen.state is ProcessState.ZOMBIE
        assert seen.rss_bytes == 0
        assert seen.cmdline == ()
        assert seen.uss_bytes in (None, 0)
        zombies = [p.pid for p in introspect.tree().walk() if p.state is ProcessState.ZOMBIE]
        assert process.pid in zombies
        pictures = introspect.watch(process.pid, interval=0.01)
        assert next(pictures).state is ProcessState.ZOMBIE
        assert next(pictures).state is ProcessState.ZOMBIE


def test_a_watch_ends_with_its_process_and_does_not_reap_it() -> None:
    with child() as process:
        pictures = introspect.watch(process.pid, interval=0.01)
        assert next(pictures).pid == process.pid
        process.kill()
        assert process.wait() == -signal.SIGKILL  # nobody else has taken the exit code
        assert list(pictures) == []


def test_a_watch_shows_the_load_of_each_interval() -> None:
    with child("print('ready', flush=True)\nwhile True: pass") as process:
        pictures = introspect.watch(process.pid, interval=0.2)
        next(pictures)
        assert any(next(pictures).cpu_percent > 1 for _ in range(20))


FAMILY = f"""
import subprocess, sys
inner = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
inner.stdout.readline()
print("ready", flush=True)
try:
    sys.stdin.read()
finally:
    inner.communicate()
"""


def test_a_tree_shows_grandchildren_under_their_parents() -> None:
    with child(FAMILY) as process:
        tree = introspect.tree(process.pid)
        assert tree.process.pid == process.pid
        ((grandchild,),) = [[branch.process for branch in tree.children]]
        assert grandchild.ppid == process.pid
        assert [p.pid for p in tree.walk()] == [process.pid, grandchild.pid]
        assert grandchild.pid in [p.pid for p in introspect.tree().walk()]
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def test_children_are_in_the_order_in_which_they_were_started() -> None:
    with child() as first, child() as second:
        pids = [branch.process.pid for branch in introspect.tree().children]
        assert pids.index(first.pid) < pids.index(second.pid)


USER = """
import sys
from mpkit import BoundedQueue
queue = BoundedQueue(maxsize=5)
queue.put_many([1, 2, 3])
queue.get()
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_queues_of_another_process_are_read_from_outside() -> None:
    before = introspect.queues()
    with child(USER) as process:
        (found,) = introspect.queues(process.pid)
        assert found.pid == process.pid
        assert found.users == (process.pid,)
        statistics = found.statistics
        assert (statistics.size, statistics.puts, statistics.gets, statistics.maxsize) == (2, 3, 1, 5)
        assert introspect.queues() == before  # reading them has left nothing open here
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can open a file whose name is gone")
def test_a_queue_whose_name_is_gone_is_still_read() -> None:
    with child(USER) as process:
        (found,) = introspect.queues(process.pid)
        os.unlink(found.name)
        assert introspect.queues(process.pid) == [found]


def wait_for_the_end(queue: BoundedQueue[str]) -> int:
    queue.put("here")
    for item in queue:
        assert item
    return os.getpid()


@own_or_of_the_server
def test_the_pools_of_this_process_are_seen_as_from_outside(start_method: str) -> None:
    with BoundedQueue[str](10) as queue, TaskPool(2, context=start_method) as pool:
        handles = [pool.submit(wait_for_the_end, queue) for _ in range(2)]
        wait_until(lambda: queue.statistics().puts == 2, "both workers are at it")
        (found,) = introspect.pools()
        assert found.pid == os.getpid()
        assert sorted(worker.pid for worker in found.workers) == sorted(w.pid for w in pool.workers())
        assert {worker.state for worker in found.workers} == {"running"}
        assert {worker.task_id for worker in found.workers} == {handle.task_id for handle in handles}
        assert all(worker.running_s is not None and worker.running_s >= 0 for worker in found.workers)
        assert all(worker.rss_bytes for worker in found.workers)
        # The workers have the queue open as well.
        (seen,) = [
            seen
            for seen in introspect.queues(found.workers[0].pid)
            if seen.statistics.maxsize == queue.maxsize
        ]
        assert set(seen.users) >= {worker.pid for worker in found.workers}
        queue.shutdown()
        assert {handle.result() for handle in handles} == {worker.pid for worker in found.workers}
    assert introspect.pools() == []


def test_two_pools_are_told_apart() -> None:
    # With fork, a worker of the second pool also has everything open that belongs to the first one.
    method = "fork" if hasattr(os, "fork") else "spawn"
    with (
        TaskPool(1, context=method, name="indexing") as first,
        TaskPool(2, context=method, name="\u00fc" * 200) as second,
    ):
        first.apply(abs, [1])
        second.map(abs, range(10))
        wait_until(
            lambda: sorted(len(pool.workers) for pool in introspect.pools()) == [1, 2],
            "all workers have started",
        )
        one, two = sorted(introspect.pools(), key=lambda pool: len(pool.workers))
        assert {w.pid for w in one.workers} == {w.pid for w in first.workers()}
        assert {w.pid for w in two.workers} == {w.pid for w in second.workers()}
        assert (one.label, two.label) == ("indexing", "\u00fc" * 127)


def test_reading_queues_and_pools_many_times_leaves_nothing_open() -> None:
    with child(USER) as process:
        introspect.queues(process.pid)
        gc.collect()  # garbage of earlier tests must not be closed between the two measurements
        before = introspect.snapshot().num_fds
        for _ in range(20):
            introspect.queues(process.pid)
            introspect.pools(process.pid)
        assert introspect.snapshot().num_fds == before
        # `top` does this again and again, so it must not take long.
        started = time.perf_counter()
        introspect.queues(process.pid)
        assert time.perf_counter() - started < PATIENCE
