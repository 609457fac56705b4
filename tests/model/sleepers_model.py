"""Sleeping and waking (`mpkit._shm.locks.sleepers`, with `GetSide._wait` and `PutSide.try_put` around it) as
a model: getters that wait for items, putters that wake them one at a time, and woken getters that pass it on.

What is kept of the code, and what is not:

- Memory is that of x86: stores wait in the buffer of their process and arrive in order; taking and giving
  back a lock comes after all that was stored before. Loads see the process's own stores first.
- The locks of both sides are what the robust lock is proved to be: one living holder; if it is killed, the
  lock is free again, sooner or later.
- The ring is two counters, `tail` and `head`.
- The end of a slice is a step like any other in the runs with deaths. In those without, slices never end:
  nobody may need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.checker import Step, changed

# Getters.
OUT = "out"  # about to take the getters' lock
TAKE = "take"  # has it
LEAVE = "leave"  # has taken an item and has a ticket: about to hand it back
GIVE = "give"  # about to give the lock back
SLEEP = "sleep"
MORE = "more"  # has been woken and has taken an item: about to see whether there are more
OTHERS = "others"  # about to see whether others sleep
# Putters.
IDLE = "idle"  # about to take the putters' lock for an item
PUT = "put"
PUBLISHED = "published"  # about to give the lock back
LOOK = "look"  # about to look at `slept`
# Who wakes: a putter, or a getter that passes it on.
GLANCE = "glance"  # about to see whether a token lies there already
WAKE = "wake"  # about to take the putters' lock
DUE = "due"
PROMISED = "promised"  # has raised `posted`; about to give the lock back
POST = "post"  # about to hand the token out
DEAD = "dead"
DONE = "done"

_GET_LOCKERS = frozenset({TAKE, LEAVE, GIVE})
_PUT_LOCKERS = frozenset({PUT, PUBLISHED, DUE, PROMISED})

TAIL, HEAD, SLEPT, POSTED = range(4)
Words = tuple[int, int, int, int]

#: Where both counters of tickets start.
FIRST = 5
#: What one death may cost.
SLICES = 1


class Getter(NamedTuple):
    """A process that takes items, for ever."""

    at: str = OUT
    buffer: tuple[tuple[int, int], ...] = ()
    ticket: bool = False
    looked: bool = False
    late: bool = False
    """Its last sleep was ended by the slice."""
    found: bool = False
    woken: bool = False
    """By a token, in this call."""
    promised: int = 0


class Putter(NamedTuple):
    """A process that puts `left` items more."""

    at: str = IDLE
    buffer: tuple[tuple[int, int], ...] = ()
    left: int = 1
    quiet: int = -1
    promised: int = 0


class State(NamedTuple):
    """All of it."""

    words: Words
    tokens: int
    getters: tuple[Getter, ...]
    putters: tuple[Putter, ...]
    deaths: int
    """How many may still come."""
    hurt: int = 0
    """How many slices the deaths so far may still cost."""


class SleepersModel:
    """The steps.

    Args:
        without: a guard to leave out, to see that the checker misses it:
            "second look" (sleep at once after taking a ticket),
            "barrier" (giving a lock back does not wait for earlier stores),
            "look afterwards" (the putter looks at `slept` before it gives the lock back),
            "publish first" (the putter looks at `slept` before it stores `tail`),
            "renew" (nobody notices a promise that was never kept),
            "quiet" (a putter takes everybody for awake once it has woken one, however many sleep),
            "pass on" (whoever is woken takes its item and goes),
            "glance" (a putter that sees a token takes everybody for awake),
            "hand back" (whoever finds an item by itself keeps its ticket on the books).
        slices: slices may end.
        once: a getter wants one item only.
    """

    def __init__(self, *, without: str = "", slices: bool, once: bool = False) -> None:
        self._without = without
        self._slices = slices
        self._once = once

    @staticmethod
    def start(getters: int, putters: tuple[int, ...], *, deaths: int = 0) -> State:
        """`getters` getters, and a putter for each number of items."""
        return State(
            (0, 0, FIRST, FIRST),
            0,
            (Getter(),) * getters,
            tuple(Putter(left=left) for left in putters),
            deaths,
        )

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Every step of every process."""
        for number, getter in enumerate(state.getters):
            if getter in state.getters[:number]:
                continue  # another one is in the same place
            yield from self._any(state, getter, number, False)
            if getter.at != DEAD:
                yield from self._getter(state, getter, number)
        for number, putter in enumerate(state.putters):
            if putter in state.putters[:number]:
                continue
            yield from self._any(state, putter, number, True)
            if putter.at != DEAD:
                yield from self._putter(state, putter, number)

    def _any(self, state: State, process: Getter | Putter, number: int, puts: bool) -> Iterator[Step[State]]:
        if process.buffer:
            (at, value), *rest = process.buffer
            yield Step("a store arrives", _set(_store(state, at, value), process, number, buffer=tuple(rest)))
        gone = process.at in {DEAD, DONE} or (
            isinstance(process, Putter) and process.at == IDLE and not process.left
        )
        # What a process has stored arrives although it is dead: the same as a death after that.
        if state.deaths and not gone and not process.buffer:
            dead: Getter | Putter = Putter(DEAD, left=0) if puts else Getter(DEAD)
            after = _put_back(state, dead, number)
            yield Step(
                f"killed at [{process.at}]", after._replace(deaths=state.deaths - 1, hurt=SLICES), fair=False
            )

    def _getter(self, state: State, me: Getter, number: int) -> Iterator[Step[State]]:
        drained = not me.buffer
        room = len(me.buffer) < 2

        def to(label: str, after: State = state, **changes: object) -> Step[State]:
            return Step(label, _set(after, me, number, **changes))

        def store(at: int, value: int) -> tuple[tuple[int, int], ...]:
            return (*me.buffer, (at, value))

        if me.at == OUT:
            if drained and _is_free(state, _GET_LOCKERS):
                yield to("getters' lock", at=TAKE)
        elif me.at == TAKE:
            if not room:
                return
            head = _read(state, me, HEAD)
            slept = _read(state, me, SLEPT)
            if _read(state, me, TAIL) > head:
                yield to(
                    "ring[HEAD] = head + 1",
                    at=LEAVE if me.ticket else GIVE,
                    buffer=store(HEAD, head + 1),
                    found=True,
                )
            elif not me.ticket:
                yield to(
                    "enter: slept += 1",
                    at=GIVE,
                    buffer=store(SLEPT, slept + 1),
                    ticket=True,
                    looked=self._without == "second look",
                    found=False,
                )
            else:
                after = _healed(state) if me.late else state
                if me.late and self._is_due(state, me):
                    yield to(
                        "renew",
                        after,
                        at=GIVE,
                        buffer=store(SLEPT, _read(state, me, POSTED) + 1),
                        looked=False,
                        found=False,
                    )
                else:
                    yield to("still nothing", after, at=GIVE, found=False)
        elif me.at == LEAVE:
            if not room:
                return
            slept = _read(state, me, SLEPT)
            after = state
            if me.late:
                after = _healed(after)
                if self._is_due(state, me):
                    slept = _read(state, me, POSTED) + 1
            if self._without == "hand back":
                slept += 1
            yield to(
                "leave: slept -= 1",
                after,
                at=GIVE,
                buffer=store(SLEPT, slept - 1),
                ticket=False,
                late=False,
            )
        elif me.at == GIVE:
            if drained or self._without == "barrier":
                if me.found:
                    passes = me.woken and self._without != "pass on"
                    onward = MORE if passes else self._after
                    yield to("give the lock back", at=onward, found=False, woken=False)
                elif not me.looked:
                    yield to("give the lock back, look again", at=OUT, looked=True)
                else:
                    yield to("give the lock back, sleep", at=SLEEP)
        elif me.at == SLEEP:
            if state.tokens:
                yield to(
                    "a token",
                    state._replace(tokens=state.tokens - 1),
                    at=OUT,
                    ticket=False,
                    looked=False,
                    late=False,
                    woken=True,
                )
            elif self._slices and drained:
                yield to("the slice is over", at=OUT, late=True)
        elif me.at == MORE:
            more = _read(state, me, TAIL) > _read(state, me, HEAD)
            yield to("more items?", at=OTHERS if more else self._after)
        elif me.at == OTHERS:
            others = _read(state, me, SLEPT) > _read(state, me, POSTED)
            yield to("anybody asleep?", at=GLANCE if others else self._after)
        else:
            yield from self._wake(state, me, number, self._after)

    @property
    def _after(self) -> str:
        """Where a getter goes on when it has its item."""
        return DONE if self._once else OUT

    def _is_due(self, state: State, me: Getter) -> bool:
        return (
            self._without != "renew"
            and _read(state, me, SLEPT) <= _read(state, me, POSTED)
            and not state.tokens
        )

    def _putter(self, state: State, me: Putter, number: int) -> Iterator[Step[State]]:
        drained = not me.buffer
        lock_is_free = _is_free(state, _PUT_LOCKERS)
        without = self._without

        def to(label: str, after: State = state, **changes: object) -> Step[State]:
            return Step(label, _set(after, me, number, **changes))

        if me.at == IDLE:
            if me.left and drained and lock_is_free:
                yield to("putters' lock", at=PUT, left=me.left - 1)
        elif me.at == PUT:
            tail = _read(state, me, TAIL)
            stored = (*me.buffer, (TAIL, tail + 1))
            seen = _read(state, me, SLEPT) != me.quiet
            if without == "publish first":
                yield to("look, then ring[TAIL] = tail + 1", at=PUBLISHED, buffer=stored, promised=int(seen))
            else:
                yield to("ring[TAIL] = tail + 1", at=PUBLISHED, buffer=stored)
        elif me.at == PUBLISHED:
            if without == "look afterwards":
                # One load, then the lock is given back.
                if me.promised == 0:
                    seen = _read(state, me, SLEPT) != me.quiet
                    yield to("look too early", promised=2 if seen else 1)
                elif drained:
                    yield to("give the lock back", at=GLANCE if me.promised == 2 else IDLE, promised=0)
            elif drained or without == "barrier":
                if without == "publish first":
                    yield to("give the lock back", at=GLANCE if me.promised else IDLE, promised=0)
                else:
                    yield to("give the lock back", at=LOOK)
        elif me.at == LOOK:
            seen = _read(state, me, SLEPT) != me.quiet
            yield to("words[ITEMS_SLEPT] != quiet", at=GLANCE if seen else IDLE)
        else:
            yield from self._wake(state, me, number, IDLE)

    def _wake(self, state: State, me: Getter | Putter, number: int, after: str) -> Iterator[Step[State]]:
        drained = not me.buffer
        without = self._without

        def to(label: str, **changes: object) -> Step[State]:
            return Step(label, _set(state, me, number, **changes))

        def quiet(value: int) -> dict[str, int]:
            return {"quiet": value} if isinstance(me, Putter) else {}

        if me.at == GLANCE:
            if state.tokens:
                seen = _read(state, me, SLEPT) if without == "glance" else -1
                yield to("a token lies there", at=after, **quiet(seen))
            else:
                yield to("no token lies there", at=WAKE)
        elif me.at == WAKE:
            if drained and _is_free(state, _PUT_LOCKERS):
                yield to("putters' lock", at=DUE)
        elif me.at == DUE:
            slept, posted = _read(state, me, SLEPT), _read(state, me, POSTED)
            due = 1 if slept > posted else 0
            posted += due
            yield to(
                "due: posted += 1" if due else "nobody is due",
                at=PROMISED,
                buffer=(*me.buffer, (POSTED, posted)) if due else me.buffer,
                promised=due,
                **quiet(slept if posted >= slept or without == "quiet" else -1),
            )
        elif me.at == PROMISED:
            if drained or without == "barrier":
                yield to("give the lock back", at=POST if me.promised else after)
        elif me.at == POST:
            posted_now = state._replace(tokens=state.tokens + 1)
            yield Step("tokens.release()", _set(posted_now, me, number, at=after, promised=0))


