"""Which files belong to mpkit, who created them, and what is read from them. No child processes here."""

from __future__ import annotations

import itertools
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
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.segment import Segment
from mpkit._shm.queues import generations, layout
from mpkit._shm.queues.outside import read_queue
from mpkit.introspect import _segments
from mpkit.introspect._translate import find
from mpkit.pool._outside import read_name, read_row
from tests.helpers.processes import forked, in_a_fork

linux = pytest.mark.skipif(sys.platform != "linux", reason="file descriptors show in /proc")


def mine() -> list[str]:
    return [segment.name for segment in _segments.segments_of(find(os.getpid()), "queue")]


def test_the_creator_is_read_from_the_names_that_mpkit_gives() -> None:
    """`doctor --clean` depends on it."""
    me = identity.current()
    segment = Segment.create(1, kind="test")
    try:
        assert _segments._kind_of(segment.name) == "test"
        assert _segments.creator(segment.name) == (me.pid, me.started)
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
@pytest.mark.parametrize("look", [read_row, read_name, lambda path: read_queue("other", path)])
def test_what_cannot_be_read_and_has_such_a_name_is_passed_over(
    look: Callable[[str], object], tmp_path: Path
) -> None:
    """Any user could show the administrator a traceback in place of all programs."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    descriptor = os.open(link, os.O_PATH | os.O_NOFOLLOW)
    try:
        for path in (f"/proc/self/fd/{descriptor}", str(tmp_path)):
            with pytest.raises(FileNotFoundError):
                look(path)
    finally:
        os.close(descriptor)


@linux
def test_a_terminal_that_has_such_a_name_does_not_become_ours() -> None:
    """Any user could send the administrator's `ps` a Ctrl-C, or hang it up, that was started without one."""
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)

    def look() -> None:
        os.setsid()
        with pytest.raises(FileNotFoundError):
            read_row(path)
        with pytest.raises(OSError, match="No such device"):
            os.open("/dev/tty", os.O_RDONLY)

    try:
        assert forked(look) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def a_copy_of_a_queue(path: Path) -> str:
    """Of another process, as it seems."""
    with BoundedQueue[int]() as queue:
        path.write_bytes(Path(f"/proc/self/fd/{queue._opened().segment.fd}").read_bytes())
    return str(path)


@linux
def test_a_queue_that_is_cut_while_it_is_looked_at_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_copy_of_a_queue(tmp_path / "copy")
    rows = shared_file.Form.rows

    def cut(form: shared_file.Form, segment: Segment) -> Rows:
        os.truncate(path, 0)
        return rows(form, segment)

    monkeypatch.setattr(shared_file.Form, "rows", cut)
    # What looks at a mapping of it is killed by SIGBUS.
    assert in_a_fork(lambda: read_queue("copy", path) is None)


@linux
def test_a_queue_that_never_stands_still_is_not_looked_at_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_copy_of_a_queue(tmp_path / "copy")
    moves = itertools.count(1)

    def move() -> None:
        with open(path, "r+b") as file:
            file.seek(8 * layout.GET_GENERATION)
            file.write(struct.pack("=Q", next(moves)))

    monkeypatch.setattr(generations, "_fence", move)
    assert read_queue("copy", path) is None


@linux
def test_a_queue_of_others_is_read_beyond_its_first_ring(tmp_path: Path) -> None:
    with BoundedQueue[bytes]() as queue:
        for _ in range(3000):
            queue.put(bytes(50))
        queue.put(bytes(1 << 20))
        assert queue._opened().segment.words[layout.PUT_GENERATION] > 0
        found = read_queue("another name", f"/proc/self/fd/{queue._opened().segment.fd}")
        assert found is not None
        assert found[0] == queue.statistics()


@linux
@pytest.mark.parametrize(
    "word", [shared_file.ROWS_USED, layout.GENERATIONS, layout.PUT_GENERATION, layout.ROWS], ids=str
)
def test_a_queue_that_says_what_cannot_be_does_no_harm(word: int, tmp_path: Path) -> None:
    path = a_copy_of_a_queue(tmp_path / "copy")
    with open(path, "r+b") as file:
        file.seek(8 * word)
        file.write(struct.pack("=Q", 1 << 47))
    found = read_queue("copy", path)
    assert found is None or found[1] == ()


def test_a_file_that_is_no_channel_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_row(str(tmp_path / "empty")) is None


def test_a_process_without_pools_has_none() -> None:
    assert introspect.pools() == []
