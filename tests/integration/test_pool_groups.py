"""Short items of a lazy map are sent in groups; apart from the speed, that makes no difference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue, TaskPool
from mpkit.errors import SerializationError, WorkerCrashed
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.submission import Submission
from mpkit.pool._protocol.channel import EACH
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    # Fork is enough: how a worker was started makes no difference to groups.
    with TaskPool(2, context="fork") as pool:
        yield pool


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items in each group that is sent from now on."""
    numbers: list[int] = []
    real = Submission.submit

    def submit(self: Submission, function: Any, blob: bytes, flags: int, arguments: Any, *rest: Any) -> Any:
        if flags & EACH:
            numbers.append(len(arguments))
        return real(self, function, blob, flags, arguments, *rest)

    monkeypatch.setattr(Submission, "submit", submit)
    # Items count as short, even if they take long because the machine is busy with other things.
    took = Function.took
    monkeypatch.setattr(Function, "took", lambda self, run_ns: took(self, min(run_ns, 5_000)))
    return numbers


def find_out(pool: TaskPool, function: Any, items: Iterable[Any]) -> None:
    """Let the pool find out that the items of this function are short."""
    list(pool.imap(function, items))


def outcomes(results: Iterator[Any]) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:
            found.append(type(error))


def test_short_items_are_grouped(pool: TaskPool, groups: list[int]) -> None:
    for _ in range(3):
        assert list(pool.imap(tasks.square, range(1500))) == [n * n for n in range(1500)]
        assert sorted(pool.imap_unordered(tasks.square, list(range(1500)))) == [n * n for n in range(1500)]
    assert max(groups) > 10
    assert pool.statistics().submitted < 6 * 1500


def test_each_item_has_its_own_outcome(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.fail_if_odd, [0] * 50)
    expected = [ValueError if n % 2 else n for n in range(500)]
    assert outcomes(pool.imap(tasks.fail_if_odd, range(500))) == expected
    found = outcomes(pool.imap_unordered(tasks.fail_if_odd, range(500)))
    assert Counter(found) == Counter(expected)
    find_out(pool, tasks.unpicklable_if_odd, [0] * 50)
    expected_types: list[Any] = [SerializationError if n % 2 else n for n in range(100)]
    assert outcomes(pool.imap(tasks.unpicklable_if_odd, range(100))) == expected_types
    assert groups


def test_a_worker_death_fails_one_item_and_no_item_runs_twice(
    pool: TaskPool, groups: list[int], tmp_path: Path
) -> None:
    log = str(tmp_path / "log")
    find_out(pool, tasks.note_and_die_at, [(log, -1, 0)] * 50)
    os.unlink(log)
    items = [(log, number, 217) for number in range(400)]
    found = outcomes(pool.imap(tasks.note_and_die_at, items))
    assert found == [WorkerCrashed if number == 217 else number for number in range(400)]
    assert Counter(map(int, Path(log).read_text().split())) == Counter(range(400))
    assert groups


def test_a_lost_item_of_a_group_is_tried_again(pool: TaskPool, groups: list[int], tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    view = pool.with_options(retries=2)
    find_out(pool, tasks.note_and_die_at, [(log, -1, 0)] * 50)
    os.unlink(log)
    items = [(log, number, 90) for number in range(200)]
    found = outcomes(view.imap(tasks.note_and_die_at, items))
    assert found == [WorkerCrashed if number == 90 else number for number in range(200)]
    assert Counter(map(int, Path(log).read_text().split())) == Counter(range(200)) + Counter([90, 90])
    assert groups


def test_items_of_a_group_share_no_objects(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.appended, [[] for _ in range(50)])
    groups.clear()
    same: list[int] = []
    assert list(pool.imap(tasks.appended, [same] * 200)) == [1] * 200
    assert not groups
    assert list(pool.imap(tasks.appended, [[] for _ in range(200)])) == [1] * 200
    assert groups


def test_results_of_a_group_share_no_objects(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.same_list, range(50))
    results = list(pool.imap(tasks.same_list, range(200)))
    assert groups
    assert len(set(map(id, results))) == 200


def test_the_input_may_wait_for_what_the_item_before_does(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.square, range(300))
    groups.clear()
    with BoundedQueue[int]() as work:
        work.put(200)
        found = list(pool.imap_unordered(tasks.count_down, _fed_back(work)))
    assert sorted(found) == list(range(201))
    assert not groups


def _fed_back(work: BoundedQueue[int]) -> Iterator[tuple[BoundedQueue[int], int]]:
    number = 1
    while number:
        number = work.get(timeout=PATIENCE)
        yield work, number


def test_with_a_time_limit_items_are_not_grouped(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.square, range(300))
    groups.clear()
    assert list(pool.with_options(timeout=PATIENCE).imap(tasks.square, range(300)))[-1] == 299 * 299
    assert not groups


def test_no_more_items_are_sent_than_buffersize(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.square, range(600))
    results = pool.imap(tasks.square, range(10_000), buffersize=40)
    before = pool.statistics().submitted
    assert next(results) == 0
    assert "40 items" in repr(results) or int(repr(results).split(", ")[-1].split()[0]) <= 40
    assert pool.statistics().submitted - before <= 40
    assert max(groups) <= 64
    assert sum(1 for _ in results) == 9999


def test_after_closing_the_iterator_in_the_middle_the_pool_goes_on(pool: TaskPool, groups: list[int]) -> None:
    find_out(pool, tasks.square, range(300))
    results = pool.imap_unordered(tasks.square, range(100_000))
    for _ in range(10):
        next(results)
    results.close()
    assert pool.apply(tasks.square, (7,)) == 49
    assert groups
