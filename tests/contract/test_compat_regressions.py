"""Where `mpkit.compat` once did otherwise than the standard library."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
from typing import Any, cast

import pytest

from mpkit import compat
from mpkit.compat import futures
from tests.contract import compat_tasks as tasks
from tests.helpers.processes import python, run_python
from tests.helpers.waiting import PATIENCE

# -- the end of a program
# ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import time

from mpkit.compat import futures


def work():
    # It ends long after the program has come to its end.
    time.sleep(0.2)
    print("done", flush=True)


def shut_down(keep):
    executor = futures.ProcessPoolExecutor(1)
    for _ in range(2):
        executor.submit(work)
    executor.shutdown(wait=False)
    if keep:
        globals()["executor"] = executor


if __name__ == "__main__":
    shut_down(sys.argv[1] == "keep")
"""


@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_a_program_that_has_not_waited_in_shutdown_waits_at_its_end(tmp_path: Any, keep: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run_python("-W", "error", program, keep)
    assert ended.stdout.split() == ["done", "done"]
    assert ended.stderr == ""


STUBBORN = """
import signal
import sys
import time

from mpkit.compat import futures


def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    executor = futures.ProcessPoolExecutor(1)
    executor.submit(work)
    # The worker writes to the same pipe: the test goes on when it is deaf.
    sys.stdin.readline()
    executor.terminate_workers()
"""


def test_a_worker_that_ignores_being_terminated_does_not_keep_the_program_from_ending(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(STUBBORN)
    with python(program, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        _, errors = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


# -- executors
# ---------------------------------------------------------------------------------------------------------


_kept: list[Any] = []


def _keep(*objects: Any) -> None:
    _kept[:] = objects


def _wait_for_kept(x: int) -> int:
    return tasks.wait_for(_kept[-1], x)


def _tell_and_wait(x: int) -> int:
    """Say that it has begun, wait to be let through, and say that it has ended."""
    told, gate = _kept
    told.put(f"begun {x}")
    gate.acquire()
    told.put(f"ended {x}")
    return x


def _all_of(queue: compat.SimpleQueue[str]) -> list[str]:
    found = []
    while not queue.empty():
        found.append(queue.get())
    queue.close()
    return found


def test_a_map_whose_time_is_over_lets_a_running_task_finish_and_cancels_the_rest() -> None:
    spawn = compat.get_context("spawn")
    told, gate = spawn.SimpleQueue(), spawn.Semaphore(0)
    with futures.ProcessPoolExecutor(1, spawn, _keep, (told, gate)) as executor:
        results = executor.map(_tell_and_wait, range(100), timeout=0.05, chunksize=2)
        assert told.get() == "begun 0"
        with pytest.raises(futures.TimeoutError):
            next(results)
        gate.release()
        gate.release()
    # A chunk is one task.
    assert _all_of(told) == ["ended 0", "begun 1", "ended 1"]


def test_a_map_that_is_abandoned_lets_a_running_task_finish_and_cancels_the_rest() -> None:
    spawn = compat.get_context("spawn")
    told, gate = spawn.SimpleQueue(), spawn.Semaphore(1)
    with futures.ProcessPoolExecutor(1, spawn, _keep, (told, gate)) as executor:
        results = cast("Any", executor.map(_tell_and_wait, range(100)))
        assert next(results) == 0
        assert [told.get() for _ in range(3)] == ["begun 0", "ended 0", "begun 1"]
        results.close()
        gate.release()
    assert _all_of(told) == ["ended 1"]


def test_a_negative_timeout_of_a_future_is_no_time() -> None:
    spawn = compat.get_context("spawn")
    event = spawn.Event()
    with futures.ProcessPoolExecutor(1, spawn, _keep, (event,)) as executor:
        future = executor.submit(_wait_for_kept, 1)
        with pytest.raises(futures.TimeoutError):
            future.result(timeout=-1)
        with pytest.raises(futures.TimeoutError):
            future.exception(timeout=-0.5)
        event.set()
        assert future.result(PATIENCE) == 1
        assert future.result(-1) == 1
        assert future.exception(-1) is None


def test_an_executor_raises_what_pickle_has_raised() -> None:
    class Local:
        pass

    with pytest.raises(Exception) as caught:
        pickle.dumps(Local())

    async def result() -> object:
        return await asyncio.wrap_future(executor.submit(tasks.unpicklable))

    with futures.ProcessPoolExecutor(1) as executor:
        # A lock: TypeError on every version of Python.
        future = executor.submit(tasks.unpicklable)
        with pytest.raises(TypeError, match="lock"):
            future.result()
        assert type(future.exception()) is TypeError
        with pytest.raises(TypeError, match="lock"):
            list(executor.map(tasks.unpicklable, [1]))
        with pytest.raises(TypeError, match="lock"):
            asyncio.run(result())
        # What it is for a local class differs between versions of Python, but it is pickle's own.
        sent = executor.submit(tasks.square, cast("Any", Local()))
        assert type(sent.exception()) is caught.type


def test_a_context_given_by_its_name_is_refused() -> None:
    with pytest.raises(AttributeError):
        futures.ProcessPoolExecutor(1, cast("Any", "spawn"))


def test_workers_that_are_forked_cannot_be_replaced() -> None:
    if "fork" not in compat.get_all_start_methods():
        pytest.skip("there is no fork here")
    with pytest.raises(ValueError, match="incompatible with the 'fork'"):
        futures.ProcessPoolExecutor(1, compat.get_context("fork"), max_tasks_per_child=1)


def test_true_is_one_worker() -> None:
    with futures.ProcessPoolExecutor(True, max_tasks_per_child=True) as executor:
        assert executor.submit(tasks.square, 2).result() == 4
    with pytest.raises(ValueError, match="0"):
        futures.ProcessPoolExecutor(False)
