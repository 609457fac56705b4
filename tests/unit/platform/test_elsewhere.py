"""The parts of `mpkit._platform` for other systems than this one, as far as they can be run here."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

import mpkit._platform
from tests.helpers.processes import in_a_fork


def as_on(platform: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of `mpkit._platform` as it is on another system; others that are loaded so find it."""
    monkeypatch.setattr(sys, "platform", platform)
    full_name = f"mpkit._platform.{name}"
    spec = importlib.util.find_spec(full_name)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full_name, module)
    monkeypatch.setattr(mpkit._platform, name, module)
    spec.loader.exec_module(module)
    return module


def test_setting_the_clock_makes_nobody_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = as_on("darwin", "identity", monkeypatch)
    me = identity.look(os.getpid())
    told = psutil.Process.create_time
    # As for a process that has imported psutil before that.
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + 9.0)
    assert identity.is_alive(me)
    assert not identity.is_alive(me._replace(started=me.started + 1))


def test_a_process_with_the_pid_of_an_earlier_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = as_on("darwin", "identity", monkeypatch)
    families = as_on("darwin", "families", monkeypatch)
    me = identity.look(os.getpid())
    # psutil remembers the processes that it has seen.
    earlier = {process.pid: process for process in psutil.process_iter()}[os.getpid()]
    monkeypatch.setattr(earlier, "_ident", (earlier.pid, 0.0))
    assert families._parents()[os.getpid()] == (os.getppid(), me)


def test_a_lock_that_nobody_has_any_more_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filelock = as_on("darwin", "filelock", monkeypatch)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        lock = filelock.FileLock.try_acquire(fd)
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is None)
        del lock
        gc.collect()
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is not None)
    finally:
        os.close(fd)


def test_more_is_read_and_written_than_macos_takes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file without a name: the result of a process may have more than 2 GiB."""
    positioned = as_on("darwin", "positioned", monkeypatch)
    anonymous = as_on("darwin", "anonymous", monkeypatch)
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(positioned, "_MOST_AT_ONCE", 1000, raising=False)

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        assert len(data) <= 1000
        return write(descriptor, data, at)

    def pread(descriptor: int, size: int, at: int) -> bytes:
        assert size <= 1000
        return read(descriptor, size, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = anonymous.AnonymousFile.create("test")
    file.write([bytes(2500), b"end"], at=0)
    assert file.read() == bytes(2500) + b"end"
    file.close()


def test_a_file_that_is_closed_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filelock = as_on("darwin", "filelock", monkeypatch)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    lock = filelock.FileLock.try_acquire(fd)
    os.close(fd)
    lock.release()
    assert "released" in repr(lock)
