"""What can go wrong with a pool's workers and tasks: each failure ends in an error that says why; no hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mpkit import LockedCounter
from mpkit.errors import (
    InitializerFailed,
    PoolBroken,
    SerializationError,
    TaskCancelled,
    TaskTimeout,
    WorkerCrashed,
)
from mpkit.pool import TaskPool
from mpkit.pool._engine import crew as _crew
from mpkit.pool._engine import engine as _engine
from mpkit.pool._engine import leavers as _leavers
from mpkit.pool._engine import start_ups as _start_ups
from tests.conftest import own_or_of_the_server
from tests.contract import pool_tasks as tasks
from tests.helpers.processes import python, wait_gone
from tests.helpers.stepping import without_collections
from tests.helpers.waiting import PATIENCE, wait_until

LONG = PATIENCE
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, and start methods other than spawn")


# -- the start -----------------------------------------------------------------------------------------------


@own_or_of_the_server
def test_terminate_ends_an_initializer_that_hangs(start_method: str, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    pool = TaskPool(
        processes=2,
        initializer=tasks.hang_in_initializer,
        initargs=(str(begun),),
        context=start_method,
        grace_period=0.2,
    )
    wait_until(begun.exists, "it has begun")
    # Submitting does not wait for the workers.
    handle = pool.submit(tasks.square, 1)
    assert {worker.state for worker in pool.workers()} <= {"starting", "initializing"}
    pool.close()
    assert not pool.join(0.01)
    pool.terminate()
    assert pool.join(LONG)
    with pytest.raises(TaskCancelled):
        handle.result(0)


def test_a_pool_without_tasks_closes_although_its_initializer_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_leavers, "_LEAST_SECONDS", 0.2)
    begun = tmp_path / "begun"
    with TaskPool(
        processes=1,
        initializer=tasks.hang_in_initializer,
        initargs=(str(begun),),
        context="fork",
        grace_period=0.02,
    ):
        wait_until(begun.exists, "it has begun")


def test_a_pool_without_tasks_lets_its_initializer_finish(tmp_path: Path) -> None:
    """It must not be killed in the middle of its work, just because no task is waiting."""
    begun, gate, ended = tmp_path / "begun", tmp_path / "gate", tmp_path / "ended"
    pool = TaskPool(
        processes=1,
        initializer=tasks.initialize_slowly,
        initargs=(str(begun), str(gate), str(ended)),
        context="fork",
    )
    wait_until(begun.exists, "it has begun")
    pool.close()
    # The worker has been told to leave, but not been killed.
    wait_until(
        lambda: all(lane.told_to_leave for lane in pool._engine.dispatcher.lanes.values()),
        "all are told to leave",
    )
    gate.touch()
    assert pool.join(LONG)
    assert ended.exists()


def test_an_initializer_that_raises_system_exit_has_failed() -> None:
    # `raises` comes first: the initializer may have failed before the block is entered.
    with (
        pytest.raises(InitializerFailed, match="SystemExit: no") as caught,
        TaskPool(
            processes=1, initializer=tasks.leave_in_initializer, initargs=("no",), context="fork"
        ) as pool,
    ):
        pool.submit(tasks.square, 1).result(LONG)
    assert isinstance(caught.value.__cause__, SystemExit)


def test_an_initializer_error_that_raises_system_exit_when_unpickled() -> None:
    """The SystemExit must not end the supervisor: it is reported as the initializer's error."""
    with (
        pytest.raises(InitializerFailed, match="SystemExit: 7"),
        TaskPool(
            processes=1,
            initializer=tasks.raise_what_leaves_in_its_parent,
            initargs=(os.getpid(),),
            context="fork",
        ) as pool,
    ):
        pool.submit(tasks.square, 1).result(LONG)


class HangsIn(Exception):
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Callable[[int], HangsIn], tuple[int]]:
        return hang_in, (self.pid,)


def hang_in(pid: int) -> HangsIn:
    if os.getpid() == pid:
        time.sleep(10 * LONG)
    return HangsIn(pid)