def wrong(state: State) -> str | None:
    """A sleeper and an item, and nobody who is going to bring them together."""
    getters = [one for one in state.getters if one.at not in {DEAD, DONE}]
    putters = [one for one in state.putters if one.at != DEAD]
    tail, head, slept, posted = state.words
    if head > tail:
        return "an item was taken that nobody had put"
    if any(one.buffer for one in getters) or any(one.buffer for one in putters):
        return None
    if any(one.at != IDLE for one in putters):
        return None
    if not state.hurt and getters and all(one.at == SLEEP for one in getters):
        if not state.tokens and tail > head:
            return "all sleep, there is an item, and no token is on its way"
        sleeping = len(getters)
        known = state.tokens + slept - posted
        if len(state.getters) == 1 and known < sleeping:
            return "a sleeper that no putter knows of"
        # Each process that wakes may be late with one token when slices end.
        if _nobody_has_died(state) and known > sleeping + len(putters) + len(getters):
            return "tickets pile up"
    return None


def waits(state: State) -> bool:
    """A living getter, and an item."""
    return state.words[TAIL] > state.words[HEAD] and any(one.at not in {DEAD, DONE} for one in state.getters)


def arrived(state: State) -> bool:
    """Everything that was put has been taken."""
    return state.words[TAIL] == state.words[HEAD]


