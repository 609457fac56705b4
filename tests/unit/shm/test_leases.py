"""A queue, lock or counter is closed when its last handle is dropped: at once, or a little later if it was
received from another process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm.locks import robust_lock, shared_file, shared_object, users
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.memory import segment, semaphore
from mpkit._shm.memory.names import owned_names, remove_unneeded
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.segment import Segment
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
    """If it took a garbage collection, a program with 200 queues at a time would run out of descriptors."""
    # Meanwhile names of earlier tests may disappear, which were kept because a handle might be in transit.
    names = set(owned_names())
    handle = make()
    shared = weakref.ref(handle._opened())
    rows = weakref.ref(shared().rows.words.obj)  # type: ignore[union-attr]
    assert set(owned_names()) - names
    del handle
    assert set(owned_names()) <= names
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
def test_a_handle_that_arrives_after_the_close_opens_the_object_again() -> None:
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

    def mark_arrived_late(rows: Rows, number: int) -> None:
        others.clear()
        shared_file.mark_arrived(rows, number)

    monkeypatch.setattr(shared_object, "mark_arrived", mark_arrived_late)
    with pickle.loads(message) as arrived:
        arrived.put(2)
        assert arrived.get() == 2


def test_what_cannot_be_closed_now_is_left_to_the_garbage_collection() -> None:
    """A thread that is opening handles may be waiting for a lock that the dropping thread holds."""
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
    """Make creating a segment fail, as if without room, as long as the file with that name exists."""

    def leave_no_room(name: str) -> None:
        create = Segment.create.__func__  # type: ignore[attr-defined]

        def create_if_room(of: type[Segment], *args: Any, **options: Any) -> Any:
            if os.path.exists(name):
                raise SharedMemoryExhausted("no room")
            return create(of, *args, **options)

        monkeypatch.setattr(Segment, "create", classmethod(create_if_room))

    return leave_no_room


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_files_that_nobody_needs_any_more_are_removed_to_make_room(no_room: Callable[[str], None]) -> None:
    """They are kept for a minute in case a process still needs them; not if there is no room."""
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
def test_files_whose_handles_are_in_transit_are_not_removed_to_make_room(
    no_room: Callable[[str], None],
) -> None:
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
    # The received one does not belong to this process, and is closed.
    assert isinstance(Lock(), Lock)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_received_objects_that_were_dropped_are_closed_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no descriptor were left."""
    queue: BoundedQueue[int] = BoundedQueue()
    counter = LockedCounter()
    messages = [pickle.dumps(queue), pickle.dumps(counter)]
    # Both are received as if from another process.
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


def received(make: Callable[[], Handle], number: int) -> list[bytes]:
    """Pickled handles of `number` objects that this process has closed, as if they came from another one."""
    handles = [make() for _ in range(number)]
    messages = [pickle.dumps(handle) for handle in handles]
    for handle in handles:
        handle.close()
    return messages


@pytest.mark.usefixtures("_no_garbage_collection")
@pytest.mark.parametrize("make", [BoundedQueue, Lock, LockedCounter])
def test_only_some_of_the_received_and_dropped_objects_stay_open(make: Callable[[], Handle]) -> None:
    """Otherwise each would keep a descriptor until a garbage collection."""
    messages = received(make, shared_object._MOST_IDLE + 5)
    opened = [weakref.ref(pickle.loads(message)._opened()) for message in messages]
    assert [shared() is None for shared in opened] == [number < 5 for number in range(len(opened))]


@pytest.mark.usefixtures("_no_garbage_collection")
def test_an_object_that_is_received_again_and_again_stays_open() -> None:
    hot, *others = received(LockedCounter, shared_object._MOST_IDLE)
    shared = weakref.ref(pickle.loads(hot)._opened())
    for message in others * 2:
        assert pickle.loads(message).add() > 0
        assert pickle.loads(hot)._opened() is shared()


@pytest.mark.usefixtures("_no_garbage_collection")
def test_an_object_that_is_received_again_just_when_it_is_to_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A garbage collection or a signal handler drops other objects while this one is being received."""
    message, *others = received(LockedCounter, shared_object._MOST_IDLE + 2)
    pickle.loads(message)
    lend = SharedObject._lend

    def lend_late(shared: SharedObject) -> shared_object.Lease:
        monkeypatch.undo()
        for other in others:
            pickle.loads(other)
        return lend(shared)

    monkeypatch.setattr(SharedObject, "_lend", lend_late)
    assert pickle.loads(message).add() == 1


@pytest.mark.usefixtures("_no_garbage_collection")
def test_an_object_that_this_thread_is_using_stays_open() -> None:
    message, *others = received(LockedCounter, shared_object._MOST_IDLE + 5)
    compound = pickle.loads(message).__enter__()
    for other in others:
        pickle.loads(other)
    compound.value += 1
    compound.end()
    assert pickle.loads(message).value == 1


@pytest.mark.usefixtures("_no_garbage_collection")
def test_names_stay_if_a_handle_comes_back_while_another_thread_drops_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They must, although no handle is in transit any more and no other process has the object open."""
    handles: list[BoundedQueue[int]] = [BoundedQueue()]
    name = handles[0]._opened().name
    message = pickle.dumps(handles[0])
    may_be_in_use = SharedObject._may_be_in_use

    def may_be_in_use_late(shared: SharedObject) -> bool:
        thread = threading.Thread(target=lambda: handles.append(pickle.loads(message)))
        thread.start()
        thread.join(PATIENCE)
        return may_be_in_use(shared)

    with monkeypatch.context() as patches:
        patches.setattr(SharedObject, "_may_be_in_use", may_be_in_use_late)
        del handles[0]
    with handles[0] as back:
        back.put(1)
        assert back.get() == 1
        assert os.path.exists(name)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_names_stay_if_a_handle_comes_back_during_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    name = queue._opened().name
    message = pickle.dumps(queue)
    del queue
    back: list[BoundedQueue[int]] = []
    attach = Segment.attach.__func__  # type: ignore[attr-defined]

    def attach_slowly(kind: type[Segment], *args: Any) -> Any:
        found = attach(kind, *args)
        if args == (name,):
            thread = threading.Thread(target=lambda: back.append(pickle.loads(message)))
            thread.start()
            thread.join(PATIENCE)
        return found

    with monkeypatch.context() as patches:
        patches.setattr(Segment, "attach", classmethod(attach_slowly))
        remove_unneeded()
    assert os.path.exists(name)
    back[0].close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.parametrize("when", ["closing", "looking"])
