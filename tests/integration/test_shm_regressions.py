"""Faults of shared memory that were found once: deaths at the wrong moment, and what forks inherit."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mpkit import BoundedQueue, LockedCounter
from mpkit._platform.files import filelock, use_marks
from mpkit._platform.files.filelock import FileLock
from mpkit._shm.locks import sleepers, users
from mpkit._shm.locks.sleepers import Sleepers
from mpkit._shm.memory import names
from mpkit._shm.queues.layout import REGION_SLOTS, REGIONS
from mpkit._shm.queues.regions import ENTRY_WORDS, QUEUED, Regions
from tests.helpers.processes import run_python
from tests.helpers.waiting import PATIENCE, wait_until
from tests.unit.shm.others import Call, permits

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")


def die_in_child(patch: Callable[[], None], operation: Callable[[], object]) -> None:
    """Run `operation` in a forked child, in which `patch` has inserted a SIGKILL somewhere."""
    pid = os.fork()
    if pid == 0:
        try:
            patch()
            operation()
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "the child has not reached the place where it should die"


def die(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def forked(function: Callable[[], object]) -> Iterator[int]:
    """A forked child that runs `function` and then sleeps until the block is over."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            while True:
                signal.pause()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_region_of_an_item_that_was_never_published_is_freed() -> None:
    with BoundedQueue[Any]() as queue:
        shared = queue._opened()

        def patch() -> None:
            real = Regions.mark_queued

            def mark(self: Regions, number: int, serial: int, used: int) -> None:
                real(self, number, serial, used)
                die()

            Regions.mark_queued = mark  # type: ignore[method-assign]

        die_in_child(patch, lambda: queue.put(bytes(100_000)))

        def states() -> list[int]:
            return [shared.words[REGIONS + number * ENTRY_WORDS] for number in range(1, REGION_SLOTS)]

        assert QUEUED in states()
        for number in range(3):
            queue.put(number)
        assert queue.get_many() == [0, 1, 2]
        queue.put(bytes(1_000_000))
        queue.get()
        assert shared.puts.trim()
        assert QUEUED not in states()


# -- a waker that dies after it has counted its token, before it adds it -------------------------------------


