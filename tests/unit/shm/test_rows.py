"""Rows: one for each process, assigned under the file lock."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.memory.rows import ROW_WORDS, Rows
from mpkit._shm.memory.segment import PAGE, Segment
from mpkit.errors import SharedMemoryExhausted
from tests.unit.shm.others import dead_process, living_stranger

START, USED = 64, 3


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(PAGE, kind="rows")
    yield segment
    segment.close()


@pytest.fixture
def rows(segment: Segment) -> Rows:
    return Rows(segment, start=START, capacity=3, used_at=USED)


def enter(rows: Rows, process: ProcessIdentity) -> int:
    with rows.exclusive(None) as alone:
        assert alone
        at = rows._free_row()
        rows.words[at + 1], rows.words[at] = process.started, process.pid
    return at


def test_joining_takes_a_clean_row_and_leaving_gives_it_back(rows: Rows) -> None:
    rows.words[START + 4] = 77  # left there by an earlier process
    at = rows.join(None)
    me = identity.current()
    assert at == START
    assert list(rows.words[at : at + ROW_WORDS]) == [me.pid, me.started, 0, 0, 0, 0, 0, 0]
    assert rows.taken() == [(at, me)]
    rows.leave(at)
    assert rows.taken() == []
    assert rows.join(None) == at
    assert rows.words[USED] == 1


def test_the_row_of_a_dead_process_is_used_again(rows: Rows) -> None:
    dead = enter(rows, dead_process())
    assert rows.join(None) == dead
    enter(rows, living_stranger())
    assert rows.words[USED] == 2
    assert rows.join(None) == START + 2 * ROW_WORDS


def test_the_row_of_a_dead_process_stays_while_it_is_needed(segment: Segment) -> None:
    def is_needed(words: memoryview[int], row: int) -> bool:
        return words[row + 2] == 5

    rows = Rows(segment, start=START, capacity=3, used_at=USED, must_stay=is_needed)
    dead = enter(rows, dead_process())
    rows.words[dead + 2] = 5
    assert rows.join(None) == START + ROW_WORDS
    assert (dead, dead_process()) in rows.taken()
    rows.words[dead + 2] = 0
    assert rows.join(None) == dead


def test_a_table_full_of_living_processes(rows: Rows) -> None:
    for _ in range(3):
        enter(rows, living_stranger())
    with pytest.raises(SharedMemoryExhausted, match="3 living processes"):
        rows.join(None)


def test_no_memory_for_another_row_leaves_the_table_as_it_was(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpkit._shm.memory.rows.reserve", refuse)
    with pytest.raises(SharedMemoryExhausted):
        rows.join(None)
    assert rows.words[USED] == 0
    with rows.exclusive(time.monotonic()) as alone:
        assert alone, "the file lock was kept"


def test_only_one_at_a_time(segment: Segment, rows: Rows) -> None:
    other = Rows(segment, start=START, capacity=3, used_at=USED)
    with rows.exclusive(None) as alone:
        assert alone
        with other.exclusive(time.monotonic() + 0.01) as also:
            assert not also
        assert other.join(time.monotonic()) == -1
    with other.exclusive(time.monotonic()) as alone:
        assert alone


def test_an_exception_inside_gives_the_file_lock_back(rows: Rows) -> None:
    with pytest.raises(KeyboardInterrupt), rows.exclusive(None):
        raise KeyboardInterrupt
    with rows.exclusive(time.monotonic()) as alone:
        assert alone
