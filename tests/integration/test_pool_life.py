"""The pool in whole programs: its end, limits, threads, coroutines, big data, logging, nesting, leaks."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mpkit._shm.memory.names import SHM_DIRECTORY
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import (
    ClosedError,
    PoolBroken,
    SerializationError,
    SharedMemoryExhausted,
    TaskCancelled,
    WorkerCrashed,
    WorkerMemoryExceeded,
)
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._protocol import payload as _payload
from tests.contract import pool_tasks as tasks
from tests.helpers.processes import gone, run_python, to_be_killed, wait_gone
from tests.helpers.waiting import PATIENCE, wait_until

LONG = PATIENCE
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="start methods other than spawn")


def run_script(
    tmp_path: Path, body: str, *, start_new_session: bool = False, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), **(env or {})}
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=start_new_session,
    )


# -- the end -------------------------------------------------------------------------------------------------


def test_a_dropped_pool_ends_and_warns() -> None:
    pool = TaskPool(processes=1, context="fork", grace_period=0.2)
    handle = pool.submit(tasks.hang)
    gc.collect()  # garbage of other tests may warn as well
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    with pytest.raises(TaskCancelled):
        handle.result(LONG)


def test_a_view_keeps_its_pool_alive() -> None:
    view = TaskPool(processes=1, context="fork").with_options(retries=1)
    gc.collect()
    assert view.submit(tasks.square, 3).result(LONG) == 9
    pool = view._pool
    assert pool is not None
    pool.close()
    assert pool.join(LONG)


def test_join_needs_close_or_terminate() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        with pytest.raises(ValueError, match="still open"):
            pool.join()
        handle = pool.submit(tasks.hang)
        pool.close()
        assert not pool.join(0.01)
        handle.cancel()
        # More seconds than the system's clocks can represent.
        assert pool.join(10**30)
        pool.close()
        pool.terminate()


def test_an_exception_in_the_block_terminates_the_pool() -> None:
    with pytest.raises(KeyError), TaskPool(processes=1, context="fork") as pool:
        handle = pool.submit(tasks.hang)
        raise KeyError
    with pytest.raises(TaskCancelled):
        handle.result(0)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_program_that_leaves_its_pool_open_ends(tmp_path: Path, method: str) -> None:
    process = run_script(
        tmp_path,
        f"""
from mpkit.pool import TaskPool
from tests.contract import pool_tasks as tasks
if __name__ == "__main__":
    pool = TaskPool(processes=2, context={method!r}, grace_period=0.2)
    print(pool.apply(tasks.square, (3,)))
    handles = [pool.submit(tasks.hang) for _ in range(5)]
""",
    )
    out, err = process.communicate(timeout=LONG)
    assert (out, process.returncode) == ("9\n", 0), err


def test_a_main_module_without_guard_says_what_to_do(tmp_path: Path) -> None:
    process = run_script(
        tmp_path,
        """
from mpkit.pool import TaskPool
from tests.contract import pool_tasks as tasks
pool = TaskPool(processes=1, context="spawn")
try:
    pool.apply(tasks.square, (3,))
except Exception as error:
    print(type(error).__name__, "__main__" in str(error))
pool.terminate()
pool.join()
""",
    )
    out, err = process.communicate(timeout=LONG)
    assert out == "PoolBroken True\n", err


def test_ctrl_c_ends_it_quickly_and_quietly(tmp_path: Path) -> None:
    process = run_script(
        tmp_path,
        """
import time
from mpkit.pool import TaskPool
from tests.contract import pool_tasks as tasks
if __name__ == "__main__":
    with TaskPool(processes=2, context="fork", grace_period=0.2) as pool:
        pool.map(tasks.square, range(10))
        print("ready", flush=True)
        pool.map(tasks.touch_and_wait, ["/dev/null"] * 4, chunksize=1)
""",
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGINT or process.returncode == 1
    assert err.count("Traceback (most recent call last)") == 1
    assert "KeyboardInterrupt" in err
    wait_gone(*(child.pid for child in children))


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    with to_be_killed() as env:
        yield env


def test_the_workers_die_with_a_killed_parent(tmp_path: Path, env: dict[str, str]) -> None:
    process = run_script(
        tmp_path,
        """
from mpkit.pool import TaskPool
from tests.contract import pool_tasks as tasks
if __name__ == "__main__":
    with TaskPool(processes=2, context="forkserver") as pool:
        pool.submit(tasks.busy_in_c)
        pool.submit(tasks.hang)
        while sum(worker.state == "running" for worker in pool.workers()) < 2:
            pass
        print(*(worker.pid for worker in pool.workers()), flush=True)
        tasks.hang()