def kill_in_post() -> None:
    def post(self: Sleepers, number: int) -> None:
        if number:
            die()

    Sleepers.post = post  # type: ignore[method-assign]


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets the length of the slices in which sleepers wait.

    They are short until the death has been noticed, and then longer than any test: only a wake-up helps.
    """
    return lambda seconds: monkeypatch.setattr(sleepers, "SLICE_SECONDS", seconds)


def test_getters_are_woken_again_after_a_putter_has_died(slices: Callable[[float], None]) -> None:
    """The putter has counted a token that it never added. Later getters must still be woken at once."""
    slices(0.05)
    with BoundedQueue[int]() as queue:
        group = queue._opened().items
        first = Call(queue.get)
        wait_until(group.waiting, "the getter sleeps")
        die_in_child(kill_in_post, lambda: queue.put(1))
        first.join()
        assert first.value == 1
        slices(10 * PATIENCE)
        for number in range(3):
            call = Call(queue.get)
            wait_until(group.waiting, "the getter sleeps")
            queue.put(number)
            call.join()
            assert call.value == number


def test_waiters_of_a_counter_are_woken_again_after_an_adder_has_died(
    slices: Callable[[float], None],
) -> None:
    """The adder has counted a token that it never added. Later waiters must still be woken at once."""
    slices(0.05)
    with closing(LockedCounter()) as counter:
        group = counter._opened()._sleepers
        first = Call(lambda: counter.wait_for(1))
        wait_until(group.waiting, "the waiter sleeps")
        die_in_child(kill_in_post, counter.add)
        first.join()
        slices(10 * PATIENCE)
        for target in range(2, 5):
            call = Call(lambda target=target: counter.wait_for(target))  # type: ignore[misc]
            wait_until(group.waiting, "the waiter sleeps")
            counter.add()
            call.join()
            assert call.value is True


def test_waiting_coroutines_leave_no_surplus_tickets_or_tokens() -> None:
    rounds = 300
    with BoundedQueue[int]() as queue, BoundedQueue[int]() as back:
        pid = os.fork()
        if pid == 0:
            for number in range(rounds):
                queue.put(number)
                back.get()
            os._exit(0)

        async def take_all() -> None:
            for number in range(rounds):
                assert await queue.aget() == number
                back.put(number)

        asyncio.run(take_all())
        assert os.waitpid(pid, 0)[1] == 0
        group = queue._opened().items
        queue.close()
        surplus = permits(group.tokens) + group.words[group.slept_at] - group.words[group.posted_at]
        assert surplus <= 3


# -- the file lock -------------------------------------------------------------------------------------------


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(8))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def is_free(fd: int) -> bool:
    lock = FileLock.try_acquire(fd)
    if lock is None:
        return False
    lock.release()
    return True


def test_the_file_lock_of_a_dead_process_is_free(fd: int) -> None:
    reader, writer = os.pipe()

    def hold() -> None:
        lock = FileLock.try_acquire(fd)
        os.write(writer, b"1" if lock else b"0")
        while True:
            signal.pause()

    with forked(hold) as pid:
        assert os.read(reader, 1) == b"1"
        assert not is_free(fd)
        os.kill(pid, signal.SIGSTOP)
        assert not is_free(fd), "a stopped process is alive"
    assert is_free(fd)
    os.close(reader)
    os.close(writer)


def test_a_forked_child_does_not_keep_the_file_lock(fd: int) -> None:
    lock = FileLock.try_acquire(fd)
    assert lock is not None
    with forked(lambda: None):
        assert not is_free(fd), "the child closing its copy must not free it"
        lock.release()
        assert is_free(fd)


@pytest.mark.skipif(sys.platform != "linux", reason="opens the file again through /proc")
def test_a_child_forked_while_the_file_lock_is_being_taken_does_not_keep_it(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread forks between the opening of the file and the locking. The fork must wait for both."""
    real = filelock._open_again
    begun, forks = Event(), []

    def fork_now() -> None:
        assert begun.wait(PATIENCE)
        pid = os.fork()
        if pid == 0:
            while True:
                signal.pause()
        forks.append(pid)

    def opened(of: int) -> FileIO | None:
        own = real(of)
        begun.set()
        # The other thread is about to fork, which must wait for this one. Give it time to fork too early.
        time.sleep(0.05)
        return own

    thread = Call(fork_now)
    with monkeypatch.context() as patch:
        patch.setattr(filelock, "_open_again", opened)
        lock = FileLock.try_acquire(fd)
    thread.join()
    assert forks
    try:
        assert lock is not None
        assert lock._file is not None
        # As if this process were killed: the lock is not released, but the descriptor is closed.
        lock._file.close()
        wait_until(lambda: is_free(fd), "the lock is free although the child lives")
    finally:
        for pid in forks:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# -- children that have inherited a queue but not used it yet ------------------------------------------------


