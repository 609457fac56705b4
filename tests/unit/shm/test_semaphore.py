"""Named semaphores: all that open one share its permits, and the creator removes it."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest

from mpkit import Lock
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import sem_lock
from mpkit._shm.memory import names
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore
from mpkit.errors import HandleLost, SharedMemoryExhausted


def test_permits_are_shared() -> None:
    made = Semaphore.create(1, 1, kind="test")
    other = Semaphore.attach(made.name, 1)
    assert other.acquire(False)
    assert not made.acquire(False)
    assert not made.acquire(True, 0.001)
    other.release()
    assert made.acquire(True, 10)
    made.release()
    with pytest.raises(ValueError, match=r"semaphore|released"):
        made.release()
    made.close()


def test_the_creator_removes_the_name() -> None:
    made = Semaphore.create(0, MAX_VALUE, kind="test")
    name = made.name
    assert name in names.owned_names()
    other = Semaphore.attach(name, MAX_VALUE)
    other.close()
    assert name in names.owned_names()
    made.close()
    made.close()
    assert name not in names.owned_names()
    with pytest.raises(HandleLost, match="gone"):
        Semaphore.attach(name, MAX_VALUE)
    other.release()
    assert made.acquire(False), "an open semaphore has become unusable"


@pytest.mark.parametrize("make", [Semaphore.private, partial(Semaphore.create, 0, 1, kind="test"), Lock])
def test_names_are_as_short_as_macos_wants_them(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PSEMNAMLEN includes the zero byte. On macOS pids have five digits; start times are in microseconds."""
    made: list[str] = []

    def refuse(kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> None:
        made.append(name)
        raise OSError(errno.ENOSPC, "enough seen")

    monkeypatch.setattr(identity, "current", lambda: ProcessIdentity(99_998, 1_796_014_441_441_516))
    monkeypatch.setattr(names, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(sem_lock, "SemLock", refuse)
    with pytest.raises(SharedMemoryExhausted):
        make()
    assert made
    assert max(map(len, made)) <= 30, made


def test_a_dropped_semaphore_goes() -> None:
    name = Semaphore.create(0, 1, kind="test").name
    gc.collect()
    with pytest.raises(HandleLost):
        Semaphore.attach(name, 1)


def test_a_private_semaphore_has_no_name() -> None:
    before = names.owned_names()
    local = Semaphore.private()
    assert local.name == ""
    assert not set(names.owned_names()).difference(before)  # names of earlier tests may disappear meanwhile
    assert local.acquire(False)
    assert not local.acquire(False)


@pytest.mark.parametrize("make", ["create", "private"])
def test_a_system_without_room_is_a_clear_error(make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names.owned_names()

    def refuse(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mpkit._platform.stdlib.sem_lock.SemLock", refuse)
    with pytest.raises(SharedMemoryExhausted):
        if make == "create":
            Semaphore.create(1, 1, kind="test")
        else:
            Semaphore.private()
    assert not set(names.owned_names()).difference(before)  # names of earlier tests may disappear meanwhile
