"""Starting workers does not change the warning filters, which all threads share."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from mpkit.pool import TaskPool
from mpkit.pool._worker.worker import WorkerChild
from tests.contract import pool_tasks as tasks
from tests.helpers.processes import run_python

_own = getattr(sys.flags, "context_aware_warnings", False)


def during_the_start(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` called in the middle of each start of a worker."""
    start = WorkerChild.start

    def act_and_start(process: WorkerChild) -> None:
        act()
        start(process)

    monkeypatch.setattr(WorkerChild, "start", act_and_start)


def test_only_a_start_by_fork_changes_the_filters_and_only_meanwhile(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(warnings.filters)
    seen: list[list[object]] = []
    during_the_start(monkeypatch, lambda: seen.append(list(warnings.filters)))
    with TaskPool(1, context=start_method) as pool:
        assert pool.apply(tasks.square, (2,)) == 4
    assert warnings.filters == before
    if start_method != "fork":
        assert seen == [before]


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.skipif(_own, reason="each thread has its own filters")
@pytest.mark.parametrize("leaves", ["before", "after"])
def test_changes_of_the_filters_by_another_thread_during_a_start_stay(
    leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a start must not restore all filters to what they were before it."""
    before = list(warnings.filters)
    others = warnings.catch_warnings()
    if leaves == "before":
        others.__enter__()
        during_the_start(monkeypatch, lambda: others.__exit__(None, None, None))
    else:

        def enter() -> None:
            others.__enter__()
            warnings.simplefilter("error", UserWarning)

        during_the_start(monkeypatch, enter)
    with TaskPool(1, context="fork") as pool:
        assert pool.apply(tasks.square, (2,)) == 4
    if leaves == "after":
        assert warnings.filters[0][:3] == ("error", None, UserWarning)
        assert warnings.filters[1:] == before
        others.__exit__(None, None, None)
    assert warnings.filters == before


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
def test_a_fork_in_a_multithreaded_program_works_if_warnings_are_errors() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with TaskPool(1, context="fork") as pool:
                assert pool.apply(tasks.square, (2,)) == 4
    finally:
        stop.set()
        thread.join()


FILTERS_OF_A_WORKER = """
import warnings
from mpkit import TaskPool

if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with TaskPool(1, context="fork") as pool:
            task = pool.submit(warnings.warn, "pitchfork() is deprecated", DeprecationWarning)
            print(repr(task.exception()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.parametrize("aware", [0, 1], ids=["filters of the process", "filters of a context"])
def test_a_forked_worker_has_the_filters_of_the_program(aware: int) -> None:
    # Before 3.14 the option has no effect.
    ran = run_python("-X", f"context_aware_warnings={aware}", "-c", FILTERS_OF_A_WORKER)
    assert ran.stdout == "DeprecationWarning('pitchfork() is deprecated')\n"
