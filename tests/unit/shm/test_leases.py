"""A queue, lock or counter whose last handle goes is closed at once, in the process that created it."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm import shared_object
from mpkit._shm.names import owned_names
from mpkit._shm.segment import Segment
from mpkit._shm.shared_object import SharedObject
from mpkit.errors import SharedMemoryExhausted
from tests.helpers.waiting import PATIENCE

Handle: TypeAlias = "BoundedQueue[object] | Lock | LockedCounter"


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def used_queue() -> BoundedQueue[object]:
    queue: BoundedQueue[object] = BoundedQueue(maxsize=1)
    queue.put(1)
    queue.get()
    queue.put(bytearray(100_000))
    assert len(queue.get()) == 100_000  # type: ignore[arg-type]
    with contextlib.suppress(Exception):
        queue.get(timeout=0.01)
    return queue


def used_lock() -> Lock:
    lock = Lock()
    with lock:
        assert not lock.acquire(timeout=0.01)
    return lock


def used_counter() -> LockedCounter:
    counter = LockedCounter()
    counter.add(1)
    with counter as locked:
        locked.value += 1
    return counter


@pytest.mark.usefixtures("_no_garbage_collection")
@pytest.mark.parametrize("make", [BoundedQueue, used_queue, Lock, used_lock, LockedCounter, used_counter])
def test_what_is_dropped_is_closed_at_once(make: Callable[[], Handle]) -> None:
    """Only a garbage collection did it: a program with 200 queues at a time ran out of descriptors."""
    names = owned_names()
    handle = make()
    shared = weakref.ref(handle._opened())
    rows = weakref.ref(shared().rows.words.obj)  # type: ignore[union-attr]
    assert owned_names() != names
    del handle
    assert owned_names() == names
    assert shared() is None
    assert rows() is None, "its memory is still mapped"


@pytest.mark.usefixtures("_no_garbage_collection")
def test_the_last_of_several_handles_closes_it() -> None:
    first: BoundedQueue[int] = BoundedQueue()
    second: BoundedQueue[int] = pickle.loads(pickle.dumps(first))
    shared = first._shared
    assert shared is not None
    del first
    second.put(1)
    assert second.get() == 1
    assert not shared.closed
    del second
    assert shared.closed


@pytest.mark.usefixtures("_no_garbage_collection")
def test_a_handle_that_arrives_later_opens_it_anew() -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    queue.put(1)
    message = pickle.dumps(queue)
    del queue
    with pickle.loads(message) as arrived:
        assert arrived.get() == 1


@pytest.mark.usefixtures("_no_garbage_collection")
def test_a_handle_that_arrives_just_when_the_last_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    message = pickle.dumps(queue)
    others = [queue]
    del queue
    mark_arrived = SharedObject._mark_arrived

    def mark_arrived_late(shared: SharedObject, number: int) -> None:
        others.clear()
        mark_arrived(shared, number)

    monkeypatch.setattr(SharedObject, "_mark_arrived", mark_arrived_late)
    with pickle.loads(message) as arrived:
        arrived.put(2)
        assert arrived.get() == 2


def test_what_cannot_be_closed_now_is_left_to_the_garbage_collection() -> None:
    """Whoever opens handles may be waiting for what the thread that drops one has in hand."""
    queue: BoundedQueue[int] = BoundedQueue()
    shared = weakref.ref(queue._opened())
    opening, dropped = threading.Event(), threading.Event()

    def open_for_long() -> None:
        opening.set()
        dropped.wait(PATIENCE)

    thread = threading.Thread(target=shared_object._opening.run, args=(open_for_long,))
    thread.start()
    opening.wait(PATIENCE)
    del queue
    dropped.set()
    thread.join(PATIENCE)
    gc.collect()
    assert shared() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_handle_made_in_a_fork_outlives_the_inherited_one() -> None:
    handles: list[BoundedQueue[int]] = [BoundedQueue()]
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            handles.append(pickle.loads(pickle.dumps(handles[0])))
            del handles[0]
            handles[0].put(1)
            failed = handles[0].get() - 1
        finally:
            os._exit(failed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    handles[0].put(2)
    assert handles[0].get() == 2


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """There is none for a new segment as long as the file of that name is there."""

    def leave_no_room(name: str) -> None:
        create = Segment.create.__func__  # type: ignore[attr-defined]

        def create_if_room(of: type[Segment], *args: Any, **options: Any) -> Any:
            if os.path.exists(name):
                raise SharedMemoryExhausted("no room")
            return create(of, *args, **options)

        monkeypatch.setattr(Segment, "create", classmethod(create_if_room))

    return leave_no_room


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_room_is_made_of_what_nobody_needs_any_more(no_room: Callable[[str], None]) -> None:
    """For a minute it was kept for the sake of processes that had long let go of it."""
    queue: BoundedQueue[int] = BoundedQueue()
    name = queue._opened().name
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        try:
            queue.put(1)
            os.read(reader, 1)
        finally:
            os._exit(0)
    assert queue.get(timeout=PATIENCE) == 1
    del queue
    assert os.path.exists(name), "the other process has it open"
    no_room(name)
    with pytest.raises(SharedMemoryExhausted):
        BoundedQueue()
    os.close(writer)
    os.waitpid(pid, 0)
    with BoundedQueue[int]() as another:
        another.put(2)
    assert not os.path.exists(name)
    os.close(reader)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_room_is_not_made_of_what_is_under_way(no_room: Callable[[str], None]) -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    queue.put(1)
    name = queue._opened().name
    message = pickle.dumps(queue)
    del queue
    no_room(name)
    with pytest.raises(SharedMemoryExhausted):
        Lock()
    with pickle.loads(message) as arrived:
        assert arrived.get() == 1
    # That one was not created here, and is closed.
    assert isinstance(Lock(), Lock)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_room_is_made_of_what_was_received_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were no descriptor left."""
    queue: BoundedQueue[int] = BoundedQueue()
    counter = LockedCounter()
    messages = [pickle.dumps(queue), pickle.dumps(counter)]
    # Both are received like those of another process.
    for handle in (queue, counter):
        handle.close()
    received = weakref.ref(pickle.loads(messages[0])._opened())
    attach = Segment.attach.__func__  # type: ignore[attr-defined]

    def attach_if_room(kind: type[Segment], *args: Any) -> Any:
        if received() is not None:
            raise SharedMemoryExhausted("no room")
        return attach(kind, *args)

    monkeypatch.setattr(Segment, "attach", classmethod(attach_if_room))
    assert pickle.loads(messages[1]).add() == 1