def fail_and_hang_in(pid: int) -> None:
    raise HangsIn(pid)


def test_an_initializer_error_whose_unpickling_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor must not hang with it, or the pool would neither work nor end."""
    monkeypatch.setattr(_crew, "_UNPICKLING_SECONDS", 0.1)
    with (
        pytest.raises(InitializerFailed, match=r"HangsIn.*unpickling it takes too long"),
        TaskPool(1, fail_and_hang_in, (os.getpid(),), context="fork") as pool,
    ):
        pool.submit(tasks.square, 1).result(LONG)


def test_arguments_that_raise_system_exit_when_unpickled_are_an_error() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        pid = pool.submit(os.getpid).result(LONG)
        with pytest.raises(SerializationError, match="SystemExit: 7"):
            pool.submit(tasks.echo, tasks.LeavesWhenUnpickled()).result(LONG)
        items = [1, tasks.LeavesWhenUnpickled(), 2]
        handles = pool.imap(tasks.echo, items, chunksize=3)
        assert next(handles) == 1
        with pytest.raises(SerializationError, match="SystemExit: 7"):
            next(handles)
        assert next(handles) == 2
        assert pool.submit(os.getpid).result(LONG) == pid


def test_a_result_that_raises_system_exit_when_unpickled_ends_no_thread_of_the_pool() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        told: list[BaseException] = []
        pool.apply_async(tasks.LeavesWhenUnpickled, error_callback=told.append)
        wait_until(lambda: bool(told), "it is told")
        assert isinstance(told[0], SystemExit)
        assert pool.submit(tasks.square, 2).result(LONG) == 4


def test_the_error_of_an_initializer_may_be_long() -> None:
    with (
        pytest.raises(InitializerFailed, match="LookupError: xxx"),
        TaskPool(processes=1, initializer=tasks.raise_much_in_initializer, context="fork") as pool,
    ):
        pool.submit(tasks.square, 1).result(LONG)


class Wordless(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


def fail_without_words() -> None:
    raise Wordless


def test_an_initializer_error_whose_str_raises_is_reported_all_the_same() -> None:
    """The pool reports this error, instead of breaking because the error's ``__str__`` fails."""
    with (
        pytest.raises(InitializerFailed, match="Wordless: <no text>") as caught,
        TaskPool(processes=1, initializer=fail_without_words, context="fork") as pool,
    ):
        pool.submit(tasks.square, 1).result(LONG)
    assert isinstance(caught.value.__cause__, Wordless)


def test_a_worker_killed_while_it_starts_is_replaced(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "first"
    with TaskPool(
        processes=1, initializer=tasks.wait_in_initializer, initargs=(str(path),), context=start_method
    ) as pool:
        handle = pool.submit(tasks.square, 3)
        wait_until(path.exists, "it has begun")
        os.kill(pool.workers()[0].pid, signal.SIGKILL)
        assert handle.result(LONG) == 9
        assert pool.statistics().crashed == 0


def test_start_ups_that_are_killed_again_and_again_break_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_start_ups, "_LONGEST_PAUSE_SECONDS", 0.01)
    with TaskPool(processes=1, initializer=tasks.kill_myself, context="fork", grace_period=0.2) as pool:
        handle = pool.submit(tasks.square, 3)
        with pytest.raises(PoolBroken, match=r"10 start-ups in a row failed.*SIGKILL") as caught:
            handle.result(LONG)
        text = str(caught.value)
        assert 0 < text.find("initializer kill_myself") < text.find("out-of-memory killer"), text
        assert pool.statistics().workers_started == 10


# -- deaths --------------------------------------------------------------------------------------------------


@own_or_of_the_server
def test_a_stack_overflow_in_c_fails_only_its_own_task(start_method: str) -> None:
    with TaskPool(processes=1, context=start_method) as pool:
        with pytest.raises(WorkerCrashed) as caught:
            pool.submit(tasks.overflow_the_stack).result(LONG)
        assert caught.value.signal == "SIGSEGV"
        assert caught.value.stack is not None
        assert "again" in caught.value.stack
        assert pool.submit(tasks.square, 3).result(LONG) == 9


