"""A file without a name uses its descriptor only as long as that still refers to it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from mpkit._platform.files.anonymous import AnonymousFile
from mpkit._platform.files.descriptors import file_behind, is_still
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors")


def test_a_descriptor_that_refers_to_another_file_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("theirs")
    file = AnonymousFile.create("test")
    number = file.fileno()
    other = os.open(path, os.O_RDWR)
    # As after `os.closerange` in a daemon: the next file that is opened gets the number.
    os.dup2(other, number)
    with pytest.raises(OSError, match="close only descriptors that are your own"):
        file.write([b"ours"], at=0)
    with pytest.raises(OSError, match="has been closed"):
        file.size()
    file.close()
    assert os.fstat(number).st_size == len("theirs"), "it is still open"
    os.close(number)
    os.close(other)
    assert path.read_text() == "theirs"


def test_a_descriptor_that_was_closed_does_no_harm() -> None:
    file = AnonymousFile.create("test")
    os.close(file.fileno())
    with pytest.raises(OSError, match="has been closed"):
        file.read()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.fileno()


def test_reading_and_writing_do_not_move_the_shared_position() -> None:
    file = AnonymousFile.create("test")
    # These two descriptors share one position in the file, as those of a parent and its child do.
    other = AnonymousFile(os.dup(file.fileno()))

    def parts() -> Iterator[bytes]:
        for letter in (b"a", b"b", b"c"):
            yield letter * 100_000
            other.write([b"x"], at=400_000)
            assert other.read(10) == b"a" * 10

    file.write(parts(), at=0)
    assert file.read(300_000) == b"a" * 100_000 + b"b" * 100_000 + b"c" * 100_000
    assert len(other.read()) == 400_001
    other.close()
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="memfd_create")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_if_files_in_memory_are_forbidden_a_temporary_file_is_used(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "memfd_create", forbidden)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = AnonymousFile.create("test")
    assert not list(tmp_path.iterdir()), "it has no name"
    file.write([b"something"], at=0)
    assert bytes(file.map_privately()) == b"something"
    assert not os.get_inheritable(file.fileno())
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="memfd_create")
def test_a_lack_of_descriptors_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refused)
    with pytest.raises(OSError, match="Too many open files"):
        AnonymousFile.create("test")


@needs_a_trace_that_raises
def test_a_file_is_closed_in_spite_of_ctrl_c() -> None:
    """Otherwise nobody would close it: the next `close` takes it for closed."""
    traced = (os.path.join("files", "anonymous.py"), os.path.join("files", "descriptors.py"), "weakref.py")
    for step in count():
        file = AnonymousFile.create("test")
        number = file.fileno()
        behind = file_behind(number)
        interrupted = interrupt_at(step, file.close, traced=traced)
        file.close()
        assert not is_still(number, behind), f"step {step}"
        if not interrupted:
            break
    assert step > 5
