"""Blobs: written once, readable only by their user, and nothing is left behind."""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from mpkit._platform.files import positioned
from mpkit._shm.memory import blob as blob_module
from mpkit._shm.memory import names
from mpkit._shm.memory import segment as segment_module
from mpkit._shm.memory.blob import Blob
from mpkit.errors import SharedMemoryExhausted


def content(blob: Blob) -> bytes:
    return Path(blob.name).read_bytes()


def test_pieces_are_written_at_their_places() -> None:
    blob = Blob.create(
        [(0, b"head"), (64, memoryview(bytearray(b"middle"))), (128, b"end")], 131, kind="test"
    )
    assert blob.size == 131
    assert content(blob) == b"head" + bytes(60) + b"middle" + bytes(58) + b"end"
    assert "test" in repr(blob)
    blob.close()
    assert not os.path.exists(blob.name)
    blob.close()


def test_a_piece_that_is_too_long_for_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positioned, "write_at", lambda fd, data, at: os.pwrite(fd, data[:7], at))
    data = os.urandom(100)
    blob = Blob.create([(5, data)], 105, kind="test")
    assert content(blob) == bytes(5) + data


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_blob_is_its_users_alone() -> None:
    before = os.umask(0)
    try:
        blob = Blob.create([(0, b"x")], 1, kind="test")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(blob.name).st_mode) == 0o600


def test_a_dropped_blob_is_removed_unless_it_was_handed_over() -> None:
    blob = Blob.create([(0, b"x")], 1, kind="test")
    name = blob.name
    del blob
    gc.collect()
    assert not os.path.exists(name)
    blob = Blob.create([(0, b"x")], 1, kind="test")
    name = blob.hand_over()
    blob.close()
    del blob
    gc.collect()
    assert os.path.exists(name)
    assert name not in names.owned_names(), "it would go at the exit"
    # This stands for the process that received it.
    names.own(name, "shared_memory")
    names.remove(name)
    assert not os.path.exists(name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_does_not_remove_a_blob_of_its_parent() -> None:
    blob = Blob.create([(0, b"x")], 1, kind="test")
    pid = os.fork()
    if pid == 0:
        try:
            blob.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert content(blob) == b"x"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at the open files")
def test_no_room_anywhere_is_a_clear_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(fd: int, _piece: object, _at: int) -> None:
        tried.append(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blob_module, "write_all", refuse)
    gc.collect()  # garbage of earlier tests must not be closed in between
    owned, files = names.owned_names(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(SharedMemoryExhausted, match="--shm-size"):
        Blob.create([(0, b"x")], 1, kind="test")
    monkeypatch.undo()
    assert tried == list(segment_module._directories())
    assert not set(names.owned_names()).difference(owned)  # names of earlier tests may disappear meanwhile
    assert len(os.listdir("/proc/self/fd")) == files


def test_where_shared_memory_is_full_in_the_middle_the_temporary_directory_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = 0

    def full_after_one(fd: int, piece: bytes, at: int) -> None:
        nonlocal written
        written += 1
        if written == 2 and len(list(segment_module._directories())) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        positioned.write_all(fd, piece, at)

    monkeypatch.setattr(blob_module, "write_all", full_after_one)
    data = os.urandom(50)
    blob = Blob.create([(0, data[:20]), (20, data[20:])], 50, kind="test")
    assert os.path.dirname(blob.name) == str(tmp_path)
    assert content(blob) == data
    blob.close()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    owned = names.owned_names()

    def interrupt(_fd: int, _piece: bytes, _at: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(blob_module, "write_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Blob.create([(0, b"x")], 1, kind="test")
    assert not set(names.owned_names()).difference(owned)  # names of earlier tests may disappear meanwhile


def test_if_ctrl_c_interrupts_a_destructor_the_next_blob_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = Blob.create([(0, b"x")], 1, kind="test")
    monkeypatch.setattr(sys, "unraisablehook", lambda _report: None)

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(blob_module, "_is_finalizing", interrupt)
        name = blob.name
        del blob
        gc.collect()
    assert os.path.exists(name)
    Blob.create([(0, b"x")], 1, kind="test").close()
    assert not os.path.exists(name)
