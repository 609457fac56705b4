"""A model of one ring (`mpkit._shm.queues.ring`, and the copies of its logic in `put_ring`, `put_side` and
`get_side`), word by word: where records are placed, what a death in the middle of one leaves behind, and what
a getter reads meanwhile.

Because of the locks there is one putter and one getter at a time. If one is killed, the next one knows
nothing of its work, so a death just returns to the start of an operation. Stores and loads keep their order,
as on x86 (elsewhere, fences see to that). Each word of a record carries the number of its item, so the model
notices any item that is torn, stale, lost or duplicated.

A record may be a pack of two items. A getter takes one of them or both, and the head stays at the pack as
long as one is left (`GetSide._take_from`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.checker import Step

#: Item numbers are taken modulo this: more than a ring can hold at once.
NUMBERS = 6

Word = tuple[str, int, int]
"""What the word is (the length word of an item or of a pack, a word of data, WRAP, nothing), the number of
the (first) item, and the length of the record."""
NOTHING: Word = ("", 0, 0)
WRAP: Word = ("wrap", 0, 0)
END = WRAP
"""The word behind the last one."""
Counter = tuple[int, int]
"""A head or a tail: count (modulo NUMBERS) and index, together in one word."""


class State(NamedTuple):
    """The ring, the putter, the getter, and what has been published."""

    words: tuple[Word, ...]
    head: Counter = (0, 0)
    tail: Counter = (0, 0)
    queued: tuple[int, ...] = ()
    """The numbers of the items that are published and not taken: `head` and `tail` must agree with it."""
    putter: tuple[int, ...] = ()
    """The step, place, length and number of items of the current put; empty between two puts."""
    getter: Reading | None = None
    """What the getter has read so far; None between two gets."""
    error: str = ""


class Reading(NamedTuple):
    """A getter in the middle of a record."""

    what: str
    at: int
    """The index of the word that it reads next."""
    number: int = 0
    left: int = 0
    begin: int = 0
    """Where the record begins."""
    items: int = 1


class RingModel:
    """The steps of the putter and the getter of one ring.

    Args:
        capacity: The size of the ring in words.
        lengths: The possible lengths of records in words, including the length word.
        packs: Whether a record of two words or more may be a pack of two items.
        without: The precaution to leave out, to check that the model then finds a violation:
            "tail last" (publish a record before its bytes are there),
            "wrap before tail" (publish a record before WRAP is stored),
            "head last" (take a record before its bytes are copied),
            "count" (tell empty from full by the indices alone),
            "end" (no WRAP behind the last word),
            "stay" (the head moves past a pack of which an item is left),
            "count from the head" (do not work out from the head's count which item of a pack comes next).
    """

    def __init__(
        self, capacity: int, lengths: tuple[int, ...], *, packs: bool = False, without: str = ""
    ) -> None:
        self._capacity = capacity
        self._lengths = lengths
        self._packs = packs
        self._without = without

    def start(self) -> State:
        """The initial state: an empty ring."""
        return State((NOTHING,) * self._capacity + ((NOTHING if self._without == "end" else END),))

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Every step of the putter and the getter, and their deaths."""
        if state.putter:
            yield Step("putter killed", state._replace(putter=()), fair=False)
        if state.getter:
            yield Step("getter killed", state._replace(getter=None), fair=False)
        yield from self._put(state)
        yield from self._get(state)

    def _empty(self, state: State) -> bool:
        if self._without == "count":
            return state.head[1] == state.tail[1]
        return state.head == state.tail

    def _place(self, state: State, length: int) -> int:
        """Where a record may begin, or -1 if there is no room; as in `Ring._tail_for`."""
        index, first = state.tail[1], state.head[1]
        capacity = self._capacity
        if self._empty(state) or index > first:
            if index + length <= capacity:
                return index
            return 0 if length <= (index if self._empty(state) else first) else -1
        return index if index + length <= first else -1

    def _put(self, state: State) -> Iterator[Step[State]]:
        if not state.putter:
            for length in self._lengths:
                place = self._place(state, length)
                for items in (1, 2) if self._packs and length > 1 else (1,):
                    if place >= 0:
                        yield Step(
                            f"a record of {length} with {items} items goes to {place}",
                            state._replace(putter=(0, place, length, items)),
                        )
            return
        step, place, length, items = state.putter
        number, index = state.tail
        if index != place and step == 0:
            number, index = state.tail
        plan = ["length", *("data" for _ in range(length - 1))]
        wraps = place != index and index < self._capacity
        if wraps:
            plan.insert(0, "wrap")
        plan.append("tail")
        if self._without == "tail last":
            plan.remove("tail")
            plan.insert(1 if wraps else 0, "tail")
        if self._without == "wrap before tail" and wraps:
            plan.remove("wrap")
            plan.append("wrap")
        # Once this put has published, `state.tail` is no longer where it began.
        what = plan[step]
        words = list(state.words)
        after = state
        if what == "wrap":
            words[index] = WRAP
        elif what == "tail":
            tail = ((number + items) % NUMBERS, place + length)
            new = ((number + nth) % NUMBERS for nth in range(items))
            after = after._replace(tail=tail, queued=(*state.queued, *new))
            if plan[-1] != "tail":
                # A precaution is left out. The stores after "tail" are made in one step.
                yield Step("tail, then killed", after._replace(putter=()), fair=False)
                for at in range(length):
                    words[place + at] = ("data" if at else "length", number, length)
                if wraps:
                    words[index] = WRAP
                yield Step("tail, then the rest", after._replace(words=tuple(words), putter=()))
                return
        else:
            at = plan[: step + 1].count("data")
            words[place + at] = ("pack" if what == "length" and items > 1 else what, number, length)
        done = step + 1 == len(plan)
        yield Step(
            f"store {what}",
            after._replace(words=tuple(words), putter=() if done else (step + 1, place, length, items)),
        )

    def _get(self, state: State) -> Iterator[Step[State]]:
        me = state.getter
        if me is None:
            if not self._empty(state):
                yield Step("head != tail", state._replace(getter=Reading("length", state.head[1])))
            return
        word = state.words[me.at]
        if me.what == "length":
            if word == WRAP and me.at:
                yield Step("WRAP", state._replace(getter=Reading("length", 0)))
            elif word[0] not in {"length", "pack"}:
                yield Step("read", state._replace(error=f"read {word} as a length"))
            else:
                items = 2 if word[0] == "pack" else 1
                late = self._without == "head last"
                read = Reading("late" if late else "data", me.at + 1, word[1], word[2] - 1, me.at, items)
                if late:
                    yield from self._take(state, read._replace(at=me.at + word[2]), read)
                else:
                    yield Step("read the length", state._replace(getter=read))
        elif me.left:
            if word[:2] != ("data", me.number):
                yield Step("read", state._replace(error=f"read {word} in item {me.number}"))
            else:
                yield Step("copy a word", state._replace(getter=me._replace(at=me.at + 1, left=me.left - 1)))
        elif me.what == "late":
            yield Step("copied", state._replace(getter=None))
        else:
            yield from self._take(state, me, None)

    def _take(self, state: State, me: Reading, after: Reading | None) -> Iterator[Step[State]]:
        """Take one or all of the items that are left in a record."""
        count = state.head[0]
        gone = 0 if self._without == "count from the head" else (count - me.number) % NUMBERS
        left = me.items - gone
        for number in range(1, left + 1):
            taken = tuple((me.number + gone + nth) % NUMBERS for nth in range(number))
            if state.queued[:number] != taken:
                yield Step("store head", state._replace(error=f"took {taken} of {state.queued}"))
                continue
            stays = number < left and self._without != "stay"
            head = ((count + number) % NUMBERS, me.begin if stays else me.at)
            yield Step("store head", state._replace(head=head, queued=state.queued[number:], getter=after))


def wrong(state: State) -> str | None:
    """Report a wrong read, or a head and tail that do not agree with what is queued."""
    if state.error:
        return state.error
    if (state.tail[0] - state.head[0]) % NUMBERS != len(state.queued):
        return "the counts do not add up to the number of queued items"
    if (state.head == state.tail) != (not state.queued):
        return "full and empty look alike"
    return None


def idle(state: State) -> bool:
    """Whether the ring is empty and no put or get is in progress."""
    return not state.queued and not state.putter and not state.getter