""",
        env=env,
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.stderr is not None
    process.stderr.close()
    wait_gone(*workers)


def test_a_forked_child_cannot_use_the_pool_and_does_it_no_harm() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        assert pool.apply(tasks.square, (2,)) == 4
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                pool.submit(tasks.square, 3)
            except ClosedError as error:
                code = 0 if "fork" in str(error) else 2
            finally:
                del pool
                gc.collect()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pool.apply(tasks.square, (3,)) == 9


# -- limits --------------------------------------------------------------------------------------------------


def test_a_task_that_uses_too_much_memory_is_stopped() -> None:
    with TaskPool(processes=1, context="fork", max_memory_bytes=200 << 20) as pool:
        with pytest.raises(WorkerMemoryExceeded) as caught:
            pool.submit(tasks.use_memory, 400 << 20).result(LONG)
        assert caught.value.limit == 200 << 20
        assert caught.value.rss_bytes is not None
        assert caught.value.rss_bytes > 200 << 20
        assert pool.apply(tasks.square, (3,)) == 9


def test_submit_waits_while_too_many_tasks_wait(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with TaskPool(processes=1, context="fork", max_pending=2) as pool:
        handles = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(3)]
        blocked = threading.Thread(target=lambda: handles.append(pool.submit(tasks.wait_for_file, str(gate))))
        blocked.start()
        blocked.join(0.1)
        assert blocked.is_alive()
        gate.touch()
        blocked.join(LONG)
        assert len(handles) == 4
        assert [handle.result(LONG) for handle in handles] == [str(gate)] * 4


def test_a_cancelled_task_that_catches_the_interrupt_and_returns_keeps_its_worker(tmp_path: Path) -> None:
    with TaskPool(processes=1, context="fork") as pool:
        begun = tmp_path / "begun"
        pid = pool.apply(tasks.pid_of_worker)
        handle = pool.submit(tasks.catch_interrupt, str(begun))
        wait_until(begun.exists, "it has begun")
        assert handle.cancel()
        assert pool.submit(tasks.pid_of_worker).result(LONG) == pid


# -- many threads --------------------------------------------------------------------------------------------


def test_many_threads_submit_and_wait() -> None:
    with TaskPool(processes=2, context="fork") as pool:
        wrong: list[object] = []

        def work(offset: int) -> None:
            wrong.extend(
                n for n in range(offset, offset + 100) if pool.submit(tasks.square, n).result(LONG) != n * n
            )

        threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong


def test_submitting_while_another_thread_terminates() -> None:
    pool = TaskPool(processes=2, context="fork", grace_period=0.2)
    handles = []

    def submit() -> None:
        try:
            while True:
                handles.append(pool.submit(tasks.square, 1))
        except ClosedError:
            return

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(handles) > 100, "there are many")
    pool.terminate()
    for thread in threads:
        thread.join(LONG)
    assert pool.join(LONG)
    for handle in handles:
        assert handle.done()


# -- callbacks and coroutines --------------------------------------------------------------------------------


def test_callbacks_may_raise_and_call_back() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        seen: list[object] = []
        over = threading.Event()

        def again(value: int) -> None:
            seen.append(value)
            pool.apply_async(tasks.square, (value,), callback=last)
            raise LookupError("logged")

        def last(value: int) -> None:
            seen.append(value)
            over.set()

        pool.apply_async(tasks.square, (3,), callback=again)
        assert over.wait(LONG)
        errors: list[BaseException] = []
        over.clear()

        def note(error: BaseException) -> None:
            errors.append(error)
            over.set()

        pool.apply_async(tasks.fail, ("no",), error_callback=note)
        assert over.wait(LONG)
        assert seen == [9, 81]
        assert isinstance(errors[0], ValueError)


def test_handles_can_be_awaited(tmp_path: Path) -> None:
    async def main(pool: TaskPool) -> None:
        assert await pool.submit(tasks.square, 3) == 9
        with pytest.raises(ValueError, match="no"):
            await pool.submit(tasks.fail, "no")
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool.executor, tasks.square, 4) == 16
        assert await asyncio.gather(*(pool.submit(tasks.square, n) for n in range(20))) == [
            n * n for n in range(20)
        ]
        begun = tmp_path / "begun"
        handle = pool.submit(tasks.touch_and_wait, str(begun))

        waits = asyncio.Event()

        async def wait() -> None:
            waits.set()
            await handle

        waiting = asyncio.ensure_future(wait())
        await waits.wait()
        await asyncio.to_thread(wait_until, begun.exists, "it has begun")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # asyncio passes the cancel on in the next turn of its loop.
        await asyncio.to_thread(wait_until, handle.cancelled, "it is cancelled")

    with TaskPool(processes=1, context="fork") as pool:
        asyncio.run(main(pool))
        assert pool.apply(tasks.square, (3,)) == 9


def test_the_executor_behaves_like_one_of_concurrent_futures() -> None:
    with TaskPool(processes=2, context="fork") as pool:
        with pool.executor as executor:
            handles = [executor.submit(tasks.square, n) for n in range(5)]
            assert list(executor.map(tasks.add, range(5), range(5), chunksize=2)) == [0, 2, 4, 6, 8]
        assert [handle.result(0) for handle in handles] == [0, 1, 4, 9, 16]
        with pytest.raises(RuntimeError):
            executor.submit(tasks.square, 1)
        assert pool.executor.submit(tasks.square, 2).result(LONG) == 4


# -- imap ----------------------------------------------------------------------------------------------------


def test_imap_reads_ahead_no_more_than_buffersize() -> None:
    read: list[int] = []

    def endless() -> object:
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    with TaskPool(processes=2, context="fork") as pool:
        iterator = pool.imap(tasks.square, endless(), buffersize=10)  # type: ignore[arg-type]
        for n in range(100):
            assert next(iterator) == n * n
            assert len(read) <= n + 1 + 10
        iterator.close()
        assert pool.apply(tasks.square, (2,)) == 4


def test_an_error_of_the_input_comes_after_the_results_before_it() -> None:
    def items() -> object:
        yield from range(3)
        raise LookupError("no more")

    with TaskPool(processes=1, context="fork") as pool:
        for iterator in (pool.imap(tasks.square, items()), pool.imap_unordered(tasks.square, items())):  # type: ignore[arg-type]
            assert [next(iterator) for _ in range(3)] == [0, 1, 4]
            with pytest.raises(LookupError):
                next(iterator)
            with pytest.raises(StopIteration):
                next(iterator)


class _Labelled(TaskPool):
    def __init__(self) -> None:
        super().__init__(1, context="fork")
        self.label = "mine"

    def __repr__(self) -> str:
        return f"<{self.label}>"


def test_a_derived_pool_may_have_a_repr_of_its_own() -> None:
    """TaskPool's ``__init__`` must not call it: the attributes of the derived class are not set yet."""
    with _Labelled() as pool:
        assert pool.apply(tasks.square, (3,)) == 9
        assert repr(pool) == "<mine>"