def _is_free(state: State, lockers: frozenset[str]) -> bool:
    return lockers.isdisjoint([one.at for one in state.getters + state.putters])


def _healed(state: State) -> State:
    return state._replace(hurt=state.hurt - 1) if state.hurt else state


def _nobody_has_died(state: State) -> bool:
    return DEAD not in {one.at for one in state.getters} | {one.at for one in state.putters}


def _read(state: State, process: Getter | Putter, at: int) -> int:
    for where, value in reversed(process.buffer):
        if where == at:
            return value
    return state.words[at]


def _store(state: State, at: int, value: int) -> State:
    words = list(state.words)
    words[at] = value
    return state._replace(words=(words[0], words[1], words[2], words[3]))


def _set(state: State, process: Getter | Putter, number: int, **changes: object) -> State:
    return _put_back(state, changed(process, **changes), number)


def _put_back(state: State, process: Getter | Putter, number: int) -> State:
    """Processes of one kind are alike: who is who does not matter."""
    words, tokens, getters, putters, deaths, hurt = state
    if isinstance(process, Getter):
        getters = tuple(sorted([*getters[:number], process, *getters[number + 1 :]]))
    else:
        putters = tuple(sorted([*putters[:number], process, *putters[number + 1 :]]))
    return State(words, tokens, getters, putters, deaths, hurt)
