"""Private mappings of a file, which do not need a descriptor each."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.files import file_maps
from mpkit._platform.files.file_maps import map_privately, map_read_only

pytestmark = pytest.mark.skipif(os.name != "posix", reason="descriptors")

DATA = bytes(range(256)) * 8_000


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def descriptors() -> int:
    gc.collect()  # garbage of earlier tests must not be closed between two counts
    return sum(_is_open(number) for number in range(4096))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_thousands_of_mappings_need_few_descriptors_and_are_private(fd: int) -> None:
    before = descriptors()
    maps = [map_privately(fd, len(DATA)) for _ in range(300)]
    most = file_maps.MOST_MAPS if sys.version_info < (3, 13) else 0
    assert descriptors() - before <= most
    for mapped in (maps[0], maps[-1]):
        assert mapped[:] == DATA
        mapped[1] = 77
    assert maps[1][:] == DATA
    assert os.pread(fd, len(DATA), 0) == DATA
    del maps, mapped
    assert descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="POSIX leaves open what such a page shows")
def test_beyond_a_limit_copies_are_made_instead_of_mappings(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_maps, "MOST_MAPS", 2)
    maps = [map_privately(fd, len(DATA)) for _ in range(3)]
    # In a mapping, a page that has not been written to shows changes of the file; in a copy it does not.
    os.pwrite(fd, b"\x07", 1)
    assert [mapped[1] for mapped in maps] == [7, 7, 1]
    del maps[0]
    assert map_privately(fd, len(DATA))[1] == 7
    os.pwrite(fd, b"\x08", 1)
    assert [mapped[1] for mapped in maps] == [8, 1]


def test_if_the_system_refuses_a_mapping_a_copy_is_made(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = mmap.mmap

    def refused(descriptor: int, *args: Any, **kwargs: Any) -> Any:
        if descriptor >= 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(descriptor, *args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", refused)
    assert map_privately(fd, len(DATA))[:] == DATA


def test_other_refusals_are_errors(fd: int) -> None:
    closed = os.dup(fd)
    os.close(closed)
    with pytest.raises(OSError, match="descriptor"):
        map_privately(closed, len(DATA))


def test_a_read_only_mapping_shows_what_others_write(fd: int) -> None:
    mapped = map_read_only(fd, len(DATA))
    os.pwrite(fd, b"\x07", 1)
    assert mapped[1] == 7
    with pytest.raises(TypeError):
        mapped[0] = 1
