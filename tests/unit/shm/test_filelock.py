"""The file lock, which the kernel releases. Deaths and forks: `tests/integration/test_shm_regressions.py`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpkit._platform.files import filelock
from mpkit._platform.files.filelock import FileLock
from tests.unit.shm.others import Call

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere it does not exclude other threads of the same process"
)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_one_holder_until_release(fd: int) -> None:
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    assert FileLock.try_acquire(fd) is None
    lock.release()
    again = FileLock.try_acquire(fd)
    assert again is not None
    lock.release()  # a second time: must not release `again`
    assert FileLock.try_acquire(fd) is None
    again.release()


def test_threads_exclude_each_other(fd: int) -> None:
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    call = Call(lambda: FileLock.try_acquire(fd))
    call.join()
    assert call.value is None
    lock.release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lock_object_that_is_dropped_releases_the_lock(fd: int) -> None:
    lock = FileLock.try_acquire(fd)
    del lock
    gc.collect()
    other = FileLock.try_acquire(fd)
    assert other is not None
    other.release()


def another_process_gets_it(fd: int) -> bool:
    import fcntl

    pid = os.fork()
    if pid == 0:
        # Not by `FileLock`, which also asks a table that the child has inherited.
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def test_closing_another_descriptor_does_not_release_it(fd: int, tmp_path: Path) -> None:
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    os.close(os.open(tmp_path / "file", os.O_RDWR))
    os.close(os.dup(fd))
    assert FileLock.try_acquire(fd) is None
    assert not another_process_gets_it(fd)
    lock.release()
    assert another_process_gets_it(fd)


def test_a_file_without_a_name(fd: int, tmp_path: Path) -> None:
    (tmp_path / "file").unlink()
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    assert FileLock.try_acquire(fd) is None
    lock.release()


def test_no_descriptor_is_left_open(fd: int) -> None:
    gc.collect()  # garbage of earlier tests must not be closed in between
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        lock = FileLock.try_acquire(fd)
        assert lock is not None
        assert FileLock.try_acquire(fd) is None
        lock.release()
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(held() is None for held in filelock._held.values())


def test_threads_exclude_each_other_by_a_record_lock_too(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock, "_open_again", lambda _fd: None)
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    assert FileLock.try_acquire(fd) is None
    call = Call(lambda: FileLock.try_acquire(fd))
    call.join()
    assert call.value is None
    lock.release()
    lock.release()
    again = FileLock.try_acquire(fd)
    assert again is not None
    again.release()
    assert not filelock._threads


def test_a_record_lock_whose_object_was_dropped_can_be_acquired_again(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an interrupt, say. The process has the lock still, and no thread of it would get it otherwise."""
    monkeypatch.setattr(filelock, "_open_again", lambda _fd: None)
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    del lock
    gc.collect()
    again = FileLock.try_acquire(fd)
    assert again is not None
    again.release()


def test_a_thread_that_tries_in_vain_does_not_release_the_record_lock_of_another(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the process as a whole, so another process would get it."""
    monkeypatch.setattr(filelock, "_open_again", lambda _fd: None)
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    call = Call(lambda: FileLock.try_acquire(fd))
    call.join()
    assert call.value is None
    monkeypatch.undo()
    # Like another process, a lock of the other kind conflicts with it.
    assert FileLock.try_acquire(fd) is None
    lock.release()


def test_without_a_descriptor_of_its_own_the_processes_record_lock_serves(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FileLock.try_acquire(fd)
    assert own is not None
    monkeypatch.setattr(filelock, "_open_again", lambda _fd: None)
    assert FileLock.try_acquire(fd) is None, "the two kinds conflict"
    own.release()
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    monkeypatch.undo()
    assert FileLock.try_acquire(fd) is None
    lock.release()
    own = FileLock.try_acquire(fd)
    assert own is not None
    own.release()
