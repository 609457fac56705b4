"""A model of sleeping and waking (`mpkit._shm.locks.sleepers`, with `GetSide._wait` and `PutSide.try_put`
around it): getters that wait for items, putters that wake one at a time, and woken getters that wake the
next.

How the model simplifies the code:

- Memory is that of x86: stores wait in the buffer of their process and arrive in order. Acquiring or
  releasing a lock waits until the buffer is empty. A load sees the process's own stores first.
- The locks of both sides behave as `robust_lock_model` proves: there is one living holder, and if it is
  killed, the lock is free again sooner or later.
- The ring is just two counters, `tail` and `head`.
- In runs with deaths, the end of a slice is a step like any other. In runs without, slices never end: nothing
  may depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.checker import Step, changed

# Where a getter is.
OUT = "out"  # about to acquire the getters' lock
TAKE = "take"  # has acquired it
LEAVE = "leave"  # has taken an item and has a ticket: about to hand it back
GIVE = "give"  # about to release the lock
SLEEP = "sleep"
MORE = "more"  # has been woken and has taken an item: about to see whether there are more
OTHERS = "others"  # about to see whether other getters sleep
# Where a putter is.
IDLE = "idle"  # about to acquire the putters' lock to put an item
PUT = "put"
PUBLISHED = "published"  # about to release the lock
LOOK = "look"  # about to look at `slept`
# Where a waker is: a putter, or a woken getter that wakes the next.
GLANCE = "glance"  # about to see whether the semaphore has a token already
WAKE = "wake"  # about to acquire the putters' lock
DUE = "due"
PROMISED = "promised"  # has raised `posted`; about to release the lock
POST = "post"  # about to put the token into the semaphore
DEAD = "dead"
DONE = "done"

_GET_LOCKERS = frozenset({TAKE, LEAVE, GIVE})
_PUT_LOCKERS = frozenset({PUT, PUBLISHED, DUE, PROMISED})

TAIL, HEAD, SLEPT, POSTED = range(4)
Words = tuple[int, int, int, int]

#: Where both counters of tickets start.
FIRST = 5
#: How many slices one death may cost.
SLICES = 1


class Getter(NamedTuple):
    """A process that takes items, again and again (or once)."""

    at: str = OUT
    buffer: tuple[tuple[int, int], ...] = ()
    ticket: bool = False
    looked: bool = False
    late: bool = False
    """Whether its last sleep ended with the slice, without a token."""
    found: bool = False
    woken: bool = False
    """Whether a token woke it in the current call."""
    promised: int = 0


class Putter(NamedTuple):
    """A process that will put `left` more items."""

    at: str = IDLE
    buffer: tuple[tuple[int, int], ...] = ()
    left: int = 1
    quiet: int = -1
    promised: int = 0


class State(NamedTuple):
    """The state of the whole model."""

    words: Words
    tokens: int
    getters: tuple[Getter, ...]
    putters: tuple[Putter, ...]
    deaths: int
    """How many deaths may still happen."""
    hurt: int = 0
    """How many more slices the deaths so far may cost."""


class SleepersModel:
    """The steps of getters and putters.

    Args:
        without: The precaution to leave out, to check that the model then finds a violation:
            "second look" (sleep at once after taking a ticket),
            "barrier" (releasing a lock does not wait for earlier stores),
            "look afterwards" (a putter looks at `slept` before it releases the lock),
            "publish first" (a putter looks at `slept` before it stores `tail`),
            "renew" (no getter notices a promised token that never came),
            "quiet" (once a putter has woken one getter, it assumes that all are awake, however many sleep),
            "pass on" (a woken getter takes its item and wakes no other),
            "glance" (a putter that sees a token assumes that all getters are awake),
            "hand back" (a getter that finds an item without having been woken does not hand its ticket back).
        slices: Whether slices may end.
        once: Whether each getter wants only one item.
    """

    def __init__(self, *, without: str = "", slices: bool, once: bool = False) -> None:
        self._without = without
        self._slices = slices
        self._once = once

    @staticmethod
    def start(getters: int, putters: tuple[int, ...], *, deaths: int = 0) -> State:
        """The initial state: `getters` getters, and one putter for each number of items in `putters`."""
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
                continue  # an equal process would take the same steps
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
        # Only with an empty buffer: buffered stores arrive even after a death, so dying before they do is the
        # same as dying after.
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
                yield to("acquire the getters' lock", at=TAKE)
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
        """Where a getter goes on after it has got its item."""
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
                # Without this precaution, two steps: the load, then the release.
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
                yield to("there is a token", at=after, **quiet(seen))
            else:
                yield to("there is no token", at=WAKE)
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
    """Report an item that no sleeper will be woken for, or tickets that do not match the sleepers."""
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
            return "there is an item, but all getters sleep and no token will come"
        sleeping = len(getters)
        known = state.tokens + slept - posted
        if len(state.getters) == 1 and known < sleeping:
            return "a getter sleeps without a ticket or a token"
        # A slice may end just before the token comes: so each waker may have added one token too many.
        if _nobody_has_died(state) and known > sleeping + len(putters) + len(getters):
            return "there are more and more tickets"
    return None


def waits(state: State) -> bool:
    """Whether an item is queued and a getter wants it."""
    return state.words[TAIL] > state.words[HEAD] and any(one.at not in {DEAD, DONE} for one in state.getters)


def arrived(state: State) -> bool:
    """Whether every item that was put has been taken."""
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
    """Replace process `number`, and sort: processes of one kind are interchangeable."""
    words, tokens, getters, putters, deaths, hurt = state
    if isinstance(process, Getter):
        getters = tuple(sorted([*getters[:number], process, *getters[number + 1 :]]))
    else:
        putters = tuple(sorted([*putters[:number], process, *putters[number + 1 :]]))
    return State(words, tokens, getters, putters, deaths, hurt)
