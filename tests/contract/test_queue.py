"""`BoundedQueue` keeps its contract between processes of every start method."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from typing import Any

import numpy as np
import pytest

from mpkit import BoundedQueue
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit.errors import HandleLost, QueueEmpty, QueueFull, QueueShutDown, SerializationError
from tests.contract import queue_targets as targets
from tests.contract.queue_targets import Peer, do
from tests.helpers.processes import reap
from tests.helpers.waiting import PATIENCE, wait_until

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")

BIG = 100_000


def process(method: str, target: Any, *args: Any) -> Any:
    return resolve_context(method).Process(target=target, args=args)  # type: ignore[attr-defined]


# --- one queue for everyone ---------------------------------------------------------------------------------


def test_an_item_is_there_as_soon_as_put_has_returned_anywhere(peer: Peer, queue: BoundedQueue[Any]) -> None:
    for number in range(30):
        peer.call(do, queue, "put", number)
        assert queue.get_nowait() == number
        queue.put(-number)
        assert peer.call(do, queue, "get_nowait") == -number


def test_sizes_are_exact_for_everyone(peer: Peer, small: BoundedQueue[Any]) -> None:
    def sizes() -> tuple[int, bool, bool]:
        here = small.qsize(), small.empty(), small.full()
        there = tuple(peer.call(do, small, name) for name in ("qsize", "empty", "full"))
        assert here == there
        return here

    assert sizes() == (0, True, False)
    small.put("a")
    assert sizes() == (1, False, False)
    peer.call(do, small, "put", b"x" * BIG)
    assert sizes() == (2, False, True)
    with pytest.raises(QueueFull):
        peer.call(do, small, "put_nowait", "c")
    small.get()
    assert sizes() == (1, False, False)
    peer.call(do, small, "get")
    assert sizes() == (0, True, False)
    with pytest.raises(QueueEmpty):
        peer.call(do, small, "get_nowait")
    assert peer.call(targets.look, small, "maxsize") == 2


def test_the_items_of_each_putter_arrive_in_order(peer: Peer, other: Peer) -> None:
    number = 800
    with BoundedQueue[Any](maxsize=16) as queue:
        peer.begin(targets.take_all, queue)
        other.begin(targets.put_range, queue, "other", number)
        threads = [
            threading.Thread(target=targets.put_range, args=(queue, f"thread {n}", number)) for n in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        other.end()
        queue.shutdown()
        found = peer.end()
    assert len(found) == len(set(found)) == 3 * number
    for who in ("other", "thread 0", "thread 1"):
        assert [count for name, count in found if name == who] == list(range(number))


def test_getters_share_the_items_in_order(peer: Peer, other: Peer) -> None:
    with BoundedQueue[Any](maxsize=16) as queue:
        peer.begin(targets.take_all, queue)
        other.begin(targets.take_all, queue)
        targets.put_range(queue, "here", 2000)
        queue.shutdown()
        found = [peer.end(), other.end()]
    assert all(items == sorted(items) for items in found)
    assert sorted(found[0] + found[1]) == [("here", count) for count in range(2000)]


def test_questions_and_answers(peer: Peer, queue: BoundedQueue[Any]) -> None:
    with BoundedQueue[Any]() as answers:
        peer.begin(targets.answer, queue, answers)
        for number in range(300):
            queue.put(number)
            assert answers.get(timeout=PATIENCE) == number * number
        queue.shutdown()
        peer.end()


def test_what_cannot_be_pickled_is_refused_in_put(peer: Peer, queue: BoundedQueue[Any]) -> None:
    assert peer.call(targets.put_lambda, queue) == ("SerializationError", 0)
    with pytest.raises(SerializationError):
        queue.put(lambda: None)
    assert peer.call(do, queue, "qsize") == 0


def test_statistics_are_the_same_for_everyone(peer: Peer, small: BoundedQueue[Any]) -> None:
    peer.call(do, small, "put_many", ["a", b"x" * BIG])
    assert small.get() == "a"
    found = peer.call(do, small, "statistics")
    assert found == small.statistics()
    assert (found.size, found.puts, found.gets) == (1, 2, 1)
    small.put("b")
    peer.begin(do, small, "put", "c", True, PATIENCE)
    wait_until(lambda: small.statistics().waiting_putters == 1, "the peer waits")
    small.get()
    peer.end()
    assert small.statistics().waiting_putters == 0


# --- waiting ------------------------------------------------------------------------------------------------


def test_a_getter_waits_for_a_putter_elsewhere(peer: Peer, queue: BoundedQueue[Any]) -> None:
    for item in ("small", b"x" * BIG):
        peer.begin(do, queue, "get")
        wait_until(lambda: queue.statistics().waiting_getters == 1, "the peer waits")
        assert peer.busy()
        queue.put(item)
        assert peer.end() == item


def test_a_time_limit_ends_the_wait(peer: Peer, small: BoundedQueue[Any]) -> None:
    with pytest.raises(QueueEmpty):
        peer.call(do, small, "get", True, 0.05)
    with pytest.raises(QueueEmpty):
        peer.call(do, small, "get_many", None, True, 0.05)
    small.put_many([1, 2])
    with pytest.raises(QueueFull):
        peer.call(do, small, "put", 3, True, 0.05)
    assert peer.call(do, small, "put_many", [3], True, 0.05) == 0
    assert not peer.call(do, small, "join", 0.05)
    with pytest.raises(ValueError, match="-1"):
        peer.call(do, small, "get", True, -1)


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_wakes_everyone_everywhere(
    peer: Peer, other: Peer, small: BoundedQueue[Any], immediate: bool
) -> None:
    with BoundedQueue[Any]() as empty:
        small.put_many([1, 2])
        peer.begin(do, empty, "get")
        other.begin(do, small, "put", b"x" * BIG)
        wait_until(
            lambda: empty.statistics().waiting_getters and small.statistics().waiting_putters, "both wait"
        )
        for queue in (empty, small):
            queue.shutdown(immediate)
        for waiting in (peer, other):
            with pytest.raises(QueueShutDown):
                waiting.end()
        with pytest.raises(QueueShutDown):
            peer.call(do, small, "put", 3)
        assert peer.call(targets.take_all, small) == ([] if immediate else [1, 2])


def test_a_shutdown_from_elsewhere(peer: Peer, small: BoundedQueue[Any]) -> None:
    small.put(1)
    peer.call(do, small, "shutdown")
    with pytest.raises(QueueShutDown):
        small.put(2)
    assert list(small) == [1]


def test_join_waits_for_what_others_finish(peer: Peer, queue: BoundedQueue[Any]) -> None:
    queue.put_many([1, 2])
    peer.begin(do, queue, "join")
    for _ in range(2):
        assert peer.busy()
        queue.get()
        queue.task_done()
    assert peer.end() is True
    with pytest.raises(ValueError, match="task_done"):
        peer.call(do, queue, "task_done")


def test_cancelled_coroutines_elsewhere_lose_nothing(peer: Peer, queue: BoundedQueue[Any]) -> None:
    with BoundedQueue[Any]() as ready:
        peer.begin(targets.get_async_and_cancel, queue, ready)
        ready.get(timeout=PATIENCE)
        for number in range(20):
            queue.put(number)
        queue.shutdown()
        assert peer.end() == list(range(20))


# --- handles that travel ------------------------------------------------------------------------------------


def test_a_handle_travels_inside_an_item(peer: Peer, queue: BoundedQueue[Any]) -> None:
    with BoundedQueue[Any]() as courier:
        courier.put(queue)
        peer.call(targets.put_in_delivered, courier, "from the peer")
        assert queue.get_nowait() == "from the peer"


def test_a_handle_is_passed_on_by_somebody_else(peer: Peer, other: Peer, queue: BoundedQueue[Any]) -> None:
    with BoundedQueue[Any]() as courier:
        peer.call(targets.pass_on, queue, courier)
        other.call(targets.put_in_delivered, courier, "over two stations")
        assert queue.get_nowait() == "over two stations"


def test_closing_here_does_not_close_elsewhere(peer: Peer, queue: BoundedQueue[Any]) -> None:
    peer.call(targets.keep, "queue", queue)
    queue.put("still there")
    queue.close()
    assert peer.call(targets.do_kept, "queue", "get_nowait") == "still there"
    peer.call(targets.do_kept, "queue", "put", "goes on")
    assert peer.call(targets.do_kept, "queue", "qsize") == 1
    peer.call(targets.do_kept, "queue", "close")
    peer.call(targets.drop, "queue")


def test_the_creators_handle_may_go_as_soon_as_the_process_has_started(
    method: str, queue: BoundedQueue[Any]
) -> None:
    private: BoundedQueue[Any] = BoundedQueue()
    private.put(7)
    child = process(method, targets.answer, private, queue)
    private.shutdown()
    with reap(child):
        del private
        gc.collect()
    assert child.exitcode == 0
    assert queue.get_nowait() == 49


@posix
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_an_item_survives_its_putter(method: str, queue: BoundedQueue[Any], how: str) -> None:
    """The putter ends without waiting until somebody takes the item."""
    child = process(method, targets.put_and_die, queue, ("kept", b"x" * BIG), how)
    with reap(child):
        child.join(PATIENCE)
        assert child.exitcode == (3 if how == "exit" else -signal.SIGKILL)
    assert queue.get_nowait() == ("kept", b"x" * BIG)
    queue.put("goes on")
    assert queue.get_nowait() == "goes on"


def test_the_queue_outlives_its_creator(method: str) -> None:
    """Processes that opened the queue can go on. A handle that is first used too late raises `HandleLost`."""
    here, there = resolve_context(method).Pipe()
    child = process(method, targets.create_and_send, there)
    with reap(child):
        there.close()
        assert here.poll(PATIENCE)
        data = here.recv_bytes()
        queue: BoundedQueue[str] = pickle.loads(data)
        here.send_bytes(b"go")
        child.join(PATIENCE)
    here.close()
    assert queue.get(timeout=PATIENCE) == "from the creator"
    queue.put("and on")
    assert queue.get() == "and on"
    name = queue._name
    wait_until(lambda: not os.path.exists(name), "the names have been removed")
    queue.close()
    del queue

    late: BoundedQueue[Any] = pickle.loads(data)
    assert "lost" in repr(late)
    late.close()
    for use in (
        late.get,
        late.get_nowait,
        late.qsize,
        late.shutdown,
        lambda: late.put("x"),
        lambda: late.put(bytes(BIG)),
        late.get_many,
        lambda: pickle.dumps(late),
    ):
        with pytest.raises(HandleLost) as caught:
            use()
        assert isinstance(caught.value, FileNotFoundError)


# --- big data -----------------------------------------------------------------------------------------------


def test_received_arrays_are_writable_and_private(peer: Peer, queue: BoundedQueue[Any]) -> None:
    sent = np.arange(BIG)
    queue.put(sent)
    queue.put(sent)
    assert peer.call(targets.change_array, queue) == (2, BIG + 1, True)
    np.testing.assert_array_equal(queue.get(), sent)
    np.testing.assert_array_equal(sent, np.arange(BIG))


def test_many_arrays_from_elsewhere_are_held_at_once(peer: Peer, queue: BoundedQueue[Any]) -> None:
    peer.begin(targets.squares, queue, 200)
    held = [queue.get(timeout=PATIENCE) for _ in range(200)]
    peer.end()
    for number, array in enumerate(held):
        assert array.flags.writeable
        assert (array == number).all()
