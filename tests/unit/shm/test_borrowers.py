"""The table of borrowers (forked children with views of big items): step by step, then with real forks."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, cast

import numpy as np
import pytest

from mpkit import BoundedQueue
from mpkit._platform.processes import identity
from mpkit._shm.queues import held_items, layout, views
from mpkit._shm.queues.borrowers import SLOT_WORDS, Borrowers
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.regions import FREE, HELD, LEFT, LENT, PINNED
from tests.helpers.stepping import needs_a_trace_that_raises
from tests.helpers.waiting import wait_until
from tests.unit.shm.others import dead_process, living_stranger

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")

REGION = 7


@pytest.fixture
def queue() -> Iterator[BoundedQueue[bytearray]]:
    with BoundedQueue[bytearray]() as queue:
        queue.qsize()
        yield queue


@pytest.fixture
def file(queue: BoundedQueue[bytearray]) -> QueueFile:
    return queue._opened()


@pytest.fixture
def table(file: QueueFile) -> Borrowers:
    assert file.regions._borrowers is not None
    return file.regions._borrowers


def belongs_to(table: Borrowers, slot: int, process: identity.ProcessIdentity) -> None:
    table._words[slot + 1], table._words[slot + 2] = process.pid, process.started


def lend(table: Borrowers, region: int) -> int:
    (slot,) = table.lend([region])
    return slot


# -- the table -----------------------------------------------------------------------------------------------


def test_a_loan_lasts_until_it_is_given_back(table: Borrowers) -> None:
    assert not table.has(REGION)
    slot = lend(table, REGION)
    assert table.has(REGION), "from before the fork on"
    assert not table.has(REGION + 1)
    table.arrive(slot)
    assert table.has(REGION)
    other = lend(table, REGION)
    table.give_back(slot)
    assert table.has(REGION)
    table.give_back(other)
    assert not table.has(REGION)


def test_a_loan_ends_when_the_borrower_dies(table: Borrowers) -> None:
    slot = lend(table, REGION)
    belongs_to(table, slot, living_stranger())
    assert table.has(REGION)
    belongs_to(table, slot, dead_process())
    assert not table.has(REGION)


def test_the_slots_of_the_dead_are_used_again_and_no_others(table: Borrowers) -> None:
    slots = [lend(table, REGION) for _ in range(layout.BORROWER_SLOTS)]
    assert len(set(slots)) == layout.BORROWER_SLOTS
    assert all(slot >= layout.BORROWERS for slot in slots)
    assert max(slots) + SLOT_WORDS <= layout.FIRST_RING
    assert lend(table, REGION) == 0, "the other slots may belong to children that are just starting"
    belongs_to(table, slots[3], living_stranger())
    belongs_to(table, slots[5], dead_process())
    assert lend(table, REGION + 1) == slots[5]
    assert table.has(REGION + 1)
    assert lend(table, REGION) == 0


class _FewStores:
    """The words of a table, of which only the first few stores are made, as if the process died then."""

    def __init__(self, words: memoryview[int], number: int) -> None:
        self._words = words
        self._left = number

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if not self._left:
            raise OSError
        self._left -= 1
        self._words[at] = value


@pytest.mark.parametrize("stores", range(4))
def test_a_lender_that_dies_while_it_reuses_a_slot_does_not_revive_the_old_loan(
    table: Borrowers, stores: int
) -> None:
    slots = [lend(table, REGION) for _ in range(layout.BORROWER_SLOTS)]
    for slot in slots:
        belongs_to(table, slot, dead_process())
    words = table._words
    table._words = cast("memoryview[int]", _FewStores(words, stores))
    assert lend(table, REGION + 1) == 0
    table._words = words
    assert not table.has(REGION)


def test_a_loan_that_moves_to_a_slot_already_looked_at_is_not_overlooked(
    table: Borrowers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look finds the first slot free. Then the borrower in the second slot lends to a child, in the first
    # slot, and gives its own loan back.
    free, own = lend(table, 1), lend(table, REGION)
    table.give_back(free)
    table.arrive(own)
    asked = []

    def is_alive(_process: object) -> bool:
        asked.append(1)
        if len(asked) == 1:
            assert lend(table, REGION) == free
            table.give_back(own)
            return False
        return True

    monkeypatch.setattr(identity, "is_alive", is_alive)
    assert table.has(REGION)


def test_a_table_that_keeps_changing_counts_as_a_loan(
    table: Borrowers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = lend(table, REGION)
    table.arrive(slot)

    def is_alive(_process: object) -> bool:
        table.give_back(lend(table, 1))
        return False

    monkeypatch.setattr(identity, "is_alive", is_alive)
    assert table.has(REGION)


def test_without_the_lock_there_is_no_loan(table: Borrowers, file: QueueFile) -> None:
    assert file.get_lock.acquire()
    assert lend(table, REGION) == 0, "by the thread that has it"
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(lend(table, REGION)))
    thread.start()
    thread.join()
    file.get_lock.release()
    assert found == [0]
    assert not table.has(REGION)


# -- forks ---------------------------------------------------------------------------------------------------


def states(queue: BoundedQueue[Any]) -> set[int]:
    file = queue._opened()
    words = file.words
    return {words[layout.REGIONS + number * 8] for number in range(1, layout.REGION_SLOTS)} - {0}


def reclaim(queue: BoundedQueue[Any]) -> None:
    """Reclaim regions, as a putter does when no free one fits."""
    file = queue._opened()
    assert file.put_lock.acquire()
    file.supply._reclaim()
    file.put_lock.release()


def _nothing() -> None:
    """The last action of a child: it then waits for its end."""


class Child:
    """A fork that performs one action for each byte that it gets, and reports when it has."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        orders, self._order = os.pipe()
        self._done, done = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                os.close(self._order)
                for action in (*actions, _nothing):
                    if not os.read(orders, 1):
                        break
                    action()
                    os.write(done, b".")
                code = 0
            finally:
                os._exit(code)
        os.close(orders)
        os.close(done)

    def act(self) -> None:
        os.write(self._order, b".")
        assert os.read(self._done, 1) == b".", "the child has failed"

    def end(self, how: int = 0) -> None:
        if how:
            os.kill(self.pid, how)
        os.close(self._order)
        os.close(self._done)
        _, status = os.waitpid(self.pid, 0)
        assert status == how


