"""Segments: private files, reserved in full, and nothing left behind."""

from __future__ import annotations

import errno
import gc
import os
import stat
import tempfile
import weakref
from pathlib import Path

import pytest

from mpkit._shm.memory import names
from mpkit._shm.memory import segment as segment_module
from mpkit._shm.memory.segment import PAGE, Segment, exhausted, reserve
from mpkit.errors import HandleLost, SharedMemoryExhausted


def test_what_one_writes_the_other_reads() -> None:
    made = Segment.create(100, kind="test")
    other = Segment.attach(made.name)
    try:
        assert made.size == other.size == PAGE
        assert bytes(made.mm) == bytes(PAGE)
        made.words[3] = 1 << 63
        assert other.words[3] == 1 << 63
        other.mm[:3] = b"abc"
        assert made.mm[:3] == b"abc"
    finally:
        other.close()
        assert os.path.exists(made.name)
        made.close()
    assert not os.path.exists(made.name)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_segment_is_its_users_alone_and_reserved() -> None:
    before = os.umask(0)
    try:
        made = Segment.create(10 * PAGE, kind="test")
    finally:
        os.umask(before)
    status = os.fstat(made.fd)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 >= 10 * PAGE
    assert not os.get_inheritable(made.fd)
    made.close()


def test_only_the_beginning_may_be_reserved() -> None:
    made = Segment.create(64 * PAGE, kind="test", reserved=PAGE)
    status = os.fstat(made.fd)
    assert status.st_size == 64 * PAGE
    assert status.st_blocks * 512 < 64 * PAGE
    reserve(made.fd, 8 * PAGE, PAGE)
    made.words[8 * PAGE // 8] = 1
    made.close()


def test_opening_a_name_that_was_removed() -> None:
    made = Segment.create(1, kind="test")
    made.unlink()
    made.words[0] = 5  # a process that has it open can go on using it
    with pytest.raises(HandleLost, match="creator"):
        Segment.attach(made.name)
    made.close()
    with pytest.raises(ValueError, match="not the name"):
        Segment.attach("/etc/passwd")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o602, 0o666])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mpkit-test-1-1-0"
    path.write_bytes(bytes(PAGE))
    path.chmod(mode)
    with pytest.raises(PermissionError, match=f"mode {mode:o}"):
        Segment.attach(str(path))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users of POSIX")
def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mpkit-test-1-1-0"
    path.write_bytes(bytes(PAGE))
    path.chmod(0o600)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {uid}"):
        Segment.attach(str(path))


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_neither_links_nor_other_things_are_opened(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(PAGE))
    link = tmp_path / "mpkit-link-1-1-0"
    link.symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic|links") as caught:
        Segment.attach(str(link))
    assert caught.value.errno == errno.ELOOP
    directory = tmp_path / "mpkit-directory-1-1-0"
    directory.mkdir()
    with pytest.raises(OSError, match="directory"):
        Segment.attach(str(directory))


def test_a_file_that_was_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "mpkit-test-1-1-0"
    path.write_bytes(bytes(PAGE))
    path.chmod(0o600)
    with pytest.raises(HandleLost, match="never been finished"):
        Segment.attach(str(path), 2 * PAGE)