@contextmanager
def forked_users(*works: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Fork a child for each of `works`; give the block a function that lets them work and waits for them."""
    children = []
    for work in works:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(writer)
                os.read(reader, 1)
                work()
                code = 0
            finally:
                os._exit(code)
        os.close(reader)
        children.append((pid, writer))

    def go_on() -> None:
        while children:
            pid, writer = children.pop()
            os.close(writer)
            assert os.waitpid(pid, 0)[1] == 0

    try:
        yield go_on
    finally:
        for pid, writer in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(writer)


@pytest.mark.skipif(sys.platform != "linux", reason="marks exist only on Linux")
def test_a_forked_child_can_hand_on_a_queue_that_its_creator_has_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The child has the queue open, though it has not used it yet: its names must not be removed."""
    monkeypatch.setattr(names, "LINGER_SECONDS", 0.0)
    monkeypatch.setattr(
        names, "_lingering", deque()
    )  # without names of earlier tests, which would come first
    with closing(BoundedQueue[str]()) as queue:
        name = queue._name

        def hand_on() -> None:
            handle = pickle.dumps(queue)
            users.open_here.clear()  # open it by its name, as the process would that gets the handle
            pickle.loads(handle).put("from there")
            assert queue.get() == "from there"

        with forked_users(hand_on) as go_on:
            queue.close()
            names._remove_due()
            assert os.path.exists(name)
            go_on()
        names._remove_due()
        assert not os.path.exists(name)


@pytest.mark.skipif(sys.platform != "linux", reason="marks exist only on Linux")
def test_children_that_have_ended_or_closed_the_queue_do_not_keep_its_names() -> None:
    with closing(BoundedQueue[int]()) as queue:
        name = queue._name
        reader, writer = os.pipe()
        with forked_users(lambda: None) as go_on:
            go_on()

        def close_and_stay() -> None:
            queue.close()
            os.write(writer, b"1")

        with forked(close_and_stay):
            assert os.read(reader, 1) == b"1"
            gc.collect()  # garbage of earlier tests must not be closed in between
            descriptors = len(os.listdir("/proc/self/fd"))
            queue.close()
            assert not os.path.exists(name)
            assert len(os.listdir("/proc/self/fd")) < descriptors
        os.close(reader)
        os.close(writer)


def test_who_has_received_a_handle_keeps_the_names_even_before_the_first_use() -> None:
    """Otherwise it could not pass the handle on."""
    (handle_there, handle_here), (answer_here, answer_there) = os.pipe(), os.pipe()

    def receive() -> None:
        received = pickle.loads(os.read(handle_there, 1 << 16))
        os.write(answer_there, b"1")
        signal.pause()
        received.close()

    # Forked before there is a queue, so that it can only be received.
    with forked(receive):
        queue: BoundedQueue[int] = BoundedQueue()
        name = queue._name
        os.write(handle_here, pickle.dumps(queue))
        assert os.read(answer_here, 1) == b"1"
        queue.close()
        assert os.path.exists(name)
    names.remove_unneeded()
    assert not os.path.exists(name)
    for fd in (handle_there, handle_here, answer_here, answer_there):
        os.close(fd)


def test_a_forked_child_that_ends_removes_only_its_own_names() -> None:
    with closing(BoundedQueue[int]()) as queue:
        # It makes a queue of its own, which it removes at its exit.
        child = multiprocessing.get_context("fork").Process(target=BoundedQueue)
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0
        assert os.path.exists(queue._name)
        child.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="lists descriptors")
def test_the_number_of_forks_does_not_use_up_descriptors() -> None:
    with closing(BoundedQueue[int]()):
        gc.collect()  # garbage of earlier tests must not be closed in between
        counts = []
        for _ in range(3):
            with forked(lambda: None):
                counts.append(len(os.listdir("/proc/self/fd")))
        assert len(set(counts)) == 1


@pytest.mark.parametrize("forks", [False, True])
def test_if_no_mark_can_be_made_names_are_kept_for_a_minute_once_there_was_a_fork(
    forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files", fd)

    monkeypatch.setattr(use_marks, "mark_of_its_own", refuse)
    with closing(BoundedQueue[int]()) as queue:
        name = queue._name
        if forks:
            with forked_users(lambda: None) as go_on:
                go_on()
        queue.close()
        assert os.path.exists(name) is forks
    names.remove(name)


@pytest.mark.parametrize("take", ["queue.get()", "queue._opened().gets.try_get()"], ids=["views", "unopened"])
def test_a_program_that_ends_with_a_big_item_prints_no_errors(take: str) -> None:
    """Its global variables are deleted when those of mpkit's modules are gone already."""
    program = f"""
import pickle
import mpkit

queue = mpkit.BoundedQueue()
queue.put(pickle.PickleBuffer(bytearray(100_000)))
last = {take}
"""
    assert run_python("-c", program).stderr == ""


def test_ctrl_c_right_after_a_big_item_has_been_unpickled_is_raised() -> None:
    """Since Python 3.14, the first call of a C function at a place in the code does not check for signals."""
    program = """
import _thread
import mpkit

class Interrupts:
    def __reduce__(self):
        # This only marks the signal as pending: the handler is not called yet.
        return _thread.interrupt_main, ()

queue = mpkit.BoundedQueue()
queue.put([b"x" * 100_000, Interrupts()])
try:
    queue.get()
except KeyboardInterrupt:
    print("heard")
"""
    ended = run_python("-c", program)
    assert ended.stdout == "heard\n"
    assert ended.stderr == ""
