"""Regions: when a region may be used again, and for what."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import sys
import weakref
from collections.abc import Iterator

import pytest

from mpkit._platform.files.file_maps import map_file
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.memory.segment import PAGE, Segment, reserve
from mpkit._shm.queues import region_supply, region_uses
from mpkit._shm.queues import regions as regions_module
from mpkit._shm.queues.region_supply import KEPT_FOR_RINGS, IsOver, RegionSupply
from mpkit._shm.queues.region_uses import UseIsOver, Writing
from mpkit._shm.queues.regions import (
    DROPPED,
    ENTRY_WORDS,
    FREE,
    HELD,
    NONE,
    PINNED,
    QUEUED,
    RING,
    WRITING,
    Regions,
    offset_of,
    size_of,
)
from mpkit._shm.queues.ring import COUNT_MASK
from mpkit.errors import SharedMemoryExhausted
from tests.unit.shm.others import dead_process, living_stranger

START, END = 64, 60
CAPACITY = 48


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment.create(2 * PAGE, kind="regions")
    segment.words[END] = 2 * PAGE
    yield segment
    segment.close()


@pytest.fixture
def regions(segment: Segment) -> Regions:
    return Regions(segment, start=START, capacity=CAPACITY)


def never() -> IsOver:
    """Say that no use is over."""
    return lambda _state, _serial, _process: False


@pytest.fixture
def supply(regions: Regions) -> RegionSupply:
    return RegionSupply(regions, END, never)


def state(regions: Regions, number: int) -> int:
    return regions.words[START + number * ENTRY_WORDS]


def belongs_to(regions: Regions, number: int, process: ProcessIdentity) -> None:
    at = START + number * ENTRY_WORDS
    regions.words[at + 4], regions.words[at + 5] = process.pid, process.started


def test_a_new_region_is_mapped_and_its_own(regions: Regions, supply: RegionSupply) -> None:
    first = supply.claim(100, WRITING, 1)
    second = supply.claim(100, WRITING, 2)
    assert (first, second) == (1, 2)
    regions.map(first)[:3] = b"abc"
    regions.map(second)[:3] = b"xyz"
    assert regions.map(first)[:3] == b"abc"
    assert len(regions.map(first)) >= 100
    assert regions.map(first) is regions.map(first)


def test_a_free_region_is_used_again(regions: Regions, supply: RegionSupply) -> None:
    number = supply.claim(3 * PAGE, WRITING, 1)
    regions.free(number)
    assert supply.claim(3 * PAGE, RING, 7) == number
    assert state(regions, number) == RING


def test_a_small_use_does_not_take_a_large_region(regions: Regions, supply: RegionSupply) -> None:
    large = supply.claim(200 * PAGE, WRITING, 1)
    regions.free(large)
    assert supply.claim(PAGE, WRITING, 2) != large


def test_the_closest_fit_is_used_and_pages_that_are_there_come_first(
    regions: Regions, supply: RegionSupply
) -> None:
    numbers = [supply.claim(size * PAGE, WRITING, size) for size in (12, 8, 4)]
    for number in numbers:
        regions.free(number)
    assert supply.claim(3 * PAGE, WRITING, 9) == numbers[2]
    regions.free(numbers[2])
    regions.words[START + numbers[2] * ENTRY_WORDS] = DROPPED
    assert supply.claim(3 * PAGE, WRITING, 9) == numbers[1]


ALIVE, DEAD = "alive", "dead"


@pytest.mark.parametrize(
    "use, serial, process, over",
    [
        # In all cases, items 10 to 14 are queued and generations 3 and 4 are in use.
        (RING, 2, ALIVE, True),
        (RING, 3, DEAD, False),
        (RING, 4, DEAD, False),
        (RING, 5, ALIVE, True),  # claimed by a putter that died before it was made current
        (WRITING, 12, ALIVE, False),
        (WRITING, 12, DEAD, True),
        (QUEUED, 10, DEAD, False),
        (QUEUED, 14, DEAD, False),
        (QUEUED, 15, DEAD, True),  # never published
        (QUEUED, 15, ALIVE, True),
        (QUEUED, 9, DEAD, True),
        (HELD, 9, ALIVE, False),
        (HELD, 9, DEAD, True),
        (HELD, 10, DEAD, False),  # its getter died before the item was taken: the next one gets it
        (HELD, 10, ALIVE, False),
        (PINNED, 9, DEAD, False),
    ],
)
def test_when_a_use_is_over(
    regions: Regions, supply: RegionSupply, use: int, serial: int, process: str, over: bool
) -> None:
    number = supply.claim(PAGE, use, serial)
    belongs_to(regions, number, living_stranger() if process is ALIVE else dead_process())
    supply._look = lambda: UseIsOver(gets=10, puts=15, first=3, last=4)
    supply._reclaim()
    assert state(regions, number) == (FREE if over else use)


def test_item_numbers_that_have_wrapped_around_to_zero(regions: Regions) -> None:
    is_over = UseIsOver(gets=COUNT_MASK - 1, puts=2, first=0, last=0)
    dead = dead_process()
    queued = [COUNT_MASK - 1, COUNT_MASK, 0, 1]
    assert not any(is_over(QUEUED, serial, dead) for serial in queued)
    assert is_over(QUEUED, 2, dead)
    assert is_over(HELD, COUNT_MASK - 2, dead)


def test_regions_whose_use_is_over_are_reclaimed_before_the_file_grows(
    regions: Regions, supply: RegionSupply
) -> None:
    number = supply.claim(3 * PAGE, WRITING, 1)
    end = supply._end()
    belongs_to(regions, number, dead_process())
    supply._look = lambda: UseIsOver(0, 0, 0, 0)
    assert supply.claim(3 * PAGE, WRITING, 2) == number
    assert supply._end() == end


def test_a_put_that_failed_frees_its_region_only(regions: Regions, supply: RegionSupply) -> None:
    number = supply.claim(PAGE, WRITING, 5)
    regions.free_unpublished(number, 6)
    assert state(regions, number) == WRITING
    belongs_to(regions, number, living_stranger())
    regions.free_unpublished(number, 5)
    assert state(regions, number) == WRITING
    belongs_to(regions, number, identity.current())
    regions.free_unpublished(number, 5)
    assert state(regions, number) == FREE


def test_items_that_were_never_published_are_freed(regions: Regions, supply: RegionSupply) -> None:
    numbers = [supply.claim(PAGE, WRITING, serial) for serial in (1, 2, 3)]
    for number, serial in zip(numbers, (3, 4, 5), strict=True):
        regions.mark_queued(number, serial, 10)
    regions.free_unpublished_items(4)
    assert [state(regions, number) for number in numbers] == [QUEUED, FREE, FREE]


def test_bytes_are_counted_as_long_as_the_item_is_queued(regions: Regions, supply: RegionSupply) -> None:
    first = supply.claim(PAGE, WRITING, 1)
    second = supply.claim(PAGE, WRITING, 2)
    regions.mark_queued(first, 7, 100)
    regions.mark_queued(second, 8, 1000)
    assert regions.queued_bytes(7, 9) == 1100
    regions.mark_held(first)
    assert regions.queued_bytes(7, 9) == 1100
    assert regions.queued_bytes(8, 9) == 1000
    assert regions.with_getters() == 1


def test_a_pinned_region_is_never_used_again(regions: Regions, supply: RegionSupply) -> None:
    number = supply.claim(PAGE, WRITING, 1)
    regions.pin(number)
    assert state(regions, number) == WRITING, "a region that is not held was pinned"
    regions.mark_held(number)
    regions.pin(number)
    assert state(regions, number) == PINNED
    supply._look = lambda: UseIsOver(5, 5, 9, 9)
    assert supply.claim(PAGE, WRITING, 2) != number


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="counts the blocks of a file")
def test_dropping_gives_the_memory_back_and_using_it_again_takes_it(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    number = supply.claim(64 * PAGE, WRITING, 1)
    size = len(regions.map(number))
    regions.map(number)[:] = b"x" * size
    before = os.fstat(segment.fd).st_blocks * 512
    regions.free(number)
    assert supply.drop_free() == size - PAGE
    assert state(regions, number) == DROPPED
    assert os.fstat(segment.fd).st_blocks * 512 == before - (size - PAGE)
    assert supply.drop_free() == 0
    assert supply.claim(64 * PAGE, WRITING, 2) == number
    assert os.fstat(segment.fd).st_blocks * 512 == before
    assert regions.map(number)[PAGE : PAGE + 4] == bytes(4)


def test_a_full_table_leaves_entries_to_the_rings(regions: Regions, supply: RegionSupply) -> None:
    taken = 0
    while supply.claim(PAGE, WRITING, taken) > 0:
        taken += 1
    assert taken == CAPACITY - KEPT_FOR_RINGS
    rings = 0
    while supply.claim(PAGE, RING, rings) > 0:
        rings += 1
    assert taken + rings == CAPACITY - 1
    assert supply.claim(PAGE, RING, rings) == -1
    regions.free(1)
    assert supply.claim(PAGE, RING, rings) == 1


def refuse_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every reservation of memory fail, as if there were no room."""

    def refuse(fd: int, offset: int, size: int) -> None:
        os.ftruncate(fd, offset + size)  # the part that a real attempt may have reserved
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(region_supply, "reserve", refuse)


