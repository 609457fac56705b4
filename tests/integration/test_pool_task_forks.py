"""Processes that a task forks, and damage to the memory that worker and pool share.

A forked process is no worker: whatever it does, it must not affect the pool.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpkit.errors import WorkerCrashed
from mpkit.pool import TaskPool
from mpkit.pool._engine import limits as _limits
from mpkit.pool._protocol.channel import ITEM, PID, STARTED, TASK, Channel
from mpkit.pool._worker import outbox as _worker_outbox
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    with TaskPool(1, context="fork") as pool:
        yield pool


def log(times: int) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the end of this process
    for number in range(times):
        logging.getLogger("mpkit-test").warning("child %d", number)


def log_beside_children(times: int) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=log, args=(times,)) for _ in range(2)]
    for child in children:
        child.start()
    for number in range(times):
        logging.getLogger("mpkit-test").warning("task %d", number)
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def hide_the_handler() -> None:
    root = logging.getLogger()
    handler = root.handlers.pop()
    root.addHandler(logging.handlers.MemoryHandler(1, target=handler))


@pytest.mark.parametrize("initializer", [tasks.nothing, hide_the_handler])
def test_children_of_a_task_that_log_do_not_write_into_the_ring_of_the_worker(
    initializer: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Only one process may write into the ring. Two would corrupt it, and the pool would hang."""
    with TaskPool(1, context="fork", initializer=initializer) as pool:
        assert pool.submit(log_beside_children, 500).result(PATIENCE) == [0, 0]
        pool.close()
        assert pool.join(PATIENCE)
    assert [record.getMessage() for record in caplog.records] == [f"task {number}" for number in range(500)]


def status_of_fork(act: Callable[[], object]) -> int:
    """Fork; the child calls `act` and returns from the task, as the parent does. Return its exit code."""
    child = os.fork()
    if not child:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  as above
        act()
        return -1
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def raise_value_error() -> None:
    raise ValueError("in the child")


def leave() -> None:
    sys.exit(3)


def leave_with_a_word() -> None:
    sys.exit("no")


OUTCOMES = [(tasks.nothing, 0), (raise_value_error, 1), (leave, 3), (leave_with_a_word, 1)]


@pytest.mark.parametrize("act, status", OUTCOMES)
def test_a_forked_child_that_returns_from_the_task_ends_there(
    pool: TaskPool, act: Callable[[], object], status: int
) -> None:
    """Otherwise it would go on as a second worker."""
    assert pool.submit(status_of_fork, act).result(PATIENCE) == status
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert pool.statistics().crashed == 0


@pytest.mark.parametrize("chunksize", [1, 4])
def test_forked_children_that_return_from_items_of_a_map_end_there(pool: TaskPool, chunksize: int) -> None:
    acts = [act for act, _ in OUTCOMES] * 2
    expected = [status for _, status in OUTCOMES] * 2
    assert pool.map(status_of_fork, acts, chunksize=chunksize) == expected
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def fork_or_note(item: tuple[int, str]) -> int:
    number, path = item
    if not number:
        return status_of_fork(tasks.nothing)
    return tasks.note(number, path)


def test_a_forked_child_does_not_go_on_with_the_items_of_a_chunk(pool: TaskPool, tmp_path: Path) -> None:
    """Many short items are processed in a single call of C code; the child is in the middle of that call."""
    path = tmp_path / "notes"
    assert pool.map(tasks.square, range(2000), chunksize=1000)
    items = [(number, str(path)) for number in range(40)]
    assert pool.map(fork_or_note, [*items[1:20], items[0], *items[20:]], chunksize=40)[19] == 0
    assert sorted(map(int, path.read_text().split())) == list(range(1, 40))


def test_a_forked_child_that_returns_from_the_initializer_ends_there() -> None:
    with TaskPool(1, context="fork", initializer=status_of_fork, initargs=(tasks.nothing,)) as pool:
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert pool.statistics().workers_started == 1


def interrupted_child() -> str:
    child = os.fork()
    if not child:
        try:
            os.kill(os.getpid(), 2)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(8)
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def test_ctrl_c_in_a_child_forked_by_a_task_raises_keyboard_interrupt(pool: TaskPool) -> None:
    """The worker's handler ignores SIGINT unless a task is being stopped. The child must not inherit that."""
    assert pool.submit(interrupted_child).result(PATIENCE) == "7"


def test_a_corrupt_outbox_costs_only_its_own_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stray write into its memory must not make the pool fail each time that it reads the outbox."""
    monkeypatch.setattr(_worker_outbox.Outbox, "put_log", lambda self, _record: self.put(b"torn"))
    with TaskPool(2, context="fork") as pool:
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            pool.submit(tasks.log, "mpkit-test", "text").result(PATIENCE)
        assert pool.map(tasks.square, range(20)) == [n * n for n in range(20)]
        pool.close()
        assert pool.join(PATIENCE)
    assert "has written into the memory" in caplog.text


def scribble(at: int, value: int) -> None:
    """Overwrite a word of this worker's row, as a stray write of a C extension might; then do not end."""
    words_of_this_worker()[at] = value
    time.sleep(10 * PATIENCE)


def words_of_this_worker() -> memoryview[int]:
    channels = [found for found in gc.get_objects() if type(found) is Channel]
    return next(channel.words for channel in channels if channel.words[PID] == os.getpid())


def die_after_a_stray_write(item: int) -> None:
    if item == 2:
        words_of_this_worker()[ITEM] = (1 << 64) - 1
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_chunk_that_overwrites_the_index_of_its_item_and_dies_ends() -> None:
    """No item can be blamed for the death. The chunk must not be sent to one worker after another."""
    with TaskPool(1, context="fork") as pool:
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            pool.map_async(die_after_a_stray_write, range(4), chunksize=4).result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


@pytest.mark.parametrize("at, value", [(TASK, 77_777), (STARTED, (1 << 64) - 1)], ids=["which", "when"])
def test_a_task_that_overwrites_its_row_in_shared_memory_ends(
    at: int, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its time limit would never be reached, and the pool would never end."""
    monkeypatch.setattr(_limits, "_SAMPLE_WITHOUT_SECONDS", 0.02)
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 0.02)
    with TaskPool(1, context="fork") as pool:
        handle = pool.with_options(timeout=600).submit(scribble, at, value)
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            handle.result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_forked_child_that_returns_from_a_big_function_pickles_nothing() -> None:
    """The child ends without pickling its result, which might raise, or leave a file behind."""
    ballast = bytes(100_000)

    def function() -> object:
        child = os.fork()
        if not child:
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115  as above
            return tasks.Unpicklable()
        assert ballast
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with TaskPool(1, context="fork", pickler="cloudpickle") as pool:
        assert pool.submit(function).result(PATIENCE) == 0