class Held:
    """A big item that was received; can be checked, and dropped in a child."""

    def __init__(self, queue: BoundedQueue[Any]) -> None:
        import pickle

        queue.put(pickle.PickleBuffer(b"x" * 100_000))
        self.item: Any = queue.get()

    def check(self) -> None:
        assert bytes(self.item) == b"x" * 100_000

    def drop(self) -> None:
        self.item = None


def overwrite(queue: BoundedQueue[Any]) -> None:
    """Put items until every reusable region has been overwritten."""
    for _ in range(6):
        queue.put(bytearray(b"y" * 100_000))
    while not queue.empty():
        queue.get()
    gc.collect()


@pytest.mark.parametrize("how", [0, signal.SIGKILL], ids=["in order", "killed"])
def test_a_region_is_used_again_when_parent_and_child_are_done_with_it(
    queue: BoundedQueue[Any], how: int
) -> None:
    held = Held(queue)
    child = Child(held.check)
    assert states(queue) == {LENT}
    held.drop()
    assert states(queue) == {LEFT}
    overwrite(queue)
    child.act()
    assert LEFT in states(queue)
    child.end(how)
    reclaim(queue)
    assert states(queue) == {FREE}


def test_the_child_gives_back_what_it_drops_and_the_parent_may_be_last(queue: BoundedQueue[Any]) -> None:
    held = Held(queue)
    child = Child(held.check, held.drop, lambda: None)
    child.act()
    child.act()
    reclaim(queue)
    assert states(queue) == {LENT}
    held.check()
    held.drop()
    reclaim(queue)
    assert states(queue) == {FREE}
    child.act()
    child.end()