def test_a_task_keeps_its_counter_alive_for_its_retries() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        counter = LockedCounter()
        gone = weakref.ref(counter)
        handle = pool.with_options(retries=5).submit(tasks.die_until, counter, 3)
        del counter
        assert gone() is not None or handle.done(), "the next worker could not open it"
        assert handle.result(LONG) == 3
        wait_until(lambda: gone() is None, "it is gone")


def test_big_tasks_on_their_way_to_a_worker_that_dies_are_sent_to_the_next() -> None:
    with TaskPool(1, context="fork") as pool:
        pid = pool.apply(tasks.pid_of_worker)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it is stopped")
        # More than fits into a pipe or an inbox, so a sender that waited for them to be read would never end.
        sizes = [1, 30_000, 1_000_000] * 4
        handles = [pool.submit(len, bytes(size)) for size in sizes]
        os.kill(pid, signal.SIGKILL)
        assert [handle.result(LONG) for handle in handles] == sizes


def test_the_error_of_a_task_that_kills_every_worker_names_each_death(tmp_path: Path) -> None:
    path = tmp_path / "count"
    with TaskPool(processes=2, context="fork") as pool:
        with pytest.raises(WorkerCrashed, match="tried 4 times") as caught:
            pool.with_options(retries=3).submit(tasks.count_and_die, str(path)).result(LONG)
        assert path.read_text() == "xxxx"
        assert str(caught.value).count("was killed by SIGKILL") == 4
        statistics = pool.statistics()
        assert (statistics.crashed, statistics.retried) == (1, 3)


# -- pickling, unpickling and callbacks that hang ------------------------------------------------------------


@pytest.mark.parametrize("function", [tasks.raise_hanging, tasks.return_hanging])
@pytest.mark.parametrize("kind", [tasks.HangsWhenPickled, tasks.HangsWhenUnpickled])
def test_pickling_that_hangs_in_the_worker_is_under_the_time_limit(
    function: Callable[[type[Exception]], object], kind: type[Exception]
) -> None:
    if function is tasks.return_hanging and kind is tasks.HangsWhenUnpickled:
        pytest.skip("a value is unpickled in the thread that asks for it, not in the worker")
    with TaskPool(processes=1, context="fork", grace_period=0.1) as pool:
        with pytest.raises(TaskTimeout):
            pool.with_options(timeout=0.1).submit(function, kind).result(LONG)
        handle = pool.submit(function, kind)
        wait_until(handle.running, "it runs")
        assert handle.cancel()
        assert pool.submit(tasks.square, 3).result(LONG) == 9


def test_a_value_whose_unpickling_hangs_blocks_only_the_thread_that_asks_for_it(tmp_path: Path) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    got: list[object] = []
    with TaskPool(processes=1, context="fork") as pool:
        handle = pool.submit(tasks.WaitsWhenUnpickled, str(begun), str(gate))
        handle.wait(LONG)
        assert handle.done()
        asker = threading.Thread(target=lambda: got.append(handle.result(0)))
        asker.start()
        wait_until(begun.exists, "it has begun")
        # Other threads, and callbacks, go on meanwhile.
        called = threading.Event()
        pool.apply_async(tasks.square, (2,), callback=lambda _: called.set())
        assert called.wait(LONG)
        assert pool.map(tasks.square, range(10)) == [n * n for n in range(10)]
        assert handle.done()
        assert not handle.cancel()
    # The end of the pool has not waited for it either.
    assert asker.is_alive()
    gate.touch()
    asker.join(LONG)
    assert got == [str(gate)]
    assert str(handle.result(0)) == str(gate)


def test_ctrl_c_while_a_value_is_unpickled_reaches_the_caller() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        handle = pool.submit(tasks.InterruptsWhenUnpickled)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                handle.result(LONG)
        assert pool.submit(tasks.square, 3).result(LONG) == 9


