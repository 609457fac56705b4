"""How many tasks, and how many items of a lazy map, are sent at once."""

from __future__ import annotations

from mpkit.pool._engine.functions import AHEAD_NS, GROUP_NS, MOST_AHEAD, Function, GroupedFunction


def test_nothing_is_sent_ahead_until_something_is_known() -> None:
    function = Function("f", b"")
    assert function.ahead == 1
    function.took(1000)
    assert function.ahead == MOST_AHEAD
    function.took_chunk(10**9, 3)
    assert function.mean_ns == 1000


def test_a_chunk_of_one_item_counts_like_a_task() -> None:
    """Otherwise a map with a time limit, or with chunks of one item, would not send any item ahead."""
    function = Function("f", b"")
    function.took_chunk(1000, 1)
    assert function.ahead == MOST_AHEAD


def test_items_are_grouped_as_long_as_they_are_short() -> None:
    known = Function("f", b"")
    groups = GroupedFunction(known, 64)
    assert groups.size == 1
    groups.took(GROUP_NS // 5)
    assert groups.size == 5
    assert groups.ahead == 1 + AHEAD_NS // GROUP_NS
    groups.took_chunk(GROUP_NS, 5)
    assert groups.size == 5
    for _ in range(50):
        groups.took(10 * GROUP_NS)
    assert groups.size == 1
    for _ in range(100):
        groups.took_chunk(0, 1)
    assert groups.size == 64
    assert groups.ahead <= MOST_AHEAD


def test_the_next_map_uses_what_the_last_one_has_measured() -> None:
    known = Function("f", b"")
    GroupedFunction(known, 64).took_chunk(GROUP_NS, 10)
    assert GroupedFunction(known, 64).size == 10
    assert GroupedFunction(known, 4).size == 4