def test_a_parent_that_dies_has_given_its_views_back(queue: BoundedQueue[Any]) -> None:
    orders, order = os.pipe()
    hears, told = os.pipe()
    kept = []

    def receive_and_fork() -> None:
        kept.append(Held(queue))
        pid = os.fork()
        if pid:
            os.write(told, pid.to_bytes(4, "little"))
            return
        os.close(order)
        os.read(orders, 1)
        os._exit(0)

    child = Child(receive_and_fork)
    child.act()
    pid = int.from_bytes(os.read(hears, 4), "little")
    child.end(signal.SIGKILL)
    reclaim(queue)
    assert states(queue) == {LENT}
    for end in (order, orders, hears, told):
        os.close(end)
    wait_until(lambda: identity.of(pid) is None, "the grandchild has ended")
    reclaim(queue)
    assert states(queue) == {FREE}


def test_a_child_lends_to_its_own_child(queue: BoundedQueue[Any]) -> None:
    grandchildren: list[Child] = []

    def fork() -> None:
        grandchildren.append(Child(held.check, held.drop))

    def let_it_act() -> None:
        grandchildren[0].act()

    held = Held(queue)
    child = Child(fork, held.drop, let_it_act, let_it_act, lambda: grandchildren.pop().end())
    child.act()
    child.act()
    held.drop()
    overwrite(queue)
    reclaim(queue)
    assert LEFT in states(queue), "the grandchild has it"
    child.act()
    child.act()
    reclaim(queue)
    assert states(queue) == {FREE}
    child.act()
    child.end()


def test_a_loop_that_receives_and_forks_needs_no_more_memory_than_one_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Few, for each turn takes a fork of the process of the tests.
    slots = 8
    monkeypatch.setattr(layout, "BORROWER_SLOTS", slots)
    sizes = set()
    with BoundedQueue[bytearray]() as queue:
        for turn in range(slots + 20):
            held = Held(queue)
            child = Child(held.check)
            held.drop()
            child.act()
            child.end()
            if turn >= 10:
                sizes.add(os.stat(queue._opened().segment.name).st_size)
        assert len(sizes) == 1
        assert PINNED not in states(queue)


