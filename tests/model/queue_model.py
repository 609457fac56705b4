"""A model of the queue above its rings (`put_ring`, `put_side`, `get_side`, `generations`, `regions`): rings
that follow each other, reused regions, big items, shutdown, the return to the first ring, and deaths
anywhere.

How the model simplifies the code:

- A ring has room for one record, so it is full after each put. `ring_model` covers what happens inside a
  ring.
- The two locks behave as `robust_lock_model` proves: there is one living holder, and if it is killed, the
  lock is free again sooner or later, after that side has been repaired.
- Stores and loads keep their order, as on x86 (elsewhere, fences see to that). That a load may overtake an
  earlier store matters only where a process goes to sleep: see `sleepers_model`.
- Left out: giving unused pages back, pinning, and copying items out when regions run short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.checker import Step

FREE, RING, WRITING, QUEUED, HELD = "free", "ring", "writing", "queued", "held"
_USES = (FREE, RING, WRITING, QUEUED, HELD)

IDLE = "idle"
DEAD = "dead"
# Where a putter is. In all of these but COPY and COPIED it holds the put lock.
CLAIM = "claim"  # has a big item; about to note the counts
CHOOSE = "choose"  # has noted them; about to look for a region
COPY = "copy"
COPIED = "copied"
PLACE = "place"  # about to look whether the ring has room
GROW = "grow"
GROWN = "grown"  # has a region for the next ring
BEGUN = "begun"  # has made the ring; about to make it current
MARK = "mark"
PUBLISH = "publish"
GIVE_UP = "give up"
# Where a getter is. Before VIEW it holds the get lock.
LOOK = "look"
TAIL = "tail"
HOLD = "hold"
TAKE = "take"
NEXT = "next"
TRIM = "trim"  # has both locks
TRIM_PUT = "trim put"
TRIM_GET = "trim get"
VIEW = "view"
VIEWED = "viewed"

FREE_LOCK, LOST = -1, -2


class Ring(NamedTuple):
    """The content of a region that is a ring: its two counters and its one record (item, region)."""

    head: int
    tail: int
    record: tuple[int, int] = (-1, 0)


class Region(NamedTuple):
    """An entry of the table of regions, and what the region contains: a ring, an item's number, or -1."""

    state: str = FREE
    serial: int = 0
    owner: int = 0
    content: Ring | int = -1


class Process(NamedTuple):
    """A putter or a getter."""

    at: str = IDLE
    item: int = -1
    region: int = 0
    noted: tuple[int, ...] = ()
    """What it has read: (gets, puts, first, last) or (generation, shut)."""
    is_ring: bool = False
    """Whether it looks for a region for a ring, not for an item."""
    looked_early: bool = False
    """Without "counts first": `noted` is the table of regions."""


class State(NamedTuple):
    """The state of the whole model."""

    put_generation: int
    shut: bool
    get_generation: int
    slots: tuple[int, ...]
    regions: tuple[Region, ...]
    put_lock: int
    get_lock: int
    putters: tuple[Process, ...]
    getters: tuple[Process, ...]
    published: tuple[tuple[int, int], ...] = ()
    """The item and the region (0: none) of every put that was published."""
    taken: int = 0
    begun: int = 0
    """How many puts have begun."""
    deaths: int = 0
    error: str = ""


