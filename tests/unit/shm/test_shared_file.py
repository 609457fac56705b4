"""`mpkit._shm.locks.shared_file`: a file that cannot be used is refused, and one that cannot be made goes."""

from __future__ import annotations

import pickle
from typing import NoReturn

import pytest

from mpkit import LockedCounter
from mpkit._shm.locks.counter_file import CounterFile
from mpkit._shm.locks.lock_file import LockFile
from mpkit._shm.locks.lock_rows import COMPLETED, OUT
from mpkit._shm.locks.shared_file import MAGIC, RECOVERIES
from mpkit._shm.memory import names
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import HandleLost


def test_what_is_made_for_a_user_who_fails_goes_again() -> None:
    made: list[str] = []

    def fail(segment: Segment, semaphores: list[Semaphore]) -> NoReturn:
        made.extend([segment.name, *(semaphore.name for semaphore in semaphores)])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CounterFile.form.create(lambda _words: None, fail)
    assert len(made) == 3
    assert not set(made) & set(names.owned_names())
    with pytest.raises(HandleLost):
        CounterFile.form.attach(made[0])


def test_a_file_of_another_kind_or_version_is_no_object() -> None:
    counter = CounterFile.create(initial=3)
    try:
        with pytest.raises(HandleLost, match="is not a lock of this version of mpkit"):
            LockFile.form.attach(counter.name)
        counter.words[MAGIC] += 1 << 8
        with pytest.raises(HandleLost, match="is not a counter of this version of mpkit"):
            CounterFile.form.attach(counter.name)
    finally:
        counter.close()


def test_a_handle_to_such_a_file_says_so_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = LockedCounter(3)
    data = pickle.dumps(counter)
    shared = counter._opened()
    shared.words[MAGIC] += 1 << 8
    # As in another process.
    monkeypatch.setattr("mpkit._shm.locks.users.open_here", {})
    arrived = pickle.loads(data)
    with pytest.raises(HandleLost, match="is not a counter of this version of mpkit"):
        arrived.add()
    monkeypatch.undo()
    counter.close()


def test_a_permit_that_is_there_is_not_given_back_a_second_time() -> None:
    """Whoever has waited long looks whether it is lost; somebody has just given it back."""
    lock = LockFile.create()
    try:
        assert lock.acquire(True, None)
        assert lock.release()
        place = lock._spare.pop()
        completed = lock.words[place + COMPLETED]
        lock._lock_rows.restore(place, lock.permit_acquire, lock.permit_release)
        assert lock.words[place] == OUT
        assert lock.words[place + COMPLETED] == completed + 1
        assert lock.words[RECOVERIES] == 0
        assert lock.permit_acquire(False)
        assert not lock.permit_acquire(False)
        lock.permit_release()
        lock._spare.append(place)
        assert lock.acquire(False, None)
        assert lock.release()
    finally:
        lock.close()