def test_views_that_a_fork_could_not_wait_for_are_kept(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_OPENING_SECONDS", 0.01)
    opening, go_on = threading.Event(), threading.Event()

    def hold_up() -> None:
        with views._opening:
            opening.set()
            go_on.wait()

    thread = threading.Thread(target=hold_up)
    thread.start()
    opening.wait()
    views._before_fork()
    go_on.set()
    thread.join()
    held = Held(queue)
    views._after_fork_in_parent()
    assert states(queue) == {PINNED}
    held.drop()
    assert states(queue) == {PINNED}


def test_nobody_opens_views_while_another_thread_forks(queue: BoundedQueue[Any]) -> None:
    views._before_fork()
    opened: list[Held] = []
    thread = threading.Thread(target=lambda: opened.append(Held(queue)))
    thread.start()
    wait_until(lambda: HELD in states(queue), "the item has been taken")
    assert not views._holds
    views._after_fork_in_parent()
    thread.join()
    assert states(queue) == {HELD}
    opened.pop().drop()
    assert states(queue) == {FREE}


def test_a_fork_in_the_middle_of_a_fork(queue: BoundedQueue[Any]) -> None:
    held = Held(queue)
    views._before_fork()
    child = Child(held.check)
    views._after_fork_in_parent()
    assert not views._lent
    thread = threading.Thread(target=lambda: held.drop())  # noqa: PLW0108  later
    thread.start()
    thread.join()
    assert views._opening.acquire(False)
    views._opening.release()
    child.act()
    child.end()


def test_a_child_that_cannot_lend_to_its_child_pins_the_region(
    queue: BoundedQueue[Any], table: Borrowers, monkeypatch: pytest.MonkeyPatch
) -> None:
    grandchildren: list[Child] = []

    def fork() -> None:
        monkeypatch.setattr(Borrowers, "lend", lambda _self, regions: [0] * len(regions))
        grandchildren.append(Child(held.check))

    def let_it_act() -> None:
        grandchildren[0].act()

    held = Held(queue)
    child = Child(fork, held.drop, let_it_act, lambda: grandchildren.pop().end())
    child.act()
    child.act()
    # Meanwhile the parent changes the state of the region, and a putter looks at it.
    held.drop()
    assert states(queue) == {LEFT}
    overwrite(queue)
    reclaim(queue)
    assert LEFT in states(queue)
    child.act()
    child.act()
    child.end()


def test_a_view_that_is_dropped_while_the_child_writes_its_identity(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot must be given back after the identity is written. Before, another process could take the slot,
    and the identity would be written into that one's.
    """
    held = Held(queue)
    real = Borrowers.arrive
    order: list[str] = []

    def arrive(self: Borrowers, at: int) -> None:
        held.drop()
        real(self, at)
        order.append("arrived")

    def give_back(self: Borrowers, at: int) -> None:
        order.append("given back")
        self._words[at] = 0

    monkeypatch.setattr(Borrowers, "arrive", arrive)
    monkeypatch.setattr(Borrowers, "give_back", give_back)
    hears, tells = os.pipe()
    child = Child(lambda: os.write(tells, ",".join(order).encode()))
    child.act()
    assert os.read(hears, 100) == b"arrived,given back"
    child.end()
    os.close(hears)
    os.close(tells)


def test_a_fork_in_a_signal_handler_in_the_middle_of_a_get_leaves_the_item_to_the_parent(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(bytearray(b"x" * 100_000))
    real = held_items.HeldItem.open
    pids: list[int] = []

    def fork_and_open(self: held_items.HeldItem) -> held_items.BigRecord:
        pids.append(os.fork())
        return real(self)

    monkeypatch.setattr(held_items.HeldItem, "open", fork_and_open)
    try:
        item = queue.get()
    except RuntimeError:
        os._exit(0 if not pids[0] else 1)
    if not pids[0]:
        os._exit(2)
    assert os.waitpid(pids[0], 0)[1] == 0
    assert item == b"x" * 100_000


def test_a_fork_takes_the_lock_once_for_all_items(
    queue: BoundedQueue[Any], table: Borrowers, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(_table: Borrowers, regions: Sequence[int]) -> list[int]:
        asked.append(len(regions))
        return [0] * len(regions)

    monkeypatch.setattr(Borrowers, "lend", refuse)
    held = [Held(queue) for _ in range(3)]
    Child().end()
    assert asked == [3]
    for one in held:
        one.drop()


def test_views_dropped_between_the_hook_and_the_fork_are_given_back_by_the_child(
    queue: BoundedQueue[Any], table: Borrowers, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(queue)
    views._before_fork()
    held.drop()
    assert states(queue) == {LEFT}
    assert any(table.has(number) for number in range(1, 10))
    # Run both sides of a fork in one process.
    lent, opening = dict(views._lent), views._opening
    views._after_fork_in_child()
    views._lent.update(lent)
    monkeypatch.setattr(views, "_opening", opening)
    views._after_fork_in_parent()
    reclaim(queue)
    assert states(queue) == {FREE}
    assert not views._lent


def test_where_there_is_no_slot_the_region_is_pinned(queue: BoundedQueue[Any], table: Borrowers) -> None:
    for _ in range(layout.BORROWER_SLOTS):
        lend(table, 200)
    held = Held(queue)
    child = Child(held.check)
    assert states(queue) == {PINNED}
    held.drop()
    overwrite(queue)
    child.act()
    child.end()
    assert PINNED in states(queue)


def test_views_from_a_closed_queue_can_still_be_forked() -> None:
    queue: BoundedQueue[Any] = BoundedQueue()
    held = Held(queue)
    queue.close()
    child = Child(held.check)
    held.check()
    held.drop()
    child.act()
    child.end()


def test_a_process_without_descriptors_keeps_what_it_was_lent(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(queue)
    monkeypatch.setattr(identity, "_examine", _refuse)
    child = Child(held.check, held.drop)
    monkeypatch.undo()
    held.drop()
    reclaim(queue)
    assert states(queue) == {LEFT}
    child.act()
    child.act()
    reclaim(queue)
    assert states(queue) == {FREE}
    child.end()


def _refuse(_pid: int) -> None:
    raise OSError(24, "Too many open files")


def test_without_a_fork_a_region_is_held_until_its_item_is_dropped(queue: BoundedQueue[Any]) -> None:
    held = Held(queue)
    assert states(queue) == {HELD}
    held.drop()
    assert states(queue) == {FREE}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_before_a_fork_pins_the_region(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> list[int]:
        raise MemoryError

    monkeypatch.setattr(Borrowers, "lend", fail)
    held = Held(queue)
    child = Child(held.check)
    assert states(queue) == {PINNED}
    held.drop()
    overwrite(queue)
    child.act()
    child.end()


def test_a_thread_that_waits_too_long_for_a_fork_gets_a_copy(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "_OPENING_SECONDS", 0.01)
    views._before_fork()
    found: list[Held] = []
    thread = threading.Thread(target=lambda: found.append(Held(queue)))
    thread.start()
    # The fork takes that long: a fork hook of the application may wait for the thread, too.
    thread.join()
    views._after_fork_in_parent()
    found[0].check()
    assert states(queue) == {FREE}
    assert not views._holds


def test_a_putter_that_finds_the_holder_dead_looks_for_loans_first(
    queue: BoundedQueue[Any], table: Borrowers
) -> None:
    held = Held(queue)
    regions = queue._opened().regions
    at = layout.REGIONS + 8
    words = queue._opened().words
    assert words[at] == HELD
    # After the state was read, the holder lent the region and died.
    slot = lend(table, 1)
    dead = dead_process()
    mine = words[at + 4], words[at + 5]
    words[at + 4], words[at + 5] = dead.pid, dead.started
    reclaim(queue)
    assert words[at] == HELD
    table.give_back(slot)
    words[at + 7] = 1
    reclaim(queue)
    assert words[at] == HELD, "it has been marked as never to be used again"
    words[at + 7] = 0
    words[at + 4], words[at + 5] = mine
    held.drop()
    assert regions.with_getters() == 0


@needs_a_trace_that_raises
@pytest.mark.usefixtures("_short_collections")
def test_an_exception_in_the_hook_of_a_forked_child_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook is called again after the exception, and must still know what was lent to the child."""
    # Replace the hook of pytest, which would keep the frames of our hook alive, and with them a view.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    me = os.getpid()
    hooks = (views._after_fork_in_child.__code__, views._Hold.inherit.__code__)
    for step in itertools.count():
        left = step
        reached = 99

        def local(_frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal left, reached
            if event == "line" and reached:
                left -= 1
                if left < 0:
                    reached = 0
                    raise KeyboardInterrupt
            return local

        def enter(frame: FrameType, _event: str, _arg: object) -> Any:
            return local if os.getpid() != me and frame.f_code in hooks else None

        with BoundedQueue[Any]() as queue:
            kept: list[Any] = []
            for number in range(2):
                queue.put(np.full(10_000, number))
                kept.append(queue.get())
            words = queue._opened().words
            before = sys.gettrace()
            sys.settrace(enter)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    sys.settrace(None)
                    assert all((array == number).all() for number, array in enumerate(kept))
                    kept.clear()
                    gc.collect()
                    slots = range(layout.BORROWERS, layout.FIRST_RING, SLOT_WORDS)
                    assert not any(words[at] for at in slots), "a slot is left taken"
                    code = reached
                finally:
                    os._exit(code)
            sys.settrace(before)
            _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 99), f"step {step}"
        if code:
            break
    assert step > 10
