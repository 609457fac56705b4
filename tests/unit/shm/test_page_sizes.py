"""Machines with larger pages than this one: every mapping begins at a page border there, too."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue
from mpkit._platform.files import file_maps
from mpkit._shm.memory import segment
from mpkit._shm.queues import queue_file, region_supply, regions


@pytest.fixture(params=[16 * 1024, 64 * 1024])
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Refuse the mappings that a system with pages of this size would refuse."""
    size: int = request.param
    if size <= segment.PAGE:
        pytest.skip("pages are larger here anyway")
    real = file_maps.map_file

    def map_file(fd: int, length: int, offset: int = 0) -> mmap.mmap:
        if offset % size:
            raise OSError(22, "Invalid argument")
        return real(fd, length, offset)

    for module in (segment, regions, region_supply, queue_file):
        monkeypatch.setattr(module, "PAGE", size, raising=False)
        monkeypatch.setattr(module, "map_file", map_file, raising=False)
    return size


@pytest.mark.usefixtures("page")
def test_a_queue_takes_big_items_and_grows() -> None:
    with BoundedQueue[Any]() as queue:
        big = bytes(range(256)) * 400
        queue.put(big)
        assert queue.get() == big
        many = [str(number) * 10 for number in range(5000)]
        for item in many:
            queue.put(item)
        assert [queue.get() for _ in many] == many


def test_without_posix_fallocate_memory_is_reserved_beside_the_position(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forks and threads share the position in a file, and another one may reserve at the same time."""
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, b"12345")
        segment.reserve(fd, 3, (1 << 20) + 2)
        assert os.fstat(fd).st_size == (1 << 20) + 5
        assert os.pread(fd, 5, 0) == b"123\0\0"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    finally:
        os.close(fd)
