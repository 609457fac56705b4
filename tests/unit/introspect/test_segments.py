"""Which files belong to mpkit, who created them, and what is read from them. No child processes here."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpkit import BoundedQueue, Lock, introspect
from mpkit._platform.processes import identity
from mpkit._shm.locks import shared_file
from mpkit._shm.memory.segment import Segment
from mpkit._shm.queues import layout
from mpkit._shm.queues.outside import read_queue
from mpkit.introspect import _segments
from mpkit.introspect._translate import find
from mpkit.pool._outside import read_name, read_row

linux = pytest.mark.skipif(sys.platform != "linux", reason="file descriptors show in /proc")


def mine() -> list[str]:
    return [segment.name for segment in _segments.segments_of(find(os.getpid()))]


def test_the_creator_is_read_from_the_names_that_mpkit_gives() -> None:
    """`doctor --clean` depends on it."""
    me = identity.current()
    segment = Segment.create(1, kind="test")
    try:
        assert _segments.kind_of(segment.name) == "test"
        assert _segments.creator(os.path.basename(segment.name)) == (me.pid, me.started)
    finally:
        segment.close()


@linux
def test_the_creator_is_read_from_the_names_of_semaphores() -> None:
    def semaphores() -> set[str]:
        return {name for name in os.listdir("/dev/shm") if name.startswith("sem.mpkit-")}

    before = semaphores()
    lock = Lock()
    try:
        made = [name for name in semaphores() - before if f"-{os.getpid()}-" in name]
        assert made
        assert {_segments.creator(name) for name in made} == {identity.current()}
    finally:
        lock.close()


@pytest.mark.parametrize(
    "name", ["", "x", "mpkit-queue", "other-queue-1-2-0123456789abcdef", "mpkit-demo.sqlite3"]
)
def test_other_names_have_no_creator(name: str) -> None:
    assert _segments.creator(name) is None


def test_a_queue_is_found_while_it_is_open() -> None:
    with BoundedQueue[int](maxsize=7) as queue:
        queue.put_many([1, 2, 3])
        queue.get()
        (found,) = [found for found in introspect.queues() if found.name in mine()]
        assert found.pid == os.getpid()
        assert found.users == (os.getpid(),)
        assert found.statistics == queue.statistics()
        assert found.statistics.size == 2
        assert found.statistics.maxsize == 7
        assert pickle.loads(pickle.dumps(found)) == found
    assert introspect.queues() == []


def test_looking_does_not_touch_the_queue() -> None:
    with BoundedQueue[int](maxsize=2) as queue:
        queue.put(1)
        before = queue.statistics()
        for _ in range(3):
            introspect.queues()
        assert queue.statistics() == before
        assert queue.get() == 1


def test_big_items_count() -> None:
    with BoundedQueue[bytes]() as queue:
        queue.put(bytes(1 << 20))
        (found,) = introspect.queues()
        assert found.statistics.bytes >= 1 << 20
        assert found.statistics == queue.statistics()


def test_a_file_that_is_no_queue_is_not_read(tmp_path: Path) -> None:
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.touch()
    wrong.write_bytes(bytes(1 << 20))
    assert read_queue("empty", str(empty)) is None
    assert read_queue("wrong", str(wrong)) is None


@linux
@pytest.mark.parametrize("look", [read_row, read_name, lambda path: read_queue("pipe", path)])
def test_a_named_pipe_that_has_such_a_name_is_not_waited_for(
    look: Callable[[str], object], tmp_path: Path
) -> None:
    """Otherwise any user could block an administrator who looks at all programs."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        look(str(tmp_path / "pipe"))


@linux
@pytest.mark.parametrize(
    "word", [shared_file.ROWS_USED, layout.GENERATIONS, layout.PUT_GENERATION, layout.ROWS], ids=str
)
def test_a_queue_that_says_what_cannot_be_does_no_harm(word: int, tmp_path: Path) -> None:
    with BoundedQueue[int]() as queue:
        path = tmp_path / "copy"
        path.write_bytes(Path(f"/proc/self/fd/{queue._opened().segment.fd}").read_bytes())
    with open(path, "r+b") as file:
        file.seek(8 * word)
        file.write(struct.pack("=Q", 1 << 47))
    found = read_queue("copy", str(path))
    assert found is None or found[1] == ()


def test_a_file_that_is_no_channel_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_row(str(tmp_path / "empty")) is None


def test_a_process_without_pools_has_none() -> None:
    assert introspect.pools() == []
