"""Faults of the lock that were found once. Each test checks that one of them does not come back."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpkit import Lock
from mpkit._platform.files.filelock import FileLock
from mpkit._platform.processes import identity
from mpkit._shm.locks import lock_file
from mpkit._shm.locks.lock_file import LockFile
from mpkit._shm.locks.lock_rows import ATTEMPTS, COMPLETED, OUT, TRYING, LockRows
from mpkit._shm.locks.shared_file import RECOVERIES, ROWS_USED
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError
from tests.helpers.waiting import PATIENCE, wait_until
from tests.unit.shm.others import Call

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the other processes are forked")


@pytest.fixture
def shared(lock: Lock) -> LockFile:
    with lock:
        pass
    return lock._opened()


def forked(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


@contextlib.contextmanager
def held_by_another(lock: Lock) -> Iterator[int]:
    """Give the block the pid of another process that holds the lock. It is killed at the end."""
    reader, writer = os.pipe()

    def hold() -> None:
        lock.acquire()
        os.write(writer, b"1")
        signal.pause()

    other = forked(hold)
    try:
        assert os.read(reader, 1) == b"1"
        yield other
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        os.close(reader)
        os.close(writer)


def test_releases_by_another_process_use_up_no_rows(lock: Lock, shared: LockFile) -> None:
    """The row in which the lock was held is reused, even if two threads take turns.

    Otherwise each such release would cost a row, until the file had none left.
    """

    def release_for_ever() -> None:
        while True:
            with contextlib.suppress(ValueError):
                lock.release()
            time.sleep(0.0002)

    other = forked(release_for_ever)
    try:
        calls = [Call(lambda: [lock.acquire(timeout=PATIENCE) for _ in range(100)]) for _ in range(2)]
        for call in calls:
            call.join()
            assert call.value == [True] * 100
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert shared.words[ROWS_USED] <= 6


def test_a_row_that_another_thread_has_just_taken_back_is_reused(
    lock: Lock, shared: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that had to wait for that one must not take a new row, or the rows would become ever more."""
    lock.acquire()
    os.waitpid(forked(lock.release), 0)
    used = shared.words[ROWS_USED]

    class HadByAnother:
        """Acts as the lock under which rows are taken back: another thread gets it first and takes them."""

        @staticmethod
        def run(take_back: Callable[[], bool]) -> bool:
            take_back()
            return take_back()

    monkeypatch.setattr(shared, "_taking_back", HadByAnother)
    lock.acquire()
    lock.release()
    assert shared.words[ROWS_USED] == used


def test_a_row_becomes_spare_only_after_the_lock_is_released(lock: Lock, shared: LockFile) -> None:
    lock.acquire()
    [place] = shared._held
    assert not shared._take_back_released()
    assert shared._held == [place]
    os.waitpid(forked(lock.release), 0)
    assert shared._take_back_released()
    assert shared._held == []
    assert shared._spare.count(place) == 1


def test_an_interrupted_acquire_counts_as_an_attempt(shared: LockFile) -> None:
    """If it counted as a completed hold, no process would find out that a permit is lost."""
    place = shared._spare.pop()
    before = shared.words[place + COMPLETED], shared.words[place + ATTEMPTS]
    shared.words[place] = TRYING
    shared._stop_acquiring(place, False)
    assert shared.words[place] == OUT
    assert (shared.words[place + COMPLETED], shared.words[place + ATTEMPTS]) == (before[0], before[1] + 1)
    assert shared._spare.count(place) == 1


