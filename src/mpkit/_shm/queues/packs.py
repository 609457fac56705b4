"""Packs: many small items as one record.

One pickle for a list of a hundred small items costs a fifth of a hundred pickles, and one record in a ring
costs a hundredth of a hundred records. So `put_many` uses packs where users cannot tell the difference: for
items of built-in types, whose pickling and unpickling runs no user code, in which no list or dictionary
occurs twice (one pickle for both would make them one object).

A pack counts as the number of its items, and getters may take any number of them at a time: the head of the
ring keeps pointing at the pack, and only its count increases, until the last item is taken (see `get_side`).
A getter that takes a single item has to unpickle the whole pack, so it keeps the other values in `Pack` for
its next calls. But only the head tells whether they are still in the queue.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from mpkit._wire.codec import loads

#: The largest number of items in a pack. Beyond that, each further item saves little.
MOST_ITEMS: Final = 256
#: The largest pickle of a pack, in bytes.
MOST_BYTES: Final = 32 * 1024
#: Fewer items than this are put one by one, which costs no more.
FEWEST_ITEMS: Final = 4

_ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
_CONTAINERS: Final = frozenset({tuple, list, dict})
#: Items that are nested deeper, or have more parts in total, are not worth checking.
_DEEPEST: Final = 3
_MOST_PARTS: Final = 16 * MOST_ITEMS


def pack(items: Sequence[object]) -> bytes | None:
    """Up to `MOST_ITEMS` items pickled as one list; None if they cannot be packed."""
    if len(items) < FEWEST_ITEMS or not are_plain(items):
        return None
    sink = _Sink()
    try:
        _PlainPickler(sink, 5).dump(items)
    except _NotPlainError:
        return None
    return b"".join(sink.parts)


class Pack:
    """A pack from which this process takes items.

    Args:
        first: the number of its first item in the queue's count.
        data: the pickle.
    """

    __slots__ = ("_values", "data", "first")

    def __init__(self, first: int, data: bytes) -> None:
        self.first = first
        self.data = data
        self._values: list[Any] | None = None

    def take(self, start: int, stop: int) -> list[Any]:
        """Hand out the items from `start` to before `stop`. To be called once for each item.

        If threads call this at the same time, each may unpickle a list of its own.
        """
        values = self._values
        if values is None:
            self._values = values = loads(self.data)
        taken: list[Any] = values[start:stop]
        # Drop the references, so that the items do not stay alive here.
        values[start:stop] = [None] * (stop - start)
        return taken


class PackSlice:
    """Items of a pack that have been taken from the queue."""

    __slots__ = ("pack", "start", "stop")

    def __init__(self, pack: Pack, start: int, stop: int) -> None:
        self.pack = pack
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def take(self) -> list[Any]:
        """The items; to be called once."""
        return self.pack.take(self.start, self.stop)


class _NotPlainError(Exception):
    """The items cannot be packed after all."""


class _PlainPickler(pickle.Pickler):
    """Refuses all but built-in types, in case another thread changes an item after it was checked."""

    def reducer_override(self, _obj: object) -> Any:  # noqa: ANN401  as the base class has it
        raise _NotPlainError


class _Sink:
    """Collects the output of a pickler, and raises if it exceeds `MOST_BYTES`."""

    __slots__ = ("_room", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._room = MOST_BYTES

    def write(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room < 0:
            raise _NotPlainError
        self.parts.append(bytes(data))


def are_plain(items: Sequence[object]) -> bool:
    """Whether the items consist of built-in types, and no list or dictionary occurs twice in them.

    Then one pickle of all items cannot be distinguished from a pickle of each. Each step checks all items at
    once, one level of nesting after the other, so that the loops run in C.
    """
    layer: Sequence[Any] = items
    kinds = set(map(type, layer))
    changeable: list[int] = []
    for _ in range(_DEEPEST):
        containers = kinds - _ATOMS
        if not containers:
            break
        if not containers <= _CONTAINERS:
            return False
        groups: list[Sequence[Iterable[Any]]] = []
        for kind in containers:
            these: Sequence[Any] = layer if len(kinds) == 1 else [one for one in layer if type(one) is kind]
            if sum(map(len, these)) > _MOST_PARTS:
                return False
            if kind is not tuple:
                changeable.extend(map(id, these))
            groups.append(these)
            if kind is dict:
                groups.append(list(map(_values, these)))
        kinds = set(map(type, chain.from_iterable(chain.from_iterable(groups))))
        if kinds <= _ATOMS:
            break
        layer = list(chain.from_iterable(chain.from_iterable(groups)))
    return kinds <= _ATOMS and len(set(changeable)) == len(changeable)


def _values(one: dict[Any, Any]) -> Iterable[Any]:
    return one.values()