def test_progress_shows_a_bar_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with TaskPool(processes=1, context="fork") as pool:
        assert pool.map(tasks.square, range(10), progress=True) == [n * n for n in range(10)]
        assert len(list(pool.imap(tasks.square, range(10), progress=True))) == 10
    assert "10/10" in capsys.readouterr().err


# -- data ----------------------------------------------------------------------------------------------------


def test_a_shared_object_arrives_as_its_value() -> None:
    array = np.arange(100_000, dtype=np.float64)
    with TaskPool(processes=2, context="fork") as pool:
        with pool.share(array) as shared:
            assert pool.submit(tasks.total, shared).result(LONG) == array.sum()
            assert (
                pool.submit(tasks.total_in, {"arrays": [shared, (shared,)[0]]}).result(LONG)
                == 2 * array.sum()
            )
            assert "read-only" in pool.submit(tasks.try_to_write, shared).result(LONG)
            assert shared.value is array
        with pytest.raises(SerializationError, match="closed"):
            pool.submit(tasks.total, shared)
        # A task keeps its shared object even if the caller drops it.
        assert pool.submit(tasks.total, pool.share(array)).result(LONG) == array.sum()
        # Also if the caller closes it before any of the tasks has begun.
        with pool.share(array) as shared:
            pool.submit(time.sleep, 0.3)
            handles = [pool.submit(tasks.total, shared) for _ in range(300)]
            name = shared._blob.name if shared._blob else ""
            del shared
        assert [handle.result(LONG) for handle in handles] == 300 * [array.sum()]
        wait_until(lambda: not os.path.exists(name), "the file is gone")


