"""`Lock` and `LockedCounter` keep their contract between processes of every start method."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._shm.locks import lock_file, robust_lock
from mpkit.errors import HandleLost
from tests.contract import queue_targets as targets
from tests.contract.queue_targets import Peer, do, look
from tests.helpers.processes import reap
from tests.helpers.waiting import PATIENCE, wait_until

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def reached() -> Iterator[BoundedQueue[int]]:
    with BoundedQueue[int]() as queue:
        yield queue


@pytest.fixture
def _look_for_the_dead_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten two waiting times, which the rule for taking over a lock does not depend on."""
    for module in (robust_lock, lock_file):
        monkeypatch.setattr(module, "SLICE_SECONDS", 0.01)
        monkeypatch.setattr(module, "STUCK_SECONDS", 0.02)


def process(method: str, target: Any, *args: Any) -> Any:
    return resolve_context(method).Process(target=target, args=args)  # type: ignore[attr-defined]


# --- Lock ---------------------------------------------------------------------------------------------------


def test_everyone_sees_the_owner(peer: Peer, lock: Lock) -> None:
    assert peer.call(do, lock, "acquire") is True
    assert (lock.locked(), lock.owner(), lock.abandoned_by) == (True, peer.pid, None)
    assert lock.acquire(False) is False
    assert lock.acquire(timeout=0.02) is False
    peer.call(do, lock, "release")
    assert (lock.locked(), lock.owner()) == (False, None)
    with lock:
        assert peer.call(do, lock, "owner") == os.getpid()
        assert peer.call(do, lock, "acquire", False) is False
        assert peer.call(do, lock, "acquire", True, 0.02) is False
    with pytest.raises(ValueError, match="nobody has acquired"):
        peer.call(do, lock, "release")


def test_another_process_may_release(peer: Peer, other: Peer, lock: Lock) -> None:
    lock.acquire()
    peer.call(do, lock, "release")
    assert not lock.locked()
    other.call(do, lock, "acquire")
    lock.release()
    assert peer.call(do, lock, "acquire", False) is True
    lock.release()


def test_a_waiting_process_gets_the_lock(peer: Peer, lock: Lock) -> None:
    lock.acquire()
    peer.begin(do, lock, "acquire")
    assert peer.busy()
    lock.release()
    assert peer.end() is True
    assert lock.owner() == peer.pid
    lock.release()


def test_processes_exclude_one_another(peer: Peer, other: Peer, lock: Lock, method: str) -> None:
    plain = resolve_context(method).RawArray("q", 1) if method == "fork" else None
    if plain is None:
        # `RawArray` can be passed only to a process that is being started. Instead use the value of a
        # counter, read and written in two steps, which is just as unprotected.
        counter = LockedCounter()
        peer.begin(targets.guarded_resets, lock, counter, 200)
        other.begin(targets.guarded_resets, lock, counter, 200)
        targets.guarded_resets(lock, counter, 200)
        peer.end()
        other.end()
        assert counter.value == 600
        counter.close()
        return
    children = [process(method, targets.guarded_increments, lock, plain, 300) for _ in range(2)]
    with reap(*children):
        targets.guarded_increments(lock, plain, 300)
    assert plain[0] == 900


@posix
def test_the_lock_of_a_dead_process_is_handed_on(
    method: str, peer: Peer, lock: Lock, reached: BoundedQueue[int]
) -> None:
    holder = process(method, targets.acquire_and_die, lock, reached)
    with reap(holder):
        pid = reached.get(timeout=PATIENCE)
        # The lock goes to a process that had no handle when the holder died.
        peer.call(targets.keep, "lock", lock)
        assert peer.call(targets.do_kept, "lock", "acquire", True, PATIENCE) is True
    assert pid == holder.pid
    assert holder.exitcode == -signal.SIGKILL
    assert lock.owner() == peer.pid
    assert peer.call(targets.look_kept, "lock", "abandoned_by") == pid
    peer.call(targets.do_kept, "lock", "release")
    peer.call(targets.drop, "lock")
    assert lock.acquire(False)
    assert lock.abandoned_by is None
    lock.release()


@posix
def test_the_new_owner_is_told_who_died(method: str, lock: Lock, reached: BoundedQueue[int]) -> None:
    holder = process(method, targets.acquire_and_die, lock, reached)
    with reap(holder):
        pid = reached.get(timeout=PATIENCE)
        holder.join(PATIENCE)
        assert lock.owner() == pid  # dead or alive
        assert lock.locked()
        assert lock.acquire(block=False)
    assert (lock.abandoned_by, lock.owner()) == (pid, os.getpid())
    assert not lock.acquire(False)
    lock.release()
    assert lock.acquire()
    assert lock.abandoned_by is None
    lock.release()


@posix
@pytest.mark.usefixtures("_look_for_the_dead_soon")
def test_a_stopped_owner_keeps_its_lock(method: str, lock: Lock, reached: BoundedQueue[int]) -> None:
    holder = process(method, targets.acquire_and_stop, lock, reached)
    with reap(holder):
        pid = reached.get(timeout=PATIENCE)
        wait_until(lambda: stopped(pid), "the owner is stopped")
        assert lock.acquire(block=False) is False
        assert lock.acquire(timeout=0.15) is False  # longer than taking over from the dead takes
        assert lock.owner() == pid
        os.kill(pid, signal.SIGCONT)
        assert lock.acquire(timeout=PATIENCE)
        assert lock.abandoned_by is None
        lock.release()
    assert holder.exitcode == 0