class QueueModel:
    """The steps of putters and getters.

    Args:
        items: How many puts there are.
        without: The precaution to leave out, to check that the model then finds a violation:
            "generation first" (read the tail before the putters' generation),
            "shut first" (look whether the queue is shut down after looking at the tail),
            "counts first" (read the counts after the table of regions),
            "held first" (take an item before marking its region as held),
            "repair" (after a putter's death, do not free regions that were marked but not published),
            "not taken yet" (free what a dead getter held although the item is still queued),
            "alive" (free the region that a living putter writes),
            "first" (free rings that getters have not finished),
            "begin first" (make a ring current before it is initialised),
            "queued first" (publish an item before marking its region as queued).
        big: Whether there are big items, which are stored in regions.
        small: Whether there are small items, which are stored in rings.
        shutting: Whether the queue may be shut down.
    """

    def __init__(
        self, items: int, *, without: str = "", big: bool = True, small: bool = True, shutting: bool = True
    ) -> None:
        self._items = items
        self._without = without
        self._big = big
        self._small = small
        self._shutting = shutting
        self._generations = 2 * items + 2

    def start(self, putters: int, getters: int, regions: int, deaths: int) -> State:
        """The initial state: an empty queue with its first ring in region 0."""
        return State(
            0,
            False,
            0,
            (0,) + (-1,) * self._generations,
            (Region(RING, 0, 0, Ring(0, 0)), *(Region(),) * regions),
            FREE_LOCK,
            FREE_LOCK,
            (Process(),) * putters,
            (Process(),) * getters,
            deaths=deaths,
        )

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Every step of every process, and deaths."""
        if state.error:
            return
        if state.put_lock == LOST:
            regions = state.regions
            if self._without != "repair":
                puts = len(state.published)
                regions = tuple(
                    one._replace(state=FREE) if one.state == QUEUED and one.serial >= puts else one
                    for one in regions
                )
            yield Step("put lock taken over", state._replace(put_lock=FREE_LOCK, regions=regions))
        if state.get_lock == LOST:
            yield Step("get lock taken over", state._replace(get_lock=FREE_LOCK))
        if self._shutting and not state.shut and state.put_lock == FREE_LOCK:
            yield Step("shut down", state._replace(shut=True))
        for number, me in enumerate(state.putters):
            if me.at == DEAD:
                continue
            if state.deaths and me.at != IDLE:
                after = state._replace(deaths=state.deaths - 1)
                if state.put_lock == number:
                    after = after._replace(put_lock=LOST)
                yield Step(f"putter killed at [{me.at}]", _putter(after, number, Process(DEAD)), fair=False)
            yield from self._put(state, me, number)
        for number, me in enumerate(state.getters):
            if me.at == DEAD:
                continue
            if state.deaths and me.at != IDLE:
                after = state._replace(deaths=state.deaths - 1)
                if state.get_lock == number:
                    after = after._replace(get_lock=LOST)
                if state.put_lock == 10 + number:
                    after = after._replace(put_lock=LOST)
                yield Step(f"getter killed at [{me.at}]", _getter(after, number, Process(DEAD)), fair=False)
            yield from self._get(state, me, number)

    # -- putters ---------------------------------------------------------------------------------------------

    def _put(self, state: State, me: Process, number: int) -> Iterator[Step[State]]:
        def to(label: str, after: State = state, **changes: object) -> Step[State]:
            return Step(label, _putter(after, number, me._replace(**changes)))  # type: ignore[arg-type]

        mine = state._replace(put_lock=number)
        freed = state._replace(put_lock=FREE_LOCK)
        generation = state.put_generation
        puts = len(state.published)
        if me.at == IDLE:
            if state.put_lock == FREE_LOCK and state.begun < self._items:
                begun = mine._replace(begun=state.begun + 1)
                if self._small:
                    yield to("put a small item", begun, at=PLACE, item=state.begun, region=0)
                if self._big:
                    yield to("put a big item", begun, at=CLAIM, item=state.begun)
        elif me.at in {CLAIM, GROW}:
            noted = (state.taken, puts, state.get_generation, generation)
            yield to("note the counts", at=CHOOSE, noted=noted, is_ring=me.at == GROW)
        elif me.at == CHOOSE:
            yield from self._choose(state, me, number)
        elif me.at == COPY:
            yield to("copy", _region(state, me.region, content=me.item), at=COPIED)
        elif me.at == COPIED:
            if state.put_lock == FREE_LOCK:
                yield to("take the put lock again", mine, at=PLACE)
        elif me.at == PLACE:
            ring = state.regions[state.slots[generation]].content
            assert isinstance(ring, Ring)
            if state.shut:
                yield to("shut down already", at=GIVE_UP)
            elif ring.tail > ring.head:
                yield to("no room in this ring", at=GROW)
            elif self._without == "queued first":
                yield to("there is room", at=PUBLISH)
            else:
                yield to("there is room", at=MARK if me.region else PUBLISH)
        elif me.at == GIVE_UP:
            after = _region(freed, me.region, state=FREE) if me.region else freed
            yield Step("drop it", _putter(after, number, Process()))
        elif me.at == GROWN:
            if self._without == "begin first":
                after = _slot(state, generation + 1, int(me.noted[0]))
                yield to(
                    "make it current (too early)", after._replace(put_generation=generation + 1), at=BEGUN
                )
            else:
                after = _region(state, me.noted[0], content=Ring(puts, puts))
                yield to("begin the ring", _slot(after, generation + 1, me.noted[0]), at=BEGUN)
        elif me.at == BEGUN:
            if self._without == "begin first":
                after = _region(state, me.noted[0], content=Ring(puts, puts))
            else:
                after = state._replace(put_generation=generation + 1)
            yield to("make it current", after, at=PLACE, noted=())
        elif me.at == MARK:
            yield to("mark_queued", self._queued(state, me, puts, number), at=PUBLISH)
        elif me.at == PUBLISH:
            at = state.slots[generation]
            after = _region(freed, at, content=Ring(puts, puts + 1, (me.item, me.region)))
            after = _region_of(after, at, state.regions[at].content)
            after = after._replace(published=(*state.published, (me.item, me.region)))
            if self._without == "queued first" and me.region:
                yield to("store tail (too early)", after._replace(put_lock=number), at="late")
            else:
                yield Step("store tail", _putter(after, number, Process()))
        elif me.at == "late":
            after = self._queued(freed, me, puts - 1, number)
            yield Step("mark_queued (too late)", _putter(after, number, Process()))

    @staticmethod
    def _queued(state: State, me: Process, serial: int, number: int) -> State:
        return _region(state, me.region, state=QUEUED, serial=serial, owner=number)

    def _choose(self, state: State, me: Process, number: int) -> Iterator[Step[State]]:
        """Look for a region: a free one, otherwise one whose use is over."""
        after = state
        free = [at for at, one in enumerate(state.regions) if at and one.state == FREE]
        uses = [one.state for one in state.regions]
        noted = me.noted
        if not free and self._without == "counts first":
            if me.looked_early:
                uses = [_USES[use] for use in me.noted]
                noted = (
                    state.taken,
                    len(state.published),
                    state.get_generation,
                    state.put_generation,
                )
            else:
                table = tuple(_USES.index(use) for use in uses)
                after = _putter(state, number, me._replace(noted=table, looked_early=True))
                yield Step("read the table (too early)", after)
                return
        if not free:
            for at, one in enumerate(state.regions):
                if at and self._is_over(state, uses[at], one, noted):
                    after = _region(after, at, state=FREE)
                    free.append(at)
        if not free:
            yield Step(
                "no region", _putter(after, number, me._replace(at=GIVE_UP, noted=(), looked_early=False))
            )
            return
        at = free[0]
        if me.is_ring:
            after = _region(after, at, state=RING, serial=state.put_generation + 1, owner=number, content=-1)
            yield Step(
                "claim it for a ring",
                _putter(after, number, me._replace(at=GROWN, noted=(at,), looked_early=False)),
            )
        else:
            after = _region(after, at, state=WRITING, serial=-1, owner=number, content=-1)
            after = after._replace(put_lock=FREE_LOCK)
            yield Step(
                "claim it",
                _putter(after, number, me._replace(at=COPY, region=at, noted=(), looked_early=False)),
            )

    def _is_over(self, state: State, use: str, one: Region, noted: tuple[int, ...]) -> bool:
        """What `UseIsOver` (`mpkit._shm.queues.region_uses`) decides."""
        gets, puts, first, last = noted
        if use == RING:
            return not (first if self._without != "first" else last) <= one.serial <= last
        published = gets <= one.serial < puts
        if use == QUEUED:
            return not published
        if use == HELD:
            dead = state.getters[one.owner].at == DEAD
            return dead and (not published or self._without == "not taken yet")
        return use == WRITING and (state.putters[one.owner].at == DEAD or self._without == "alive")

    # -- getters ---------------------------------------------------------------------------------------------

    def _get(self, state: State, me: Process, number: int) -> Iterator[Step[State]]:
        def to(label: str, after: State = state, **changes: object) -> Step[State]:
            return Step(label, _getter(after, number, me._replace(**changes)))  # type: ignore[arg-type]

        freed = state._replace(get_lock=FREE_LOCK)
        generation = state.get_generation
        if me.at == IDLE:
            if state.get_lock == FREE_LOCK and (state.taken < self._items):
                yield to("take the get lock", state._replace(get_lock=number), at=LOOK)
        elif me.at == LOOK:
            if self._without == "generation first":
                yield to("read the tail (too early)", at=TAIL, noted=(self._tail(state),))
            else:
                yield to(
                    "read the putters' generation",
                    at=TAIL,
                    noted=(state.put_generation, int(state.shut)),
                )
        elif me.at == TAIL:
            ring = state.regions[state.slots[generation]].content
            if not isinstance(ring, Ring):
                yield Step("read a ring", state._replace(error="a getter takes something else for a ring"))
                return
            tail = ring.tail
            noted = me.noted
            if self._without == "generation first":
                tail, noted = me.noted[0], (state.put_generation, int(state.shut))
            if ring.head != tail:
                item, region = ring.record
                yield to("there is an item", at=HOLD if region else TAKE, item=item, region=region, noted=())
            elif noted[0] == generation:
                if self._without == "shut first":
                    yield to("nothing", at="shut?", noted=())
                    return
                if noted[1] and len(state.published) > state.taken:
                    yield Step("drained", state._replace(error="drained, while an item is queued"))
                    return
                yield Step("nothing", _getter(freed, number, Process()))
                if state.slots[generation] and state.put_lock == FREE_LOCK:
                    yield to("trim", state._replace(put_lock=10 + number), at=TRIM, noted=())
            else:
                yield to("this ring is finished", at=NEXT, noted=())
        elif me.at == "shut?":
            if state.shut and len(state.published) > state.taken:
                yield Step("drained", state._replace(error="drained, while an item is queued"))
            else:
                yield Step("nothing", _getter(freed, number, Process()))
        elif me.at == NEXT:
            yield to("next generation", state._replace(get_generation=generation + 1), at=LOOK)
        elif me.at == HOLD:
            if self._without == "held first":
                yield to("(not marked yet)", at=TAKE)
            else:
                yield to("mark_held", _region(state, me.region, state=HELD, owner=number), at=TAKE)
        elif me.at == TAKE:
            if state.published[state.taken] != (me.item, me.region):
                yield Step("take", state._replace(error="not the oldest item"))
                return
            at = state.slots[generation]
            ring = state.regions[at].content
            assert isinstance(ring, Ring)
            after = _region(freed, at, content=ring._replace(head=ring.head + 1))
            after = after._replace(taken=state.taken + 1)
            if not me.region:
                yield Step("store head", _getter(after, number, Process()))
            elif self._without == "held first":
                yield to("store head (too early)", after._replace(get_lock=number), at="late")
            else:
                yield to("store head", after, at=VIEW)
        elif me.at == "late":
            yield to("mark_held (too late)", _region(freed, me.region, state=HELD, owner=number), at=VIEW)
        elif me.at == VIEW:
            if state.regions[me.region].content != me.item:
                yield Step("read", state._replace(error="a view of something else"))
            else:
                yield to("read the view", at=VIEWED)
        elif me.at == VIEWED:
            after = _region(state, me.region, state=FREE)
            yield Step("the last view goes", _getter(after, number, Process()))
        else:
            yield from self._trim(state, me, number)

    def _trim(self, state: State, me: Process, number: int) -> Iterator[Step[State]]:
        """Return to the first ring, holding both locks."""
        generation = state.put_generation
        if me.at == TRIM:
            if state.get_generation == generation and self._tail(state) == state.taken == len(
                state.published
            ):
                after = _region(state, 0, content=Ring(state.taken, state.taken))
                after = _slot(after, generation + 1, 0)
                yield Step("begin in the first ring", _getter(after, number, me._replace(at=TRIM_PUT)))
            else:
                after = state._replace(put_lock=FREE_LOCK, get_lock=FREE_LOCK)
                yield Step("not empty any more", _getter(after, number, Process()))
        elif me.at == TRIM_PUT:
            after = state._replace(put_generation=generation + 1)
            yield Step("putters go back", _getter(after, number, me._replace(at=TRIM_GET)))
        elif me.at == TRIM_GET:
            after = state._replace(get_generation=generation, put_lock=FREE_LOCK, get_lock=FREE_LOCK)
            yield Step("getters go back", _getter(after, number, Process()))

    @staticmethod
    def _tail(state: State) -> int:
        ring = state.regions[state.slots[state.get_generation]].content
        return ring.tail if isinstance(ring, Ring) else -1


def wrong(state: State) -> str | None:
    """Report an error of a step, or a region that is not what a living process or the queue uses it as."""
    if state.error:
        return state.error
    regions = state.regions
    for generation in range(state.get_generation, state.put_generation + 1):
        at = state.slots[generation]
        one = regions[at]
        if not isinstance(one.content, Ring) or one.state != RING or (at and one.serial != generation):
            return "a generation in use has no ring"
    for serial in range(state.taken, len(state.published)):
        item, at = state.published[serial]
        if at and (regions[at].state not in {QUEUED, HELD} or regions[at].content != item):
            return "a queued item has lost its region"
    for number, me in enumerate(state.putters):
        if me.at in {COPY, COPIED} and (regions[me.region].state, regions[me.region].owner) != (
            WRITING,
            number,
        ):
            return "a putter has lost the region that it writes"
    for me in state.getters:
        if me.at in {VIEW, VIEWED} and (regions[me.region].state, regions[me.region].content) != (
            HELD,
            me.item,
        ):
            return "a getter has lost the region that it reads"
    if state.put_lock == FREE_LOCK:
        for at, one in enumerate(regions):
            queued = state.taken <= one.serial < len(state.published)
            if one.state == QUEUED and queued and state.published[one.serial][1] != at:
                return "a region is marked with the number of another item"
    return None


def waits(state: State) -> bool:
    """Whether an item is queued and a getter lives."""
    return len(state.published) > state.taken and any(one.at != DEAD for one in state.getters)


def arrived(state: State) -> bool:
    """Whether every published item has been taken."""
    return len(state.published) == state.taken


def _region(state: State, number: int, /, **changes: object) -> State:
    one = state.regions[number]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(regions=(*state.regions[:number], one, *state.regions[number + 1 :]))


def _region_of(state: State, number: int, before: Ring | int) -> State:
    """Restore the head of the ring in region `number`: a putter does not write it."""
    now = state.regions[number].content
    assert isinstance(now, Ring)
    assert isinstance(before, Ring)
    return _region(state, number, content=now._replace(head=before.head))


def _slot(state: State, generation: int, region: int) -> State:
    return state._replace(slots=(*state.slots[:generation], region, *state.slots[generation + 1 :]))


def _putter(state: State, number: int, process: Process) -> State:
    return state._replace(putters=(*state.putters[:number], process, *state.putters[number + 1 :]))


def _getter(state: State, number: int, process: Process) -> State:
    return state._replace(getters=(*state.getters[:number], process, *state.getters[number + 1 :]))