def test_arrays_are_passed_in_both_directions_and_belong_to_the_receiver() -> None:
    array = np.arange(200_000, dtype=np.float64)
    with TaskPool(processes=1, context="fork") as pool:
        assert pool.submit(tasks.total, array).result(LONG) == array.sum()
        back = pool.submit(tasks.make_array, 200_000).result(LONG)
        back[0] = 5
        assert back.sum() == array.sum() + 5
        assert pool.submit(tasks.try_to_write, array).result(LONG) == "written"
        assert array[0] == 0


def test_a_worker_killed_while_it_sends_a_big_result_leaves_nothing(tmp_path: Path) -> None:
    with TaskPool(processes=1, context="fork") as pool:
        for _ in range(3):
            handle = pool.submit(tasks.make_array, 5_000_000)
            wait_until(functools.partial(_has_begun, handle), "it runs")
            pid = handle.worker_pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            handle.wait(LONG)
            assert handle.done()


def _has_begun(handle: TaskHandle[Any]) -> bool:
    # The task is short: it may begin and end between two looks.
    return handle.running() or handle.done()


# -- surroundings --------------------------------------------------------------------------------------------


def test_log_records_reach_the_parent(caplog: pytest.LogCaptureFixture) -> None:
    with TaskPool(processes=1, context="forkserver") as pool:
        pid = pool.apply(tasks.pid_of_worker)
        handle = pool.submit(tasks.log, "some.where", "look at this")
        handle.result(LONG)
        wait_until(lambda: bool(caplog.records), "the record has arrived")
        pool.apply(tasks.square, (1,))
    record = caplog.records[0]
    assert (record.name, record.getMessage(), record.levelno) == (
        "some.where",
        "look at this",
        logging.WARNING,
    )
    assert (record.process, record.mpkit_task_id, record.colour) == (pid, handle.task_id, "blue")  # type: ignore[attr-defined]


def test_pools_nest() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        assert pool.submit(tasks.nested, 4).result(LONG) == [0, 1, 4, 9]
        inner = pool.submit(tasks.leave_a_nested_pool_open).result(LONG)
    wait_until(
        lambda: gone(inner),
        "the inner worker has ended",
    )


def test_cloudpickle_takes_lambdas() -> None:
    with TaskPool(processes=1, context="fork", pickler="cloudpickle") as pool:
        offset = 3

        def shift(number: int) -> int:
            return number + offset

        assert pool.map(shift, range(3)) == [3, 4, 5]
        assert pool.submit(tasks.make_adder, 3).result(LONG)(4) == 7
        big = bytes(100_000)
        sized: Callable[..., int] = lambda n, *, k: len(big) + n + k  # noqa: E731
        assert pool.submit(sized, 1, k=2).result(LONG) == 100_003
    with TaskPool(processes=1, context="fork") as pool:
        assert pool.with_options(pickler="cloudpickle").submit(lambda: 1).result(LONG) == 1


def test_ten_pools_in_a_row_leave_nothing() -> None:
    for _ in range(10):
        with TaskPool(processes=2, context="fork") as pool:
            pool.map(tasks.square, range(10))


