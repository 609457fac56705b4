"""Many small items as one record.

One pickle for a list of a hundred small items costs a fifth of a hundred pickles, and one record of a ring a
hundredth of a hundred records. So `put_many` puts them in packs where nobody can tell: items of built-in
types only, which nobody's code pickles or unpickles, and without a list or dictionary that stands in two
places, because one pickle would make one object of both.

A pack counts as many items as it holds, and getters take any number of them at a time: the head of the ring
stays where the pack lies and only counts on until the last one is taken (see ring). A getter that takes one
item unpickles all of the pack, so it keeps the others (`Pack.values`) for its next calls. Whether they are
still there the head alone says.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from mpkit._wire.codec import loads

#: A pack holds as many items at most; what one more saves has become small by then.
MOST_ITEMS: Final = 256
#: And as many bytes.
MOST_BYTES: Final = 32 * 1024
#: Fewer items are as well put one by one.
FEWEST_ITEMS: Final = 4

_ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
_CONTAINERS: Final = frozenset({tuple, list, dict})
#: What is nested deeper, or has more parts in all, is not worth looking through.
_DEEPEST: Final = 3
_MOST_PARTS: Final = 16 * MOST_ITEMS


def pack(items: Sequence[object]) -> bytes | None:
    """The pickle of up to `MOST_ITEMS` items as one list; None when they are not to be packed."""
    if len(items) < FEWEST_ITEMS or not are_plain(items):
        return None
    sink = _Sink()
    try:
        _PlainPickler(sink, 5).dump(items)
    except _NotPlainError:
        return None
    return b"".join(sink.parts)


class Pack:
    """A pack that this process has met.

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
        """The items from `start` to `stop`, which are the caller's from now on. To be called once for each.

        Threads may come together: each then has a list of its own.
        """
        values = self._values
        if values is None:
            self._values = values = loads(self.data)
        taken: list[Any] = values[start:stop]
        # What has been given away must not live on here.
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
    """Not to be packed after all."""


class _PlainPickler(pickle.Pickler):
    """Refuses whatever is not built in, should another thread slip it in after the look at it."""

    def reducer_override(self, _obj: object) -> Any:  # noqa: ANN401  as the base class has it
        raise _NotPlainError


class _Sink:
    """Takes what is pickled up to `MOST_BYTES`."""

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
    """Whether all of it is built in, and no list or dictionary in it twice: one pickle for all of it tells
    nobody anything that a pickle for each would not.

    Each step looks at all items at once, so that the loops run in C.
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