@pytest.mark.parametrize("kind", [IndexError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["permit_acquire", "permit_release"])
def test_an_exception_of_a_signal_handler_reaches_the_caller(
    lock: Lock, shared: LockFile, name: str, when: str, kind: type[BaseException]
) -> None:
    real = getattr(shared, name)

    def interrupted(*args: Any) -> None:
        setattr(shared, name, real)
        if when == "after":
            real(*args)
        raise kind("from a handler")

    if name == "permit_release":
        lock.acquire()
    setattr(shared, name, interrupted)
    with pytest.raises(kind) as caught:
        lock.acquire() if name == "permit_acquire" else lock.release()
    # A ValueError after the permit was given back looks as if another process had released the lock.
    if (name, when, kind) != ("permit_release", "after", ValueError):
        assert str(caught.value) == "from a handler"
    assert lock.acquire(timeout=PATIENCE)
    lock.release()


def test_an_owner_that_cannot_be_examined_for_want_of_descriptors_counts_as_alive(
    lock: Lock, shared: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_by_another(lock) as other:

        def refuse(_pid: int) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(identity, "_examine", refuse)
            assert not lock.acquire(False)
            assert not lock.acquire(timeout=0.1)
    assert lock.acquire(timeout=PATIENCE)
    assert lock.abandoned_by == other
    lock.release()
    assert shared.words[RECOVERIES] == 1


def test_a_release_for_another_process_waits_for_the_file_lock(
    lock: Lock, shared: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_by_another(lock):
        exclusive = FileLock.try_acquire(shared.segment.fd)
        assert exclusive is not None
        with monkeypatch.context() as patch:
            patch.setattr("mpkit._shm.memory.rows.time.sleep", lambda _seconds: exclusive.release())
            lock.release()
        assert not lock.locked()


def test_a_release_that_waits_for_the_file_lock_ends_when_the_lock_is_closed(
    lock: Lock, shared: LockFile
) -> None:
    with held_by_another(lock):
        exclusive = FileLock.try_acquire(shared.segment.fd)
        assert exclusive is not None
        errors: list[BaseException] = []

        def release() -> None:
            try:
                lock.release()
            except ClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        wait_until(lambda: bool(shared._looking), "the release is at the file lock")
        lock.close()
        thread.join(PATIENCE)
        assert errors
        exclusive.release()


def test_of_many_waiting_threads_one_looks_for_a_dead_owner(
    lock: Lock, shared: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()
    real = LockRows.holders

    def holders(self: LockRows) -> Any:
        next(looks)
        return real(self)

    lock.acquire()

    def take() -> None:
        with lock:
            pass

    threads = [threading.Thread(target=take) for _ in range(100)]
    for thread in threads:
        thread.start()
    monkeypatch.setattr(LockRows, "holders", holders)
    begun = time.monotonic()
    time.sleep(1.0)
    lasted = time.monotonic() - begun
    found = next(looks)
    monkeypatch.undo()
    lock.release()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    # About 40 looks a second are expected; if each thread looked by itself, it would be 500.
    assert found <= 150 * lasted


def test_a_row_that_is_reused_during_a_look_is_not_taken_back(lock: Lock) -> None:
    assert lock.acquire()
    file = lock._opened()
    (place,) = file._held
    words = file.words
    looked = threading.Event()

    class Words:
        """Has the lock change hands, in the same row, just when the other thread has read the row."""

        def __getitem__(self, index: int) -> int:
            value = words[index]
            if index == place and threading.current_thread() is other and not looked.is_set():
                lock.release()
                value = words[index]
                assert lock.acquire(False)
                looked.set()
            return value

        def __setitem__(self, index: int, value: int) -> None:
            words[index] = value

    file.words = Words()  # type: ignore[assignment]
    taken: list[bool] = []
    other = threading.Thread(target=lambda: taken.append(lock.acquire(timeout=0.5)))
    other.start()
    other.join(PATIENCE)
    assert looked.is_set()
    assert taken == [False]
    assert lock.owner() == os.getpid()
    lock.release()
    file.words = words
    assert not lock.locked()


def test_calls_that_do_not_wait_find_a_lost_permit_too(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these calls looks only once, so the time between two calls must count."""
    monkeypatch.setattr(lock_file, "STUCK_SECONDS", 0.0)

    def die_with_the_permit() -> None:
        shared = lock._opened()
        real = shared.permit_acquire

        def acquire(*args: Any) -> bool:
            assert real(*args)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        shared.permit_acquire = acquire
        lock.acquire()

    os.waitpid(forked(die_with_the_permit), 0)
    # The first call notices that no process has the permit. The second notices that this has not changed, and
    # gives the permit back.
    assert [lock.acquire(False) for _ in range(3)] == [False, False, True]
    lock.release()


def test_a_lost_permit_is_not_given_back_while_another_process_takes_over(
    lock: Lock, shared: LockFile
) -> None:
    """Otherwise both would give it back, and then two processes could hold the lock."""
    place = shared._spare.pop()
    assert shared.permit_acquire(False)  # nobody has recorded it, so it is lost
    another = FileLock.try_acquire(shared.segment.fd)
    assert another is not None
    for recoveries in (0, 1):
        shared._lock_rows.restore(place, shared.permit_acquire, shared.permit_release)
        assert shared.words[RECOVERIES] == recoveries
        another.release()
    shared._spare.append(place)
    assert lock.acquire(False)
    assert not lock.acquire(False)
    lock.release()


def test_the_permit_of_a_dead_owner_is_left_to_its_heir(lock: Lock, shared: LockFile) -> None:
    """If it was given back, nobody would be told that what the lock protects may be half changed."""
    with held_by_another(lock) as other:
        pass
    place = shared._spare.pop()
    shared._lock_rows.restore(place, shared.permit_acquire, shared.permit_release)
    shared._spare.append(place)
    assert lock.acquire(timeout=PATIENCE)
    assert lock.abandoned_by == other
    lock.release()


def test_a_forked_child_has_not_taken_over_what_its_parent_has(lock: Lock, shared: LockFile) -> None:
    with held_by_another(lock) as other:
        pass
    assert lock.acquire(timeout=PATIENCE)
    assert lock.abandoned_by == other
    reader, writer = os.pipe()
    os.waitpid(forked(lambda: os.write(writer, repr(lock.abandoned_by).encode())), 0)
    assert os.read(reader, 100) == b"None"
    os.close(reader)
    os.close(writer)
    lock.release()


def test_a_lock_that_changes_hands_is_not_investigated(
    lock: Lock, shared: LockFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    investigations: list[int] = []
    monkeypatch.setattr(lock_file, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(LockRows, "restore", lambda *_args: investigations.append(1))
    permit = Semaphore.attach(shared.semaphores[0].name, 1)
    for _ in range(5):
        # As if a thread had taken the permit, but had not recorded it yet.
        assert permit.acquire(False)
        assert not lock.acquire(False)
        permit.release()
        with lock:
            pass
    assert permit.acquire(False)
    assert not lock.acquire(False)
    assert not investigations
    assert not lock.acquire(False)
    assert investigations
    permit.release()


def test_using_the_lock_in_a_signal_handler_during_its_first_use_is_refused(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that it interrupts has the file lock, so waiting for that would never end."""
    real = Rows._free_row
    told: list[str] = []

    def free_row(rows: Rows) -> int:
        monkeypatch.undo()
        # As a signal handler would do that runs at this point.
        for use in (lambda: lock.acquire(timeout=0.0), lock.close):
            with pytest.raises(RuntimeError, match="already inside an operation") as refused:
                use()
            told.append(str(refused.value))
        return real(rows)

    monkeypatch.setattr(Rows, "_free_row", free_row)
    assert lock.acquire()
    assert len(told) == 2