def stopped(pid: int) -> bool:
    import psutil

    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


# --- LockedCounter ------------------------------------------------------------------------------------------


def test_no_update_is_lost(peer: Peer, other: Peer, counter: LockedCounter) -> None:
    peer.begin(targets.add_many, counter, 3000)
    other.begin(targets.double_inside, counter, 300)
    targets.add_many(counter, 1500)
    targets.double_inside(counter, 150)
    peer.end()
    other.end()
    assert counter.value == 3000 + 600 + 1500 + 300


def test_the_verbs_reach_everyone(peer: Peer, counter: LockedCounter) -> None:
    assert peer.call(do, counter, "add", 5) == 5
    assert counter.sub(2) == 3
    assert peer.call(do, counter, "compare_and_set", 3, 10) is True
    assert peer.call(do, counter, "compare_and_set", 3, 11) is False
    assert peer.call(do, counter, "reset", -1) == 10
    assert counter.value == peer.call(look, counter, "value") == -1
    counter.reset(2**63 - 1)
    with pytest.raises(OverflowError, match="64 bits"):
        peer.call(do, counter, "add")
    assert counter.value == 2**63 - 1


def test_wait_for_what_others_add(peer: Peer, counter: LockedCounter) -> None:
    assert not peer.call(do, counter, "wait_for", 1, 0.02)
    peer.begin(do, counter, "wait_for", 3)
    for _ in range(3):
        assert peer.busy()
        counter.add()
    assert peer.end() is True
    peer.begin(targets.double_inside, counter, 4)
    assert counter.wait_for(11, PATIENCE)
    peer.end()


@posix
def test_a_process_killed_inside_a_compound_update(method: str, counter: LockedCounter) -> None:
    child = process(method, targets.die_inside_update, counter, 5)
    with reap(child):
        assert counter.wait_for(5, PATIENCE)
        assert counter.add() == 6
        with counter as locked:
            locked.value = 0
    assert child.exitcode == -signal.SIGKILL


@posix
@pytest.mark.usefixtures("_look_for_the_dead_soon")
def test_a_process_stopped_inside_a_compound_update_is_waited_for(
    method: str, counter: LockedCounter, reached: BoundedQueue[int]
) -> None:
    child = process(method, targets.stop_inside_update, counter, reached)
    with reap(child):
        pid = reached.get(timeout=PATIENCE)
        wait_until(lambda: stopped(pid), "the child is stopped")
        assert counter.value == 1
        assert not counter.wait_for(2, timeout=0.15)
        os.kill(pid, signal.SIGCONT)
        assert counter.add() == 3
    assert child.exitcode == 0


@posix
def test_no_update_is_lost_when_some_are_killed(method: str, counter: LockedCounter) -> None:
    """A killed process may have made at most one addition that its own count does not contain."""
    for _ in range(2):
        mine = LockedCounter()
        before = counter.value
        child = process(method, targets.add_for_ever, counter, mine)
        with reap(child):
            assert mine.wait_for(20, PATIENCE)
            targets.add_many(counter, 100)
            child.kill()
            child.join()
            added = counter.add(0) - before - 100
            assert added - mine.add(0) in (0, 1)
        mine.close()


# --- handles ------------------------------------------------------------------------------------------------


def test_handles_travel_inside_items(peer: Peer, lock: Lock, counter: LockedCounter) -> None:
    with BoundedQueue[Any]() as courier:
        peer.call(targets.pass_on, {"lock": lock, "counter": [counter]}, courier)
        found = courier.get(timeout=PATIENCE)
    with found["lock"]:
        assert lock.locked()
    found["counter"][0].add()
    assert counter.value == 1


def test_the_creators_handles_may_go_as_soon_as_the_process_has_started(
    method: str, counter: LockedCounter
) -> None:
    child = process(method, targets.guarded_resets, Lock(), counter, 10)
    with reap(child):
        # Now this process has no handle to the lock any more.
        gc.collect()
    assert child.exitcode == 0
    assert counter.value == 10


def test_handles_outlive_their_creator_or_say_that_they_are_lost(method: str) -> None:
    here, there = resolve_context(method).Pipe()
    child = process(method, targets.create_both, there)
    with reap(child):
        there.close()
        assert here.poll(PATIENCE)
        data = here.recv_bytes()
        lock, counter = pickle.loads(data)
        here.send_bytes(b"go")
        child.join(PATIENCE)
    here.close()
    names = [lock._name, counter._name]
    with lock:
        assert counter.add() == 6
    wait_until(lambda: not any(os.path.exists(name) for name in names), "the names have been removed")
    lock.close()
    counter.close()
    del lock, counter

    lock, counter = pickle.loads(data)
    assert "lost" in repr(lock)
    assert "lost" in repr(counter)
    for use in (lock.acquire, lock.release, lock.locked, counter.add, counter.__enter__):
        with pytest.raises(HandleLost):
            use()
    with pytest.raises(HandleLost):
        _ = counter.value
