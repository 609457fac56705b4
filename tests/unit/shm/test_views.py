"""Views of a region: it becomes free when the last view is dropped, and not before."""

from __future__ import annotations

import gc
import linecache
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from mpkit._shm.memory.segment import PAGE, Segment
from mpkit._shm.queues import views
from mpkit._shm.queues.region_supply import KEPT_FOR_RINGS, RegionSupply
from mpkit._shm.queues.regions import FREE, HELD, PINNED, WRITING, Regions
from mpkit._shm.queues.views import open_views
from tests.helpers.waiting import PATIENCE
from tests.unit.shm.others import Call

START, END = 64, 60
SERIAL = 1


@pytest.fixture
def regions() -> Iterator[Regions]:
    segment = Segment.create(PAGE, kind="views")
    segment.words[END] = PAGE
    # More than are reserved for rings, so that some are left for big items.
    yield Regions(segment, start=START, capacity=KEPT_FOR_RINGS + 8)
    segment.close()


@pytest.fixture
def supply(regions: Regions) -> RegionSupply:
    return RegionSupply(regions, END, lambda: lambda *_: False)


@pytest.fixture
def number(regions: Regions, supply: RegionSupply) -> int:
    number = supply.claim(PAGE, WRITING, SERIAL)
    assert number > 0
    regions.map(number)[:8] = b"abcdefgh"
    regions.mark_held(number)
    return number


def opened(regions: Regions, number: int, parts: tuple[tuple[int, int], ...]) -> list[memoryview]:
    found = open_views(regions, regions.map(number), number, SERIAL, parts)
    assert found is not None
    return found


def state(regions: Regions, number: int) -> int:
    return regions.words[START + number * 8]


def test_the_parts_are_the_regions_own_bytes(regions: Regions, number: int) -> None:
    head, tail = opened(regions, number, ((0, 3), (4, 2)))
    assert (bytes(head), bytes(tail)) == (b"abc", b"ef")
    tail[0] = ord("E")
    assert regions.map(number)[:8] == b"abcdEfgh"
    assert not tail.readonly


def test_the_last_view_frees(regions: Regions, number: int) -> None:
    first, second = opened(regions, number, ((0, 3), (4, 2)))
    part = second[1:]
    del first, second
    gc.collect()
    assert state(regions, number) == HELD
    copy = bytearray(part)
    del part
    gc.collect()
    assert state(regions, number) == FREE
    assert copy == b"f"
    assert not views._holds


def test_a_view_inside_a_cycle(regions: Regions, number: int) -> None:
    cycle: list[object] = [*opened(regions, number, ((0, 8),))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert state(regions, number) == FREE


def test_without_a_table_of_borrowers_a_region_that_was_forked_is_never_freed(
    regions: Regions, number: int
) -> None:
    (view,) = opened(regions, number, ((0, 8),))
    views._before_fork()
    views._after_fork_in_parent()
    assert state(regions, number) == PINNED
    del view
    gc.collect()
    assert state(regions, number) == PINNED


def test_a_view_outlives_the_object_that_was_closed(regions: Regions, number: int) -> None:
    (view,) = opened(regions, number, ((0, 8),))
    regions.close()
    assert bytes(view) == b"abcdefgh"
    del view
    gc.collect()
    assert state(regions, number) == FREE


@pytest.mark.parametrize("freed", [False, True])
def test_a_fork_while_another_thread_ends_the_last_view_keeps_nothing(
    regions: Regions, number: int, freed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the child would assume that it has views of the region, and keep it for ever."""
    real = Regions.let_go
    forks: list[int] = []

    def let_go(self: Regions, region: int, serial: int) -> None:
        if freed:
            real(self, region, serial)
        forks.append(region)
        views._before_fork()
        views._after_fork_in_parent()
        if not freed:
            real(self, region, serial)

    monkeypatch.setattr(Regions, "let_go", let_go)
    (view,) = opened(regions, number, ((0, 8),))
    del view
    gc.collect()
    assert forks == [number]
    assert state(regions, number) == FREE
    assert not regions.words[START + number * 8 + 7], "kept for ever"


def test_the_cost_of_an_item_does_not_rise_with_the_items_that_are_kept(
    regions: Regions, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all kept items would be looked at for each new one."""
    looks: list[None] = []

    def look(_hold: views._Hold) -> bool:
        looks.append(None)
        return False

    monkeypatch.setattr(views._Hold, "is_over", look)
    kept = [opened(regions, number, ((0, 8),)) for _ in range(1000)]
    assert len(views._holds) == len(kept)
    assert len(looks) <= 2 * views._LOOKS * len(kept)
    # Each kept item is looked at now and then, however many there are.
    assert len(looks) > len(kept)


def _reads_state(frame: FrameType) -> bool:
    """Whether the next line is the one that uses the state after it was read."""
    return "if state ==" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def test_a_region_is_freed_once_even_if_two_threads_notice_its_last_view(
    regions: Regions, supply: RegionSupply, number: int
) -> None:
    # One thread notices in the callback of the view, the other one while that callback still runs.
    reached, go_on = threading.Event(), threading.Event()

    def trace(frame: FrameType, event: str, _value: object) -> Any:
        if frame.f_code is Regions.let_go.__code__ and event == "line" and _reads_state(frame):
            reached.set()
            go_on.wait(PATIENCE)
        return trace

    def end_slowly() -> None:
        # Made in this thread: on a free-threaded build, the thread that made a view also frees it.
        views_of_it = opened(regions, number, ((0, 8),))
        sys.settrace(trace)
        views_of_it.clear()
        sys.settrace(None)

    other = threading.Thread(target=end_slowly)
    other.start()
    assert reached.wait(PATIENCE)
    views._sweep()
    # Once the region is free, it may be used again: then it must not be freed a second time.
    if state(regions, number) == FREE:
        again = supply.claim(PAGE, WRITING, SERIAL + 1)
        assert again == number
        regions.mark_held(number)
        go_on.set()
        other.join(PATIENCE)
        assert state(regions, number) == HELD
    else:
        go_on.set()
        other.join(PATIENCE)
        assert state(regions, number) == FREE
    assert not views._holds


def test_a_region_whose_freeing_was_interrupted_can_be_freed_by_any_thread(
    regions: Regions, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_regions: Regions, _number: int, _serial: int) -> None:
        raise KeyboardInterrupt

    (view,) = opened(regions, number, ((0, 8),))
    (hold,) = views._holds
    monkeypatch.setattr(Regions, "let_go", interrupted)
    call = Call(lambda: hold.end(None))
    call.join()
    assert isinstance(call.error, KeyboardInterrupt)
    assert state(regions, number) == HELD
    monkeypatch.undo()
    del view
    gc.collect()
    assert state(regions, number) == FREE