def test_no_room_changes_nothing(
    segment: Segment, regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = supply.claim(4 * PAGE, WRITING, 1)
    before = (list(segment.words[: START + CAPACITY * ENTRY_WORDS]), os.fstat(segment.fd).st_size)
    refuse_memory(monkeypatch)
    # The file cannot grow anywhere else, so the error must not mention room in other directories.
    with pytest.raises(SharedMemoryExhausted, match=f"no room in {os.path.dirname(segment.name)}: free some"):
        supply.claim(64 * PAGE, WRITING, 2)
    assert before == (
        list(segment.words[: START + CAPACITY * ENTRY_WORDS]),
        os.fstat(segment.fd).st_size,
    )
    assert state(regions, kept) == WRITING
    assert state(regions, kept + 1) == NONE


def refuse_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make only the next reservation of memory fail, as if there were no room at first."""
    real, calls = reserve, []

    def refuse_once(fd: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(region_supply, "reserve", refuse_once)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="gives pages back")
def test_without_room_the_memory_of_free_regions_is_given_back(
    segment: Segment, regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = supply.claim(4 * PAGE, WRITING, 1)
    regions.free(small)
    refuse_memory_once(monkeypatch)
    assert supply.claim(64 * PAGE, WRITING, 2) == small + 1
    assert state(regions, small) == DROPPED


def test_space_that_a_dead_process_added_to_the_file_is_used(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    number = supply.claim(4 * PAGE, WRITING, 1)
    size = os.fstat(segment.fd).st_size
    # As if a process was killed after it made the file longer, and before it used the entry.
    regions.words[START + number * ENTRY_WORDS] = NONE
    assert supply.claim(4 * PAGE, WRITING, 2) == number
    assert os.fstat(segment.fd).st_size == size


# -- free regions of other sizes than needed -----------------------------------------------------------------

#: The number of big items that fill the table.
MOST = CAPACITY - KEPT_FOR_RINGS


def full_of(regions: Regions, supply: RegionSupply, size: int) -> None:
    """Fill the table with regions of this size for big items, and free all of them."""
    for serial in range(MOST):
        assert supply.claim(size, WRITING, serial) > 0
    for number in range(1, MOST + 1):
        regions.free(number)


def lies(regions: Regions, number: int) -> tuple[int, int]:
    """Where in the file the region begins and ends."""
    place = regions.words[START + number * ENTRY_WORDS + 2]
    return offset_of(place), offset_of(place) + size_of(place)


def assert_apart(segment: Segment, regions: Regions, supply: RegionSupply) -> None:
    """Check that no two regions overlap, and that all of them are inside the file."""
    made = [number for number in range(1, CAPACITY) if state(regions, number) != NONE]
    owned = sorted((lies(regions, number)[0], supply._own(number)) for number in made)
    assert owned[0][0] >= 2 * PAGE
    for (offset, own), (following, _) in itertools.pairwise(owned):
        assert offset + own <= following
    assert owned[-1][0] + owned[-1][1] <= supply._end() <= os.fstat(segment.fd).st_size


def test_a_free_region_that_is_too_small_is_given_another_place(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    """Otherwise, after a burst of small items, no larger item would ever get a region again."""
    full_of(regions, supply, 2 * PAGE)
    supply.claim(3 * PAGE, RING, 1)
    number = supply.claim(100 * PAGE, WRITING, 1)
    assert number > 0
    assert len(regions.map(number)) >= 100 * PAGE
    regions.map(number)[:] = b"x" * len(regions.map(number))
    assert_apart(segment, regions, supply)
    regions.free(number)
    assert supply.claim(100 * PAGE, WRITING, 2) == number


def test_a_mapping_of_the_old_place_is_not_used_for_the_new_one(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    full_of(regions, supply, 2 * PAGE)
    other = Regions(segment, start=START, capacity=CAPACITY)
    before = [other.map(number) for number in range(1, MOST + 1)]
    number = supply.claim(100 * PAGE, WRITING, 1)
    assert number > 0
    regions.map(number)[:3] = b"new"
    assert other.map(number)[:3] == b"new"
    # A process may look at an old ring without a lock, so its first page must stay.
    assert before[number - 1][:3] == bytes(3)


def test_the_last_region_of_the_file_is_made_longer_where_it_lies(
    regions: Regions, supply: RegionSupply
) -> None:
    full_of(regions, supply, 2 * PAGE)
    for serial in range(MOST - 1):
        supply.claim(2 * PAGE, WRITING, serial)
    first, _ = lies(regions, MOST)
    assert supply.claim(50 * PAGE, WRITING, 1) == MOST
    assert lies(regions, MOST) == (first, supply._end())


def test_a_region_that_is_made_smaller_can_grow_again(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    """If a region's pages were given back, only as many as needed are taken again."""
    full_of(regions, supply, 100 * PAGE)
    supply.drop_free()
    end = supply._end()
    number = supply.claim(PAGE, WRITING, 1)
    assert len(regions.map(number)) == PAGE
    assert_apart(segment, regions, supply)
    regions.free(number)
    for serial in range(MOST):
        assert supply.claim(100 * PAGE, WRITING, serial) > 0
    assert_apart(segment, regions, supply)
    assert supply._end() == end


def test_a_far_larger_region_is_better_than_none(regions: Regions, supply: RegionSupply) -> None:
    full_of(regions, supply, 100 * PAGE)
    for serial in range(MOST):
        number = supply.claim(PAGE, WRITING, serial)
        assert number > 0
        assert len(regions.map(number)) >= 100 * PAGE
    assert supply.claim(PAGE, WRITING, 1) == -1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="counts the blocks of a file")
