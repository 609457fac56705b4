"""The cases of `test_death_at_every_step.py`: a process is killed at each step of an operation.

Afterwards the other processes can still use the object, and nothing is duplicated, torn or reordered.

For each step, a case makes a new object (queue, counter or lock), kills a child at that step, and then uses
the object in this process. These checks run in parallel threads, because taking over from a dead process
involves waiting.

Each case runs in a small process of its own: forking the pytest process would cost eight times as much.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise

from mpkit._shm.locks import lock_file, robust_lock
from mpkit._shm.locks.counter_file import VALUE, CounterFile
from mpkit._shm.locks.lock_file import LockFile
from mpkit._shm.queues import layout, region_supply, regions
from mpkit._shm.queues.held_items import BigRecord, HeldItem
from mpkit._shm.queues.open_queue import OpenQueue
from mpkit._shm.queues.packs import PackSlice, pack
from tests.helpers.dying import die_at
from tests.helpers.waiting import PATIENCE

#: If one of these variables is set, every line (or opcode) is tried. Otherwise, to save time, only every
#: `SAMPLED`-th line of the long operations is.
EVERY_STEP = bool(os.environ.get("MPKIT_EVERY_STEP") or os.environ.get("MPKIT_EVERY_OPCODE"))
SAMPLED = 11
OPCODES = bool(os.environ.get("MPKIT_EVERY_OPCODE")) and sys.version_info < (3, 12)
SMALL = 40
#: How many objects are checked in parallel. With more, each fork would have more to copy.
BATCH = 16


#: The cases, by name.
CASES: dict[str, Callable[[], None]] = {}


def case(check: Callable[[], None]) -> Callable[[], None]:
    CASES[check.__name__] = check
    return check


def run(name: str) -> None:
    """Run the case called `name`. This process does nothing else."""
    for module in (robust_lock, lock_file):
        # Taking over works in the same way with shorter times: the cases need not wait as long as users do.
        vars(module).update(SLICE_SECONDS=0.002, STUCK_SECONDS=0.002)
    gc.freeze()  # otherwise each garbage collection in a child copies the pages of all objects
    CASES[name]()


def put(queue: OpenQueue, *items: bytes) -> None:
    for item in items:
        if not queue.puts.try_put(item):
            assert queue.puts.put(item, 0, True, time.monotonic() + PATIENCE)


def put_big(queue: OpenQueue, item: bytes) -> None:
    written = queue.puts.write_big(b"head", [memoryview(item)], True, time.monotonic() + PATIENCE)
    assert written is not None
    assert queue.puts.put(written.record, written.flag, True, time.monotonic() + PATIENCE)


def get(queue: OpenQueue) -> bytes:
    found = queue.gets.try_get()
    if found is None:
        found = queue.gets.get(True, time.monotonic() + PATIENCE)
    assert found is not None, "nothing came"
    if isinstance(found, PackSlice):
        [item] = found.take()
        return bytes(item)
    if isinstance(found, HeldItem):
        found = found.open()
    if isinstance(found, BigRecord):
        assert bytes(found.head) == b"head"
        return bytes(found.buffers[0])
    return found


def drain(queue: OpenQueue) -> list[bytes]:
    return [get(queue) for _ in range(queue.generations.size())]


def each_step(
    make: Callable[[], tuple[object, Callable[[], object], Callable[[], None]]], stride: int = 1
) -> int:
    """For each step (or each `stride`-th): make an object, kill a child at that step, then check the object.

    Args:
        make: Returns an object, the operation to die in, and the check to run afterwards.
        stride: Try only every `stride`-th step, unless `EVERY_STEP` is set.

    Returns:
        How many steps the operation has.
    """
    if EVERY_STEP:
        stride = 1
    steps = 0
    tries = 0
    with ThreadPoolExecutor(BATCH) as threads:
        while True:
            things: list[object] = []
            checks: list[Callable[[], None]] = []
            for _ in range(BATCH):
                thing, operation, check = make()
                things.append(thing)
                checks.append(check)
                if not die_at(steps, operation, opcodes=OPCODES):
                    break
                steps += stride
                tries += 1
            for done in [threads.submit(check) for check in checks]:
                done.result()
            for thing in things:
                thing.close()  # type: ignore[attr-defined]
            if len(checks) < BATCH or tries % BATCH:
                return steps


ITEMS = [b"%d" % number * SMALL for number in range(4)]


def queue_with(*items: bytes, maxsize: int = 0, joined: bool = True) -> OpenQueue:
    queue = OpenQueue.create(maxsize=maxsize, max_bytes=0)
    put(queue, *items)
    return queue


def check_rest(queue: OpenQueue, allowed: list[list[bytes]]) -> Callable[[], None]:
    """Return a check: the queue still works, and its items are one of the lists in `allowed`."""

    def check() -> None:
        put(queue, b"after")
        found = drain(queue)
        assert found in [[*items, b"after"] for items in allowed], found
        for round_ in range(3):
            put(queue, b"%d" % round_, b"again")
            assert drain(queue) == [b"%d" % round_, b"again"]
        assert queue.gets.get(False, None) is None
        assert queue.generations.size() == 0

    return check


@case
def put_of_a_process_that_is_new_here() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        return queue, lambda: put(queue, ITEMS[1]), check_rest(queue, [ITEMS[:1], ITEMS[:2]])

    assert each_step(make) > 40


@case
def get_of_a_process_that_is_new_here() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(*ITEMS[:3])
        return queue, lambda: get(queue), check_rest(queue, [ITEMS[:3], ITEMS[1:3]])

    assert each_step(make) > 40


@case
def put_and_get_one_after_the_other() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])

        def both() -> None:
            get(queue)
            put(queue, ITEMS[1])
            get(queue)

        return queue, both, check_rest(queue, [ITEMS[:1], [], ITEMS[1:2]])

    assert each_step(make, SAMPLED) > 80


@case
def put_that_needs_a_new_ring() -> None:
    filler = bytes(9000)

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(filler, filler, filler, filler)
        return queue, lambda: put(queue, filler), check_rest(queue, [[filler] * 4, [filler] * 5])

    assert each_step(make, SAMPLED) > 80


@case
def get_that_goes_on_to_the_next_ring() -> None:
    filler = bytes(9000)

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(filler, filler, filler, filler, ITEMS[0])
        assert drain_some(queue, 4) == [filler] * 4
        return queue, lambda: get(queue), check_rest(queue, [ITEMS[:1], []])

    assert each_step(make, SAMPLED) > 40


def drain_some(queue: OpenQueue, number: int) -> list[bytes]:
    return [get(queue) for _ in range(number)]


@case
def put_many_and_get_many() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with()
        put_all = [ITEMS, ITEMS[:1], ITEMS[:2], ITEMS[:3], []]

        def both() -> None:
            assert queue.puts.put_many(ITEMS, True, None) == 4
            assert queue.gets.get_many(2, True, None) == ITEMS[:2]

        return queue, both, check_rest(queue, [*put_all, ITEMS[2:]])

    assert each_step(make, SAMPLED) > 80


@case
def put_of_a_pack() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        return queue, lambda: put_pack(queue), check_rest(queue, [ITEMS[:1], [ITEMS[0], *ITEMS]])

    assert each_step(make, SAMPLED) > 40


@case
def get_of_parts_of_a_pack() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        put_pack(queue)

        def get_some() -> None:
            assert [get(queue), get(queue)] == [ITEMS[0], ITEMS[0]]
            [some] = queue.gets.get_many(2, True, None)
            assert isinstance(some, PackSlice)
            assert some.take() == ITEMS[1:3]
            assert get(queue) == ITEMS[3]

        rests = [[ITEMS[0], *ITEMS], ITEMS, ITEMS[1:], ITEMS[3:], []]
        return queue, get_some, check_rest(queue, rests)

    assert each_step(make, SAMPLED) > 80


def put_pack(queue: OpenQueue) -> None:
    data = pack(ITEMS)
    assert data is not None
    assert queue.puts.put_pack(data, len(ITEMS), True, None)


@case
def put_of_a_big_item() -> None:
    big = bytes(range(256)) * 400

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        return queue, lambda: put_big(queue, big), check_big(queue, [ITEMS[:1], [ITEMS[0], big]])

    assert each_step(make, SAMPLED) > 80


@case
def put_of_a_big_item_for_which_a_region_gets_another_place() -> None:
    give_a_region_another_place(dropped=False)


@case
def put_of_a_big_item_for_which_a_dropped_region_gets_another_place() -> None:
    give_a_region_another_place(dropped=True)


def give_a_region_another_place(*, dropped: bool) -> None:
    """Put a big item when every free region is too small and the table has no entry left for a larger one."""
    few = 3
    region_supply.KEPT_FOR_RINGS = layout.REGION_SLOTS - few
    small, big = bytes(range(256)) * 200, bytes(range(256)) * 1600

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        for _ in range(few):
            put_big(queue, small)
        assert [get(queue) for _ in range(few + 1)] == [ITEMS[0], *[small] * few]
        put(queue, ITEMS[0])
        if dropped:
            queue.supply.drop_free()
        rest = check_rest(queue, [ITEMS[:1], [ITEMS[0], big]])

        def check() -> None:
            rest()
            for number in range(3):
                items = [bytes([number]) * size for size in (409_600, 51_200, 204_800)]
                for item in items:
                    put_big(queue, item)
                assert drain(queue) == items
            assert_apart(queue)
            assert os.fstat(queue.segment.fd).st_blocks * 512 < 3_000_000

        return queue, lambda: put_big(queue, big), check

    assert each_step(make, SAMPLED) > 150


def assert_apart(queue: OpenQueue) -> None:
    """Check that no two regions overlap in the file."""
    table = [layout.REGIONS + number * regions.ENTRY_WORDS for number in range(1, layout.REGION_SLOTS)]
    places = [
        (regions.offset_of(queue.words[at + 2]), queue.supply._own(number))
        for number, at in enumerate(table, 1)
        if queue.words[at] != regions.NONE
    ]
    places.sort()
    for (offset, own), (following, _) in pairwise(places):
        assert offset + own <= following


@case
def get_of_a_big_item() -> None:
    big = bytes(range(256)) * 400

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with()
        put_big(queue, big)
        return queue, lambda: get(queue), check_big(queue, [[big], []])

    assert each_step(make, SAMPLED) > 40


def check_big(queue: OpenQueue, allowed: list[list[bytes]]) -> Callable[[], None]:
    """Return a check: big items still pass, and the dead process's region is reused.

    If such regions were never reused, the file would grow with each death.
    """
    rest = check_rest(queue, allowed)

    def check() -> None:
        rest()
        for round_ in range(6):
            item = bytes([round_]) * 102_400
            put_big(queue, item)
            assert get(queue) == item
        assert os.fstat(queue.segment.fd).st_size < 1_500_000

    return check


@case
def task_done_and_shut_down() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(*ITEMS)

        def work() -> None:
            get(queue)
            assert queue.gets.task_done(1)
            queue.puts.shut_down()
            queue.gets.discard_all()
            queue.gets.wake_putters()

        def check() -> None:
            queue.puts.shut_down()
            queue.gets.discard_all()
            # If the child died between taking the item and calling task_done, that item stays unfinished, but
            # no other.
            assert queue.gets.unfinished() in (0, 1)
            assert queue.gets.task_done(queue.gets.unfinished())
            assert queue.gets.wait_until_done(time.monotonic() + PATIENCE)
            assert not queue.gets.task_done(1)

        return queue, work, check

    assert each_step(make, SAMPLED) > 80


@case
def add_to_a_counter() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        counter = CounterFile.create(initial=10)

        def check() -> None:
            assert counter.signed[VALUE] in (10, 11)
            before = counter.signed[VALUE]
            assert counter.add(5) == before + 5
            assert counter.exchange(3) == before + 5

        return counter, lambda: counter.add(1), check

    assert each_step(make) > 40


def check_lock(lock: LockFile) -> Callable[[], None]:
    """Return a check: the lock can be acquired by one user at a time, and released once."""

    def check() -> None:
        for _ in range(2):
            assert lock.acquire(True, time.monotonic() + PATIENCE)
            assert lock.owner() == os.getpid()
            assert not lock.acquire(False, None)
            assert lock.release()
            assert lock.owner() is None
        assert not lock.release()

    return check


def in_child(operation: Callable[[], object]) -> None:
    """Run `operation` in a forked child, which then kills itself."""
    pid = os.fork()
    if pid == 0:
        try:
            operation()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


@case
def acquire_and_release_of_a_lock() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        lock = LockFile.create()

        def work() -> None:
            assert lock.acquire(True, None)
            assert lock.release()

        return lock, work, check_lock(lock)

    assert each_step(make) > 60


@case
def taking_the_place_of_a_dead_owner() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        lock = LockFile.create()
        in_child(lambda: lock.acquire(True, None))

        def work() -> None:
            assert lock.acquire(True, time.monotonic() + PATIENCE)
            assert lock.abandoned_by
            assert lock.release()

        return lock, work, check_lock(lock)

    assert each_step(make, SAMPLED) > 100


@case
def finding_that_nobody_living_has_a_lock() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        lock = LockFile.create()
        # It dies with the permit, before it has recorded that it holds the lock.
        in_child(lambda: lock.permit_acquire(False))

        def work() -> None:
            assert lock.acquire(True, time.monotonic() + PATIENCE)
            assert not lock.abandoned_by
            assert lock.release()

        return lock, work, check_lock(lock)

    assert each_step(make, SAMPLED) > 100


@case
def releasing_what_another_process_has() -> None:
    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        lock = LockFile.create()
        assert lock.acquire(True, None)
        check = check_lock(lock)

        def work() -> None:
            assert lock.release()

        def check_both() -> None:
            if lock.owner():
                assert lock.release()
            check()

        return lock, work, check_both

    assert each_step(make) > 40


@case
def taking_over_itself() -> None:
    """One child dies inside put, the next one while it takes over the lock. This process still gets it."""

    def make() -> tuple[object, Callable[[], object], Callable[[], None]]:
        queue = queue_with(ITEMS[0])
        assert die_at(inside, lambda: put(queue, ITEMS[1]))
        return queue, lambda: put(queue, ITEMS[2]), check_rest(queue, [[ITEMS[0]], [ITEMS[0], ITEMS[2]]])

    inside = step_inside_the_lock()
    assert each_step(make, SAMPLED) > 60


def step_inside_the_lock() -> int:
    """Find a step of put at which the process holds the lock."""
    for step in count():
        queue = queue_with(ITEMS[0])
        try:
            assert die_at(step, lambda queue=queue: put(queue, ITEMS[1]))  # type: ignore[misc]
            if queue.semaphores[0].raw._is_zero():
                return step
        finally:
            queue.close()
    raise AssertionError("no step has the lock")
