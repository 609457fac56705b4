"""`mpkit.process.report`: what a child reports, even if it is killed while it writes."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mpkit._platform.files.anonymous import AnonymousFile
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import notes
from mpkit.errors import SerializationError
from mpkit.process.handle import Handle
from mpkit.process.report import Report, Stage


@pytest.fixture
def report() -> Iterator[Report]:
    report = Report.create()
    yield report
    report.close()


def test_nothing_then_arrived(report: Report) -> None:
    assert report.read() == (Stage.NOTHING, None)
    report.arrived()
    assert report.read() == (Stage.ARRIVED, None)


def test_the_parent_reads_the_notes_of_the_child(report: Report) -> None:
    notes.keep(report.note)
    try:
        notes.note("/mpkit-1", "semaphore")
        notes.note("/mpkit-2", "shared_memory")
    finally:
        notes._forget_after_fork()
    report.arrived()
    report.returned(1)
    assert set(notes.read(report.notes())) == {("/mpkit-1", "semaphore"), ("/mpkit-2", "shared_memory")}


def test_when_arrived_is_called_first_unwanted_returns_the_child(report: Report) -> None:
    assert report.arrived()
    assert report.unwanted() == identity.current()
    report.returned(1)
    assert report.unwanted() == identity.current()
    assert report.read() == (Stage.RETURNED, 1)


def test_when_unwanted_is_called_first_arrived_returns_false(report: Report) -> None:
    assert report.unwanted() is None
    assert report.read() == (Stage.NOTHING, None)
    assert not report.arrived()


@pytest.mark.parametrize("writes", range(3))
def test_a_result_counts_once_all_of_it_is_there(
    writes: int, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the child is killed between two writes, it has reported no result: never half of one."""
    report.arrived()
    write = AnonymousFile.write
    left = iter(range(writes))

    def write_or_die(file: AnonymousFile, parts: Any, *, at: int) -> None:
        if next(left, None) is None:
            raise _Killed
        write(file, parts, at=at)

    monkeypatch.setattr(AnonymousFile, "write", write_or_die)
    try:
        report.returned([1, 2, 3])
    except _Killed:
        assert report.read() == (Stage.ARRIVED, None)
    else:
        assert report.read() == (Stage.RETURNED, [1, 2, 3])
        assert writes == 2


class _Killed(BaseException):
    pass


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_an_unwanted_process_ends_when_it_arrives() -> None:
    handle = Handle()
    ties = handle.prepare()
    assert ties.report.unwanted() is None
    pid = os.fork()
    if pid == 0:
        try:
            ties.enter()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    handle.abandon()


@pytest.mark.parametrize("value", [None, 0, "text", [1, {2: 3}], b"x" * 1_000_000])
def test_a_value(report: Report, value: object) -> None:
    report.arrived()
    report.returned(value)
    assert report.read() == (Stage.RETURNED, value)


@pytest.mark.parametrize("sizes", [[], [0], [1], [70_000], [8_192, 8_193, 100_001, 0], [65_536] * 5])
def test_buffers(report: Report, sizes: list[int]) -> None:
    value = [np.arange(size, dtype="i8") for size in sizes]
    report.returned(value)
    _, back = report.read()
    assert isinstance(back, list)
    report.close()
    for sent, got in zip(value, back, strict=True):
        assert (sent == got).all()
        got[:] = -1  # private memory, writable
        if got.nbytes >= 65_536:
            assert got.ctypes.data % 64 == 0


def test_reading_twice_gives_two_values(report: Report) -> None:
    report.returned(np.zeros(100_000))
    one: Any = report.read()[1]
    two: Any = report.read()[1]
    one[:] = 1
    assert two.sum() == 0


def test_an_error(report: Report) -> None:
    report.raised(LookupError("x"))
    stage, error = report.read()
    assert stage is Stage.RAISED
    assert isinstance(error, LookupError)


def test_a_value_that_cannot_be_pickled(report: Report) -> None:
    report.returned(lambda: None)
    stage, error = report.read()
    assert stage is Stage.RAISED
    assert isinstance(error, SerializationError)


class Greedy:
    def __reduce__(self) -> Any:
        raise MemoryError("no memory")


def test_any_other_error_while_pickling(report: Report) -> None:
    report.returned(Greedy())
    stage, error = report.read()
    assert stage is Stage.RAISED
    assert isinstance(error, MemoryError)


def test_no_room(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AnonymousFile.write

    def refuse_the_big(self: AnonymousFile, parts: Any, *, at: int) -> None:
        parts = list(parts)
        if sum(map(len, parts)) > 100_000:
            raise OSError(28, "No space left on device")
        real(self, parts, at=at)

    monkeypatch.setattr(AnonymousFile, "write", refuse_the_big)
    report.returned(bytes(200_000))
    stage, error = report.read()
    assert stage is Stage.RAISED
    assert isinstance(error, OSError)
    assert error.errno == 28


def test_killed_before_the_header(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    real = AnonymousFile.write

    def die_at_the_header(self: AnonymousFile, parts: Any, *, at: int) -> None:
        if at == 0:
            raise KeyboardInterrupt
        real(self, parts, at=at)

    report.arrived()
    with monkeypatch.context() as patch:
        patch.setattr(AnonymousFile, "write", die_at_the_header)
        with pytest.raises(KeyboardInterrupt):
            report.returned("x")
    assert report.read() == (Stage.ARRIVED, None)


def test_a_report_can_be_pickled_only_while_a_child_is_started(report: Report) -> None:
    # Otherwise multiprocessing would pass its descriptor through a thread.
    with pytest.raises(RuntimeError, match="while a child is being started"):
        pickle.dumps(report)


def test_a_dropped_file_is_closed() -> None:
    import os

    file = AnonymousFile.create("x")
    descriptor = file.fileno()
    del file
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_closed_file() -> None:
    file = AnonymousFile.create("x")
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_the_processes_that_a_child_leaves_behind(report: Report) -> None:
    assert report.left() == []
    report.arrived()
    assert report.left() == []
    some = [ProcessIdentity(pid, pid + 1_000_000) for pid in range(1, 4)]
    report.leaves(some)
    report.returned("done")
    assert report.left() == some
    assert report.read() == (Stage.RETURNED, "done")


def test_of_very_many_processes_left_behind_some_are_reported(report: Report) -> None:
    many = [ProcessIdentity(pid, 1) for pid in range(1, 1001)]
    report.returned(b"x" * 10_000)
    report.leaves(many)
    told = report.left()
    assert told == many[: len(told)]
    assert len(told) > 100
    assert report.read() == (Stage.RETURNED, b"x" * 10_000)


@pytest.mark.parametrize("damage", [(b"\xff" * 8, 0), (b"\xff" * 8, 4096)])
def test_a_damaged_report_is_an_error_that_says_so(report: Report, damage: tuple[bytes, int]) -> None:
    report.returned("done")
    data, at = damage
    report._file.write([data, bytes(32)], at=at)
    # The damaged field is the number of processes left behind.
    report._file.write([b"\xff" * 8], at=32)
    with pytest.raises(SerializationError, match="damaged"):
        report.read()
    assert len(report.left()) < 300
