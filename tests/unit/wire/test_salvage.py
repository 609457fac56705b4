"""Reading a list of which some items cannot be unpickled."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpkit._wire import codec
from mpkit._wire.salvage import load_items
from mpkit.errors import SerializationError


class Bad:
    """Cannot be unpickled."""

    def __init__(self, *inside: object) -> None:
        self.inside = inside

    def __reduce__(self) -> Any:
        return _fail, self.inside


def _fail(*_: object) -> None:
    raise LookupError("not this one")


class BadState(Bad):
    """Fails only when its state is restored."""

    def __reduce__(self) -> Any:
        return Good, (1,), {"inside": self.inside}


class Good:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Good) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self.value))

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "inside" in state:
            raise LookupError("not this state")
        self.__dict__.update(state)


class Colour(enum.Enum):
    RED = "red"


class Gone:
    """A class that does not exist any more where it is unpickled."""


def is_bad(value: Any) -> bool:
    if isinstance(value, Bad):
        return True
    if isinstance(value, Good):
        return is_bad(value.value)
    if isinstance(value, dict):
        return any(map(is_bad, value.values()))
    return isinstance(value, list | tuple | collections.deque) and any(map(is_bad, value))


atoms = (
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.binary(max_size=300)
    | st.floats(allow_nan=False)
    | st.builds(lambda: Colour.RED)
    | st.builds(lambda: dt.timedelta(1))
    | st.builds(lambda: decimal.Decimal("1.5"))
    | st.builds(Bad)
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.builds(Good, inner)
        | st.builds(Bad, inner)
        | st.builds(BadState, inner)
        | st.lists(inner, max_size=3).map(collections.deque)
        | st.binary(max_size=5).map(bytearray)
    ),
    max_leaves=8,
)


@given(st.lists(values, max_size=12), st.sampled_from([None, 0, 1]))
def test_each_item_fails_or_comes_back_by_itself(items: list[Any], part: int | None) -> None:
    whole = items if part is None else (items, [1, "x"]) if part == 0 else (b"x", items)
    found = load_items(pickle.dumps(whole, 5), (), part)
    assert [error is not None for _, error in found] == [is_bad(item) for item in items]
    assert [value for value, error in found if error is None] == [item for item in items if not is_bad(item)]


def test_errors_say_what_happened() -> None:
    (_, error), (value, none) = load_items(pickle.dumps([Bad(), 2], 5))
    assert isinstance(error, SerializationError)
    assert isinstance(error.__cause__, LookupError)
    assert (value, none) == (2, None)


def test_long_lists_come_in_several_pieces() -> None:
    items = [Good(number) if number % 1000 else Bad() for number in range(2500)]
    found = load_items(pickle.dumps(items, 5))
    assert [number for number, (_, error) in enumerate(found) if error] == [0, 1000, 2000]
    assert found[2499] == (Good(2499), None)


def test_objects_that_items_share_stay_shared() -> None:
    shared = [1]
    found = load_items(pickle.dumps([shared, shared, [shared, Bad()], shared, Good(3)], 5))
    assert [error is not None for _, error in found] == [False, False, True, False, False]
    assert found[0][0] is found[1][0] is found[3][0]


def test_a_good_object_that_a_bad_item_shares_with_others_is_kept() -> None:
    good, bad = [[1], Colour.RED], Bad()
    found = load_items(pickle.dumps([(good, bad), good, good[0], [bad], Colour.RED], 5))
    assert [error is not None for _, error in found] == [True, False, False, True, False]
    assert found[1][0] == good
    assert found[1][0][0] is found[2][0]
    assert "shares an object" in str(found[3][1])


def test_items_may_refer_to_themselves() -> None:
    one: list[Any] = []
    one.append(one)
    two: tuple[Any, ...] = ([],)
    two[0].append(two)
    found = load_items(pickle.dumps([Bad(), one, two, Good(1)], 5))
    assert found[1][0][0] is found[1][0]
    assert found[2][0][0][0] is found[2][0]
    assert found[3] == (Good(1), None)


def test_buffers_find_their_items() -> None:
    items = [bytearray([number]) * 70_000 for number in range(4)]
    first, second, third, fourth = map(pickle.PickleBuffer, items)
    head, buffers = codec.encode([first, (Bad(), second), third, [fourth]])
    assert len(buffers) == 4
    found = load_items(head, buffers)
    assert found[0] == (items[0], None)
    assert found[1][1] is not None
    assert found[2:] == [(items[2], None), ([items[3]], None)]


def test_a_class_that_is_missing_takes_its_objects_only(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps([Gone(), Good(1), Gone(), "x"], 5)
    monkeypatch.delattr(f"{__name__}.Gone")
    found = load_items(data)
    assert [error is not None for _, error in found] == [True, False, True, False]


class Leaves:
    def __reduce__(self) -> Any:
        return sys.exit, (7,)


def test_an_item_that_would_end_the_process() -> None:
    data = pickle.dumps([1, Leaves(), 2], 5)
    with pytest.raises(SystemExit):
        load_items(data)
    one, (_, error), two = load_items(data, contain=True)
    assert (one, two) == ((1, None), (2, None))
    assert "SystemExit: 7" in str(error)
