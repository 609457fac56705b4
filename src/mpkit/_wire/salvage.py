"""Unpickles the other items of a list if one of them cannot be unpickled.

A list is pickled as a whole, because a pickle for each item would cost several times as much. But then an
item that raises while it is unpickled makes unpickling the whole list fail. Only in that case is this module
used. It finds out where in the pickle each item begins, without running anything (`pickletools` knows what
each opcode pops from the stack and pushes), and then unpickles one item after the other, with a common memo.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from mpkit._wire.codec import cannot_unpickle, contained

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def load_items(
    data: ReadableBuffer,
    buffers: Iterable[ReadableBuffer | pickle.PickleBuffer] = (),
    part: int | None = None,
    *,
    contain: bool = False,
) -> list[tuple[Any, Exception | None]]:
    """The items of a pickled list, each with the error that unpickling it raised, or None.

    Args:
        data: The head that `codec.encode` has returned for a list, or for a tuple that contains a list.
        buffers: As for `codec.decode`.
        part: The index of the list in the tuple; None: there is no tuple.
        contain: Whether a SystemExit counts as the error of the item that raised it (as in
            `codec.contained`); otherwise it is passed on.
    """
    loader, whole = _laid_open(data, buffers, contain=contain)
    found = whole if part is None else whole.parts[part]
    return [loader.item(slot.start, slot.stop) for slot in found.parts]


def load_first(data: ReadableBuffer) -> Any:
    """The first part of a pickled tuple, whose type can always be unpickled (bytes, say)."""
    loader, whole = _laid_open(data, (), contain=False)
    return loader.item(whole.parts[0].start, whole.parts[0].stop)[0]


def _laid_open(data: ReadableBuffer, buffers: Iterable[Any], *, contain: bool) -> tuple[_Loader, _Slot]:
    """A loader for parts of a pickle, and the slot of the object that the whole pickle stands for."""
    opcodes = _opcodes(bytes(data))
    layout = _Layout(opcodes)
    (whole,) = layout.stack
    return _Loader(opcodes, layout, buffers, contain=contain), whole


class _Opcode(NamedTuple):
    """One step of a pickle: which opcode it is, its argument, and both as bytes."""

    info: pickletools.OpcodeInfo
    argument: Any
    raw: bytes


class _Slot:
    """An object on the stack of the unpickler, made by the opcodes from `start` to before `stop`.

    Attributes:
        parts: the items of a list, or the parts of a tuple.
        memoized: the slot of the same object in the memo, if it is there.
    """

    __slots__ = ("memoized", "parts", "start", "stop")

    def __init__(self, start: int, stop: int, parts: list[_Slot]) -> None:
        self.start = start
        self.stop = stop
        self.parts = parts
        self.memoized: _Slot | None = None


#: These opcodes change the object below their arguments on the stack.
_CHANGES = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})


def _opcodes(data: bytes) -> list[_Opcode]:
    found: list[_Opcode] = []
    previous: tuple[pickletools.OpcodeInfo, Any, int] | None = None
    for info, argument, at in pickletools.genops(data):
        if previous is not None:
            found.append(_Opcode(previous[0], previous[1], data[previous[2] : at]))
        previous = (info, argument, at or 0)
    # Without the last opcode, STOP, and without FRAMEs, whose lengths would no longer be right.
    return [opcode for opcode in found if opcode.info.name not in ("FRAME", "PROTO")]


class _Layout:
    """Where each object in a pickle begins and ends."""

    def __init__(self, opcodes: Sequence[_Opcode]) -> None:
        self.stack: list[_Slot] = []
        #: What is in the memo, by the index of the opcode that puts it there.
        self.memo: dict[int, _Slot] = {}
        #: The same, by its number in the memo.
        self._memoized: list[_Slot] = []
        #: For each mark: the height of the stack below it, and the index of the opcode that set it.
        self._marks: list[tuple[int, int]] = []
        #: Where an object begins that was popped again. Its opcodes are counted to the next object.
        self._dropped: int | None = None
        for at, opcode in enumerate(opcodes):
            name = opcode.info.name
            if name == "MARK":
                self._marks.append((len(self.stack), at))
            elif name == "MEMOIZE":
                top = self.stack[-1]
                top.stop = at + 1
                top.memoized = self.memo[at] = _Slot(top.start, at + 1, [])
                self._memoized.append(top.memoized)
            else:
                self._step(at, opcode.info)
                if name.endswith("BINGET"):
                    self.stack[-1].memoized = self._memoized[opcode.argument]

    def _step(self, at: int, info: pickletools.OpcodeInfo) -> None:
        before = info.stack_before
        if pickletools.markobject in before:
            below, start = self._marks.pop()
            below -= before.index(pickletools.markobject)
        else:
            below, start = len(self.stack) - len(before), at
        taken = self.stack[below:]
        del self.stack[below:]
        if taken:
            start = min(start, taken[0].start)
        if self._dropped is not None:
            start, self._dropped = min(start, self._dropped), None
        if not info.stack_after:
            self._dropped = start if before else None
            return
        if info.name in _CHANGES:
            whole = taken[0]
            if info.name.startswith("APPEND"):
                whole.parts += taken[1:]
            whole.stop = at + 1
            if whole.memoized is not None:
                whole.memoized.stop = at + 1
            self.stack.append(whole)
            return
        parts = taken if info.name.startswith("TUPLE") else []
        self.stack += [_Slot(start, at + 1, parts) for _ in info.stack_after]


class _Buffers(Iterator[Any]):
    """An iterator over the buffers whose position `at` can be set."""

    def __init__(self, buffers: Iterable[Any]) -> None:
        self._buffers = list(buffers)
        self.at = 0

    def __next__(self) -> Any:
        if self.at >= len(self._buffers):
            raise StopIteration
        self.at += 1
        return self._buffers[self.at - 1]


class _Loader:
    """Unpickles parts of a pickle, one after the other, with a common memo."""

    def __init__(
        self, opcodes: list[_Opcode], layout: _Layout, buffers: Iterable[Any], *, contain: bool
    ) -> None:
        self._contain = contain
        self._opcodes = opcodes
        self._memo = layout.memo
        self._numbers = {at: number for number, at in enumerate(layout.memo)}
        # The number of buffers used before each opcode.
        self._buffers_used = [0, *accumulate(int(opcode.info.name == "NEXT_BUFFER") for opcode in opcodes)]
        self._stream = io.BytesIO()
        self._buffers = _Buffers(buffers)
        self._unpickler = pickle.Unpickler(self._stream, buffers=self._buffers)
        #: The numbers in the memo of objects that could not be unpickled.
        self._lost: set[int] = set()

    def item(self, start: int, stop: int) -> tuple[Any, Exception | None]:
        """The object that the opcodes from `start` to before `stop` make, or the error that they raise."""
        try:
            return self._load(start, stop), None
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this item
            self._save_memo(start, stop)
            reason = cannot_unpickle(error)
            if reason is not error:
                reason.__cause__ = error
            return None, reason

    def _save_memo(self, start: int, stop: int) -> None:
        """Put into the memo what other items may need of one that has failed: classes, enum members, say."""
        # From the outside inwards: if an object can be unpickled, all its parts are in the memo, too.
        found = [(slot.start, -slot.stop, at) for at, slot in self._memo.items() if start <= at < stop]
        saved = start
        for first, minus_last, at in sorted(found):
            if at < saved:
                continue
            try:
                self._load(first, -minus_last)
                saved = -minus_last
            except Exception:  # noqa: BLE001  it is the part that fails, or contains it
                self._lost.add(self._numbers[at])

    def _load(self, start: int, stop: int) -> Any:
        return contained(self._run, start, stop) if self._contain else self._run(start, stop)

    def _run(self, start: int, stop: int) -> Any:
        self._buffers.at = self._buffers_used[start]
        self._stream.seek(0)
        self._stream.truncate()
        self._stream.write(pickle.PROTO + bytes([5]))
        for at in range(start, stop):
            number = self._numbers.get(at)
            if number is None:
                opcode = self._opcodes[at]
                if opcode.info.name.endswith("BINGET") and opcode.argument in self._lost:
                    raise pickle.UnpicklingError("it shares an object with an item that cannot be unpickled")
                self._stream.write(opcode.raw)
            else:
                self._lost.discard(number)
                # With its number, not by MEMOIZE: after a failure there are fewer objects in the memo.
                self._stream.write(pickle.LONG_BINPUT + number.to_bytes(4, "little"))
        self._stream.write(pickle.STOP)
        self._stream.seek(0)
        return self._unpickler.load()