def test_a_region_that_moves_to_another_place_gives_the_old_memory_back(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    full_of(regions, supply, 64 * PAGE)
    before = os.fstat(segment.fd).st_blocks * 512
    supply.claim(128 * PAGE, WRITING, 1)
    assert os.fstat(segment.fd).st_blocks * 512 == before + (128 - 64 + 1) * PAGE


def test_without_memory_for_another_place_a_region_keeps_the_old_one(
    segment: Segment, regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_of(regions, supply, 2 * PAGE)
    supply.claim(2 * PAGE, WRITING, 1)
    before = [lies(regions, number) for number in range(1, MOST + 1)]
    size = os.fstat(segment.fd).st_size
    refuse_memory(monkeypatch)
    with pytest.raises(SharedMemoryExhausted):
        supply.claim(100 * PAGE, WRITING, 2)
    monkeypatch.undo()
    assert [lies(regions, number) for number in range(1, MOST + 1)] == before
    assert os.fstat(segment.fd).st_size == size
    assert supply.claim(2 * PAGE, WRITING, 2) > 0


def test_any_order_of_sizes_keeps_them_apart(
    segment: Segment, regions: Regions, supply: RegionSupply
) -> None:
    chance = random.Random(7)
    used: dict[int, bytes] = {}
    for serial in range(1, 600):
        if used and chance.random() < 0.5:
            number = chance.choice(list(used))
            mark = used.pop(number)
            assert regions.map(number)[:8] == regions.map(number)[-8:] == mark
            regions.free(number)
            if chance.random() < 0.1:
                supply.drop_free()
        else:
            size = int(PAGE * 2 ** (chance.random() * 8))
            number = supply.claim(size, chance.choice((WRITING, RING)), serial)
            if number > 0:
                used[number] = serial.to_bytes(8, "little")
                assert len(regions.map(number)) >= size
                regions.map(number)[:8] = regions.map(number)[-8:] = used[number]
            else:
                assert len(used) >= MOST
        assert_apart(segment, regions, supply)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="gives pages back")
def test_other_free_regions_give_their_pages_back_so_that_one_can_be_used(
    segment: Segment, regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a region without pages would be refused for lack of memory, while free ones keep theirs."""
    dropped = supply.claim(64 * PAGE, WRITING, 1)
    regions.free(dropped)
    supply.drop_free()
    other = supply.claim(4 * PAGE, WRITING, 2)
    regions.free(other)
    refuse_memory_once(monkeypatch)
    assert supply.claim(64 * PAGE, WRITING, 3) == dropped
    assert state(regions, other) == DROPPED


def test_a_map_that_the_system_refuses_is_the_public_error(
    regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = supply.claim(PAGE, WRITING, 1)

    def refuse(_fd: int, _size: int, _offset: int = 0) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(regions_module, "map_file", refuse)
    with pytest.raises(SharedMemoryExhausted, match="RLIMIT_AS"):
        regions.map(number)


# -- mappings ------------------------------------------------------------------------------------------------


def test_few_mappings_are_kept(
    regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions_module, "MOST_MAPS", 4)
    numbers = [supply.claim(PAGE, WRITING, serial) for serial in range(10)]
    for number in numbers:
        regions.map(number)[:1] = bytes([number])
        assert len(regions._maps) <= 4
    assert [regions.map(number)[0] for number in numbers] == numbers
    assert regions.map(numbers[-1]) is regions.map(numbers[-1])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_mappings_that_nobody_uses_make_room_for_others(
    code: int, regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process with few descriptors or little address space could soon map no further region."""
    living: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def three_at_most(fd: int, size: int, offset: int = 0) -> mmap.mmap:
        if len(living) >= 3:
            raise OSError(code, os.strerror(code))
        mapped = map_file(fd, size, offset)
        living.add(mapped)
        return mapped

    monkeypatch.setattr(regions_module, "map_file", three_at_most)
    numbers = [supply.claim(PAGE, WRITING, serial) for serial in range(10)]
    view = memoryview(regions.map(numbers[0]))
    for number in numbers[1:]:
        regions.map(number)[:1] = bytes([number])
    view[:3] = b"abc"
    assert regions.map(numbers[0])[:3] == b"abc", "what somebody uses stays"
    assert [regions.map(number)[0] for number in numbers[1:]] == numbers[1:]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before Python 3.13 each mapping has a descriptor")
@pytest.mark.skipif(sys.platform == "win32", reason="so it has there")
def test_a_mapping_needs_no_descriptor(segment: Segment) -> None:
    mapped = map_file(segment.fd, PAGE)
    with pytest.raises((OSError, ValueError)):
        mapped.size()
    assert len(mapped) == PAGE


# -- questions about processes -------------------------------------------------------------------------------


def test_the_system_is_asked_only_once_about_the_owner_of_many_regions(
    regions: Regions, supply: RegionSupply, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ProcessIdentity] = []
    real = identity.is_alive

    def is_alive(process: ProcessIdentity) -> bool:
        asked.append(process)
        return real(process)

    monkeypatch.setattr(identity, "is_alive", is_alive)
    alive, dead = living_stranger(), dead_process()
    for process in (alive, dead) * 4:
        number = supply.claim(PAGE, HELD, 9)
        belongs_to(regions, number, process)
    supply._look = lambda: UseIsOver(gets=10, puts=15, first=3, last=4)
    assert supply._reclaim() == 4
    assert sorted(asked) == sorted([alive, dead])


def test_the_destructor_of_a_writing_that_never_began_prints_nothing() -> None:
    """Ctrl-C at the first step of putting a big item must not print an AttributeError, too."""
    Writing.__new__(Writing)


def test_writings_that_are_over_take_no_memory() -> None:
    before = len(region_uses._under_way)
    for _ in range(10):
        Writing()
    assert len(region_uses._under_way) == before