def open_files() -> tuple[int, int]:
    """How many descriptors this process has, and how many mappings of files that belong to pools."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        maps = sum("/mpkit-p" in line for line in file)
    return len(os.listdir("/proc/self/fd")), maps


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_ended_pools_and_handles_that_are_kept_hold_no_system_resources(end: str) -> None:
    def one() -> tuple[TaskPool, list[TaskHandle[Any]]]:
        pool = TaskPool(processes=1, context="fork")
        handles: list[TaskHandle[Any]] = [
            pool.submit(tasks.square, 3),
            pool.submit(bytes, 300_000),
            pool.submit(tasks.fail, "on purpose"),
        ]
        asked = pool.submit(tasks.square, 4)
        assert asked.result(LONG) == 16
        for handle in handles:
            handle.wait(LONG)
        getattr(pool, end)()
        pool.join()
        return pool, [*handles, asked]

    gc.collect()
    gc.disable()
    try:
        kept = [one()]
        before = open_files()
        kept += [one() for _ in range(3)]
        after = open_files()
        # Only the big result of each pool is still mapped, because it is unpickled only when it is asked for.
        # Before Python 3.13, a mapping needs a descriptor.
        descriptors = 0 if sys.version_info >= (3, 13) else 3
        assert (after[0] - before[0], after[1] - before[1]) == (descriptors, 3)
    finally:
        gc.enable()
    for pool, (square, big, failed, asked) in kept:
        assert (square.result(0), len(big.result(0)), asked.result(0)) == (9, 300_000, 16)
        assert "on purpose" in str(failed.exception(0))
        assert (square.done(), square.cancel(), square.running()) == (True, False, False)
        assert pool.statistics().workers == 0
        assert pool.workers() == []
        assert pool.stacks() == {}
        assert pool.join()
        pool.terminate()
        called: list[object] = []
        asked.add_done_callback(called.append)
        assert called == [asked]
        with pytest.raises(ClosedError):
            pool.submit(tasks.square, 1)


def test_a_pool_can_end_when_no_semaphore_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TaskPool(1)
    assert pool.apply(abs, (-1,)) == 1

    def refuse(_value: int = 1) -> Semaphore:
        raise SharedMemoryExhausted("no room")

    monkeypatch.setattr(Semaphore, "private", refuse)
    pool.close()
    assert pool.join(LONG)


def test_a_pool_ends_even_if_its_list_of_idle_workers_is_incomplete() -> None:
    pool = TaskPool(2)
    assert pool.apply(abs, (-1,)) == 1
    dispatcher = pool._engine.dispatcher
    with dispatcher.lock:
        dispatcher.roster.idle.clear()
    pool.close()
    assert pool.join(LONG)


def refuse_threads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_pool_whose_supervisor_cannot_be_started_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_threads(monkeypatch, "-supervisor")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        TaskPool(processes=2, context="fork")


def test_a_pool_whose_collector_cannot_be_started_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_threads(monkeypatch, "-collector")
    handles: list[TaskHandle[int]] = []
    told: list[object] = []
    pool = TaskPool(processes=2, context="fork")

    def submit_for_ever() -> None:
        while True:
            handles.append(pool.submit(tasks.square, 1))
            handles[-1].add_done_callback(told.append)

    with pytest.raises(PoolBroken, match="the system refuses"):
        submit_for_ever()
    assert pool.join(LONG)
    # The callbacks of all tasks that were accepted are called.
    assert set(map(id, told)) == set(map(id, handles))


# -- what is given back while the program goes on ------------------------------------------------------------


needs_shm = pytest.mark.skipif(not os.path.isdir(SHM_DIRECTORY), reason="looks into /dev/shm")


def parcels_of(pid: int) -> list[Path]:
    """The files with big arguments and results that a process has made."""
    return list(Path(SHM_DIRECTORY).glob(f"mpkit-parcel-{pid}-*"))


@needs_shm
def test_the_file_of_a_big_result_is_removed_when_it_arrives() -> None:
    """It must not stay until the end of the program, when it would be removed in any case."""
    with TaskPool(1, context="fork") as pool:
        pid = pool.apply(os.getpid)
        handle = pool.submit(bytes, 1 << 20)
        handle.wait(LONG)
        assert parcels_of(pid) == []
        assert handle.result() == bytes(1 << 20)


def _make_a_parcel_and_die() -> None:
    parcel = _payload._pack(b"pickle", [])
    assert parcels_of(os.getpid()), parcel
    tasks.kill_myself()


@needs_shm
def test_files_that_a_dead_worker_has_not_handed_over_are_removed() -> None:
    with TaskPool(1, context="fork") as pool:
        handle = pool.submit(_make_a_parcel_and_die)
        with pytest.raises(WorkerCrashed) as caught:
            handle.result(LONG)
        pid = caught.value.pid
        assert pid is not None
        wait_until(lambda: not parcels_of(pid), "they are gone")
        assert pool.apply(tasks.square, (3,)) == 9


def test_each_task_of_a_pool_that_ends_has_an_error_of_its_own() -> None:
    """An error that several threads raise would collect the tracebacks of all of them."""
    with TaskPool(1, context="fork", grace_period=0.1) as pool:
        handles = [pool.submit(tasks.hang) for _ in range(2)]
        pool.terminate()
        errors: list[BaseException] = []
        for handle in handles:
            with pytest.raises(TaskCancelled) as caught:
                handle.result(LONG)
            errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_more_big_results_can_be_kept_than_there_are_descriptors() -> None:
    program = """
import resource
import numpy as np
from mpkit import TaskPool
if __name__ == "__main__":
    with TaskPool(2, context="fork") as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        handles = [pool.submit(np.full, 20_000, number) for number in range(300)]
        arrays = [handle.result() for handle in handles]
        arrays[0][0] = 77
        print(all(array.sum() == 20_000 * number for number, array in enumerate(arrays) if number))
"""
    assert run_python("-c", program).stdout.split() == ["True"]