def test_names_stay_if_a_fork_sends_a_handle_and_ends_during_the_check(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First no handle is in transit yet, and then nobody has the object open any more: yet it is needed."""
    queue: BoundedQueue[int] = BoundedQueue()
    name = queue._opened().name
    go, do_go = os.pipe()
    sent, send = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(do_go)
        try:
            os.read(go, 1)
            os.write(send, pickle.dumps(queue))
        finally:
            os._exit(0)
    os.close(send)
    messages: list[bytes] = []
    others = users._others

    def others_late(rows: Rows) -> bool:
        if not messages:
            os.close(do_go)
            os.waitpid(pid, 0)
            messages.append(os.read(sent, 10_000))
        return others(rows)

    if when == "looking":
        queue.close()
    with monkeypatch.context() as patches:
        patches.setattr(users, "_others", others_late)
        if when == "looking":
            remove_unneeded()
        else:
            queue.close()
    assert os.path.exists(name)
    with pickle.loads(messages[0]) as arrived:
        arrived.put(1)
        assert arrived.get() == 1
    os.close(go)
    os.close(sent)


@pytest.mark.usefixtures("_no_garbage_collection")
def test_a_handle_that_arrives_while_the_last_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler or a finalizer may take it from another queue."""
    queue: BoundedQueue[int] = BoundedQueue()
    name = queue._opened().name
    message = pickle.dumps(queue)
    back: list[BoundedQueue[int]] = []

    class Interrupted(weakref.WeakValueDictionary[str, users.Opened]):
        def get(self, key: str, default: Any = None) -> Any:
            if key == name and not coming:
                coming.append(True)
                back.append(pickle.loads(message))
            return super().get(key, default)

    coming: list[bool] = []
    monkeypatch.setattr(users, "open_here", Interrupted(users.open_here))
    del queue
    with back[0] as arrived:
        arrived.put(1)
        assert arrived.get() == 1


def test_an_object_that_this_thread_is_using_is_left_to_the_garbage_collection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise an error would be printed, and a fork would not find the object any more."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    counter = LockedCounter()
    shared = weakref.ref(counter._opened())
    locked = counter.__enter__()
    del counter
    assert unraisable == []
    assert any(found is shared() for found in users.open_here.values())
    locked.value += 1
    locked.end()
    del locked
    gc.collect()
    assert shared() is None
    assert unraisable == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_child_can_close_an_object_before_the_fork_hook_has_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A garbage collection may come first. It must not wait for a lock of a thread that the child lacks."""
    queue: BoundedQueue[int] = BoundedQueue()
    queue.put(1)
    shared = queue._opened()
    monkeypatch.setattr(robust_lock, "SHUT_SECONDS", 10 * PATIENCE)
    # Then the hook does not find the object.
    del users.open_here[shared.name]
    lock = shared.get_lock
    inside, done = threading.Event(), threading.Event()

    def stay_inside() -> bool:
        inside.set()
        return done.wait(PATIENCE)

    thread = threading.Thread(target=lock.run, args=(None, stay_inside))
    thread.start()
    inside.wait(PATIENCE)
    pid = os.fork()
    if not pid:
        failed = 1
        try:
            signal.alarm(20)
            shared.close()
            failed = 0
        finally:
            os._exit(failed)
    status = os.waitpid(pid, 0)[1]
    done.set()
    thread.join(PATIENCE)
    assert os.waitstatus_to_exitcode(status) == 0
    assert queue.get(timeout=PATIENCE) == 1
    queue.close()


def test_a_closed_object_can_be_dropped_after_the_modules_were_emptied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end of a program the last object is often an array that came from a dropped queue."""
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    queue: BoundedQueue[int] = BoundedQueue()
    opened = queue._opened()
    parts: list[object] = [opened.segment, *opened.semaphores]
    del opened, queue
    gc.collect()
    for module in (segment, semaphore):
        monkeypatch.setattr(module, "_is_finalizing", None)
    parts.clear()
    monkeypatch.undo()
    assert unraisable == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_fork_is_prepared_while_other_threads_create_and_drop() -> None:
    """Otherwise the fork hook would fail in the middle, and creators would not know of the child."""
    made: list[Lock] = []
    data: dict[str, Any] = users.open_here.data  # type: ignore[attr-defined]
    first = Lock()

    def create_meanwhile() -> None:
        made.append(Lock())

    data["/another thread"] = create_meanwhile
    try:
        with BoundedQueue[int]() as queue:
            shared_object._prepare_fork()
            assert made
            assert queue._opened()._marks.forked
    finally:
        del data["/another thread"]
    first.close()