def refuse_with(code: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every reservation fail; return a list to which each directory that was tried is added."""
    tried: list[str] = []

    def refuse(fd: int, _offset: int, _size: int) -> None:
        tried.append(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    return tried


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at the open files")
def test_no_room_anywhere_is_a_clear_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = refuse_with(errno.ENOSPC, monkeypatch)
    gc.collect()  # garbage of earlier tests must not be closed in between
    owned, files = names.owned_names(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(SharedMemoryExhausted, match="--shm-size") as caught:
        Segment.create(PAGE, kind="test")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSPC
    assert tried == list(segment_module._directories())
    assert not set(names.owned_names()).difference(owned)  # names of earlier tests may disappear meanwhile
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at the open files")
def test_a_segment_that_is_dropped_leaves_no_descriptor_open() -> None:
    created = Segment.create(PAGE, kind="test")
    gc.collect()  # garbage of earlier tests must not be closed in between
    files = len(os.listdir("/proc/self/fd"))
    attached = Segment.attach(created.name)
    assert len(os.listdir("/proc/self/fd")) > files
    del attached
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files
    created.close()


def test_directories_that_this_user_may_not_even_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    owned = names.owned_names()
    with monkeypatch.context() as forbidden:
        forbidden.setattr(os, "open", refuse)
        forbidden.setattr(os, "unlink", refuse)
        with pytest.raises(SharedMemoryExhausted, match="mode 1777"):
            Segment.create(PAGE, kind="test")
    assert not set(names.owned_names()).difference(owned)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="reserves by it")
def test_where_shared_memory_is_full_the_temporary_directory_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real, calls = os.posix_fallocate, []

    def refuse_first(fd: int, offset: int, size: int) -> None:
        calls.append(fd)
        if len(calls) == 1 and len(list(segment_module._directories())) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", refuse_first)
    made = Segment.create(PAGE, kind="test")
    assert os.path.dirname(made.name) == str(tmp_path)
    made.close()
    assert list(tmp_path.iterdir()) == []


def no_temporary_directory() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is nothing else then")
def test_where_there_is_no_temporary_directory_a_full_shared_memory_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a container that is read-only."""
    monkeypatch.setattr(tempfile, "gettempdir", no_temporary_directory)
    refuse_with(errno.ENOSPC, monkeypatch)
    with pytest.raises(SharedMemoryExhausted, match="no room in /dev/shm: free some"):
        Segment.create(PAGE, kind="test")


def test_a_map_that_is_refused_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    owned = names.owned_names()

    def refuse(_fd: int, _size: int, _offset: int = 0) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(segment_module, "map_file", refuse)
    with pytest.raises(SharedMemoryExhausted, match="RLIMIT_AS"):
        Segment.create(PAGE, kind="test")
    assert not set(names.owned_names()).difference(owned)  # names of earlier tests may disappear meanwhile


def test_ctrl_c_in_the_middle_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    owned = names.owned_names()

    def interrupt(_fd: int, _offset: int, _size: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_module, "reserve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Segment.create(PAGE, kind="test")
    assert not set(names.owned_names()).difference(owned)  # names of earlier tests may disappear meanwhile


def test_a_dropped_segment_goes_and_a_view_outlives_it() -> None:
    made = Segment.create(PAGE, kind="test")
    name, words = made.name, made.words
    words[1] = 9
    assert "test" in repr(made)
    made.close()
    made.close()
    assert made.closed
    assert "closed" in repr(made)
    assert words[1] == 9
    assert list(made.words[:2]) == [0, 0]
    made = Segment.create(PAGE, kind="test")
    name = made.name
    del made
    gc.collect()
    assert not os.path.exists(name)


@pytest.mark.parametrize(
    "code, remedy",
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOMEM, "ulimit -v"),
        (errno.ENOSPC, "no room in"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "mode 1777"),
        (errno.EROFS, "mode 1777"),
    ],
)
def test_the_error_says_what_to_do(code: int, remedy: str) -> None:
    assert remedy in str(exhausted(OSError(code, "x"), 4096))


def test_a_file_that_cannot_grow_names_the_directory_where_it_is_alone(tmp_path: Path) -> None:
    error = exhausted(OSError(errno.ENOSPC, "x"), 4096, str(tmp_path))
    assert f"no room in {tmp_path}: free some" in str(error)
    if hasattr(os, "statvfs"):
        status = os.statvfs(tmp_path)
        assert error.available_bytes is not None
        assert error.available_bytes <= status.f_blocks * status.f_frsize


def test_a_failed_creation_does_not_keep_the_objects_of_its_callers_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # For example an array for which there was no room: it must not occupy memory until a garbage collection.
    class Big:
        pass

    def caller() -> weakref.ref[Big]:
        big = Big()
        reference = weakref.ref(big)
        with pytest.raises(SharedMemoryExhausted):
            Segment.create(PAGE, kind="test")
        return reference

    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(segment_module, "reserve", _refuse)
            assert caller()() is None
    finally:
        gc.enable()


def _refuse(fd: int, offset: int, size: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