def test_a_callback_that_hangs_does_not_stop_a_terminated_pool_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_engine, "_CALLBACK_SECONDS", 0.1)
    over = threading.Event()
    pool = TaskPool(processes=1, context="fork", grace_period=0.1)
    begun = threading.Event()

    def hang(_: object) -> None:
        begun.set()
        over.wait(LONG)

    pool.apply_async(tasks.square, (1,), callback=hang)
    assert begun.wait(LONG)
    assert pool.submit(tasks.square, 3).result(LONG) == 9
    pool.terminate()
    # The callback waits for longer than this.
    assert pool.join(LONG / 2)
    over.set()
    # The thread still runs only because of this test's callback: wait for its end.
    for thread in threading.enumerate():
        if thread.name.endswith("-caller"):
            thread.join(LONG)


# -- cancelling ----------------------------------------------------------------------------------------------


def test_a_task_can_be_cancelled_at_each_moment(tmp_path: Path) -> None:
    with TaskPool(processes=1, context="fork", grace_period=0.2) as pool:
        # While the only worker starts.
        early = pool.submit(tasks.touch, str(tmp_path / "early"))
        assert early.cancel() or early.done()
        assert pool.apply(tasks.square, (2,)) == 4
        # Queued, sent ahead, running, finished; from several threads at once.
        for delay in range(40):
            handles = [pool.submit(tasks.square, n) for n in range(20)]
            victim = handles[delay // 2]
            if delay % 2:
                threads = [threading.Thread(target=victim.cancel) for _ in range(3)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            else:
                victim.cancel()
            for n, handle in enumerate(handles):
                if handle is victim and handle.cancelled():
                    with pytest.raises(TaskCancelled):
                        handle.result(LONG)
                else:
                    assert handle.result(LONG) == n * n
        handle = pool.submit(tasks.square, 3)
        handle.wait(LONG)
        assert not handle.cancel()
        statistics = pool.statistics()
        assert statistics.submitted == statistics.succeeded + statistics.cancelled + statistics.queued


def test_an_import_that_was_interrupted_harms_no_later_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled task is in the middle of importing a package.

    If the worker lived on, it would have the package's submodule but not the package, and the next import of
    the package would fail.
    """
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "inner.py").write_text("NAME = 'inner'\n")
    (package / "__init__.py").write_text(
        "import pathlib, time\n"
        "from slow_package.inner import NAME\n"
        f"begun = pathlib.Path({str(tmp_path / 'begun')!r})\n"
        "if not begun.exists():\n"
        "    begun.touch()\n"
        "    time.sleep(60)\n"
        "VALUE = inner.NAME\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with TaskPool(processes=1, context="fork", grace_period=LONG) as pool:
        first = pool.submit(tasks.value_of_module, "slow_package")
        # This task waits behind it (perhaps sent to the same worker already). Another one comes later.
        behind = pool.submit(tasks.value_of_module, "slow_package")
        wait_until((tmp_path / "begun").exists, "it has begun")
        assert first.cancel()
        assert behind.result(LONG) == "inner"
        assert pool.apply(tasks.value_of_module, ("slow_package",)) == "inner"
        assert pool.statistics().crashed == 0


PROGRAM_IN_AN_IMPORT = """
import time
from mpkit import TaskPool
from mpkit.errors import TaskCancelled

def worker():
    import os
    return os.getpid()

with TaskPool(1, context="fork") as pool:
    before = pool.apply(worker)
    handle = pool.submit(time.sleep, 600)
    while not handle.running():
        time.sleep(0.001)
    assert handle.cancel()
    print(pool.submit(worker).result(30) == before)
"""


def test_a_program_that_runs_in_an_import_keeps_its_workers(tmp_path: Path) -> None:
    """A forked worker has the frames of the program's import below its own.

    They must not be taken for an import of the task, after which a worker is replaced.
    """
    (tmp_path / "program.py").write_text(PROGRAM_IN_AN_IMPORT)
    with python("-c", "import program", cwd=tmp_path) as process:
        printed, errors = process.communicate()
    assert printed.strip() == "True", errors


def test_cancelling_a_map_stops_all_of_it(tmp_path: Path) -> None:
    with TaskPool(processes=2, context="fork", grace_period=0.2) as pool:
        begun = tmp_path / "begun"
        handle = pool.map_async(tasks.touch_and_wait, [str(begun)] * 10, chunksize=5)
        wait_until(begun.exists, "it has begun")
        assert handle.cancel()
        with pytest.raises(TaskCancelled):
            handle.result(0)
        assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]


# -- interrupts ----------------------------------------------------------------------------------------------


def test_interrupts_lose_no_task_and_run_none_twice(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.integration.interrupted_pool", str(tmp_path / "notes"), "80", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert process.stdout == "right\n", process.stderr


STARTING = """
import sys
from mpkit.pool import TaskPool
from tests.contract import pool_tasks as tasks
if __name__ == "__main__":
    # The first pool starts multiprocessing's own processes, the fork server and the resource tracker.
    TaskPool(processes=1, context=sys.argv[1]).terminate()
    print("ready", flush=True)
    while True:
        with TaskPool(processes=2, context=sys.argv[1], grace_period=0.2) as pool:
            pool.map(tasks.square, range(3))
"""


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.05])
def test_ctrl_c_while_workers_start(start_method: str, delay: float, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(STARTING)
    process = subprocess.Popen(
        [sys.executable, str(path), start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode in (-signal.SIGINT, 1)
    # Only the program itself shows an error, perhaps with another one in its chain (on Python 3.10,
    # `signal.getsignal` handles one).
    assert err.count("\nKeyboardInterrupt") == 1, err
    assert "Process " not in err, err
    wait_gone(*(child.pid for child in children))


# -- idle ----------------------------------------------------------------------------------------------------


def test_idle_workers_hardly_ever_wake_up() -> None:
    with TaskPool(processes=2, context="fork") as pool:
        pool.map(tasks.square, range(100))
        processes = [psutil.Process(worker.pid) for worker in pool.workers()]

        def switches() -> int:
            return sum(process.num_ctx_switches().voluntary for process in processes)

        def are_idle() -> bool:
            before, began = switches(), time.monotonic()
            time.sleep(1.0)
            # An idle worker wakes up every two seconds.
            return switches() - before <= 2 + 2 * (time.monotonic() - began)

        # Workers that have just been busy need some time on a core before they are idle.
        wait_until(are_idle, "they are idle")


def test_a_result_that_is_slow_to_unpickle_does_not_delay_other_tasks() -> None:
    with TaskPool(processes=1, context="fork") as pool:
        handle = pool.submit(tasks.return_slow, 0.5)
        waiting = threading.Thread(target=handle.result)
        waiting.start()
        assert pool.submit(tasks.square, 3).result(LONG) == 9
        waiting.join(LONG)
        with pytest.raises(SerializationError):
            pool.submit(tasks.return_what_breaks).result(LONG)


class Alarm(Exception):
    """What a signal handler raises."""


def test_an_alarm_while_a_result_is_unpickled_does_not_become_the_result(tmp_path: Path) -> None:
    """No time limit applies to unpickling. A program that limits it by an alarm may call `result` again."""

    begun, gate = tmp_path / "begun", tmp_path / "gate"
    main = threading.get_ident()

    def on_alarm(_signum: int, _frame: object) -> None:
        raise Alarm

    def ring() -> None:
        wait_until(begun.exists, "it is being unpickled")
        signal.pthread_kill(main, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        with without_collections(), TaskPool(processes=1, context="fork") as pool:
            handle = pool.submit(tasks.WaitsWhenUnpickled, str(begun), str(gate))
            handle.wait(LONG)
            alarm = threading.Thread(target=ring)
            alarm.start()
            with pytest.raises(SerializationError) as failed:
                handle.result()
            alarm.join()
            assert isinstance(failed.value.__cause__, Alarm)
            gate.touch()
            assert str(handle.result()) == str(gate)
    finally:
        signal.signal(signal.SIGALRM, before)
