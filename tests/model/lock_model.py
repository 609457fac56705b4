"""A model of the lock that knows its owner (`mpkit._shm.locks.lock_rows` and `lock_file`): any number of
acquisitions by a few processes. Each may die at any step, be interrupted by an exception around an operation
on the semaphore, or release the lock that another one holds.

The model simplifies the code in the same way as `robust_lock_model`: instead of a counter that only grows it
keeps "has it changed since the investigator looked", there is no time, and memory is that of x86. One row
stands for one thread; the threads of one process are separate processes here, which do not die together. A
process does not release the lock after another one has released it in its place: this would be a mistake of
the program, as with any lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.model.checker import Step, changed

# Where a process is, and its next step.
IDLE = "idle"  # does not want the lock
WANT = "want"  # wants it; its row says OUT
TRY = "try"  # has stored TRYING; about to try for the permit
FAILED = "failed"  # about to raise ATTEMPTS
TRIED = "tried"  # about to store OUT
GOT = "got"  # has the permit; about to store HELD
HOLD = "hold"  # owns the lock
LET_GO = "let go"  # has stored RELEASING; about to give the permit back
GAVE = "gave"  # has given it back; about to raise COMPLETED
DONE = "done"  # about to store OUT
# Holding the file lock:
HEIR = "heir"  # has stored HELD to take over from a dead owner, whose row it has not cleared yet
AGENT = "agent"  # releases the lock that another one owns: about to clear the owner's row
GIVE = "give"  # about to give the permit back
LIVING = "i-living"
BEFORE = "i-before"
ENTER = "i-enter"
LOOK = "i-try"
SPARE = "i-hold"
SPARED = "i-gave"
MISSED = "i-missed"
AFTER = "i-after"
WATCH = "i-watch"
CHECK = "i-check"
ADD = "i-add"
LEAVE = "i-leave"
DEAD = "dead"

_WITH_PERMIT = frozenset({GOT, HOLD, LET_GO, HEIR, GIVE, SPARE})
_LOCKERS = frozenset(
    {HEIR, AGENT, GIVE}
    | {LIVING, BEFORE, ENTER, LOOK, SPARE, SPARED, MISSED, AFTER, WATCH, CHECK, ADD, LEAVE}
)

# What a store in the buffer may be: a new state, or one of two counters + 1.
OUT = "OUT"
TRYING = "TRYING"
HELD = "HELD"
RELEASING = "RELEASING"
COMPLETED = "completed"
ATTEMPTS = "attempts"

# What the investigator knows about a process. The states "b", "i" and "o" are followed by a digit: "1" if
# `completed` has changed since it was noted at T0, otherwise "0".
UNSEEN = ""
PASSED = "-"
ALIVE = "l"
NOTED = "b"
INDOORS = "i"
OUTDOORS = "o"
SAME = "s"

#: The capacity of a store buffer.
BUFFER = 2


class Process(NamedTuple):
    """One process, its row in memory, and what the investigator knows of it."""

    at: str = IDLE
    buffer: tuple[str, ...] = ()
    word: str = OUT
    row: bool = True
    seen: str = UNSEEN


class State(NamedTuple):
    """The state of the whole model."""

    permits: int
    processes: tuple[Process, ...]


Move = tuple[str, int, Process, tuple[Process, ...]]


class LockModel:
    """The steps of the lock.

    Args:
        without: The precaution to leave out, to check that the model then finds a violation:
            "releasing" (the row says HELD until the permit has been given back),
            "held last" (HELD is stored before the permit is taken),
            "dead first" (a row is read before asking whether its process lives),
            "alone" (a process releases the lock of another one without the file lock),
            "completed before out" (OUT arrives in memory before COMPLETED, as on a machine that does not keep
            the order of stores),
            "completed", "watch", "before the try", "file lock" (as in `robust_lock_model`),
            "not their heir" (the lock of a dead owner is taken over without clearing its row).
        interrupts: Whether an exception may end a call next to a semaphore operation and lose the permit.
        agents: Whether processes release the locks of others.
    """

    def __init__(self, *, without: str = "", interrupts: bool = False, agents: bool = False) -> None:
        self._without = without
        self._interrupts = interrupts
        self._agents = agents

    @staticmethod
    def start(number: int) -> State:
        """An initial state: `number` processes, all idle."""
        return State(1, (Process(),) * number)

    @staticmethod
    def start_with_a_dead_owner(number: int) -> State:
        """An initial state in which one of `number` processes has died as the owner."""
        return State(0, (Process(DEAD, word=HELD), *(Process(),) * (number - 1)))

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Every step of every process."""
        done: set[Process] = set()
        for number, process in enumerate(state.processes):
            if process in done:
                continue  # an equal process would take the same steps
            done.add(process)
            others = state.processes[:number] + state.processes[number + 1 :]
            if process.buffer:
                yield Step(
                    f"store [{process.buffer[0]}] arrives", _state(state.permits, _arrive(process), others)
                )
            if process.at == DEAD:
                continue
            if not process.buffer:
                # Only with an empty buffer: buffered stores arrive even after a death, so dying before they
                # do is the same as dying after.
                yield Step(f"killed at [{process.at}]", _killed(state.permits, process, others), fair=False)
            if self._interrupts and process.at in {GOT, LET_GO} and len(process.buffer) < BUFFER:
                lost = _store(process, *((ATTEMPTS, DONE) if process.at == GOT else (COMPLETED, DONE)))
                yield Step("interrupted: the permit is lost", _state(state.permits, lost, others), fair=False)
            for label, permits, after, rest in self._steps_of(state.permits, process, others):
                yield Step(label, _state(permits, after, rest))

    def _steps_of(self, permits: int, me: Process, others: tuple[Process, ...]) -> Iterator[Move]:
        at = me.at
        room = len(me.buffer) < BUFFER
        drained = not me.buffer
        if at in {IDLE, WANT}:
            if room:
                first = HELD if self._without == "held last" else TRYING
                yield f"words[place] = {first}", permits, _store(me, first, TRY), others
            if at == WANT:
                yield "give up", permits, me._replace(at=IDLE), others
            if self._file_lock_is_free(others):
                yield from self._with_file_lock(permits, me, others)
        elif at == TRY:
            if permits and drained:
                yield "permit_acquire: True", permits - 1, me._replace(at=GOT), others
            if not permits:
                yield "permit_acquire: False", permits, me._replace(at=FAILED), others
        elif at == FAILED:
            if room:
                yield "attempts += 1", permits, _store(me, ATTEMPTS, TRIED), others
        elif at == TRIED:
            if room:
                yield "words[place] = OUT", permits, _store(me, OUT, WANT), others
        elif at == GOT:
            if room:
                yield "words[place] = HELD", permits, _store(me, HELD, HOLD), others
        elif at == HOLD:
            if self._without == "releasing":
                yield "(no store) release", permits, me._replace(at=LET_GO), others
            elif room:
                yield "words[place] = RELEASING", permits, _store(me, RELEASING, LET_GO), others
        elif at == LET_GO:
            if drained:
                yield "permit_release()", permits + 1, me._replace(at=GAVE), others
        elif at in {GAVE, DONE}:
            if room:
                is_first = (at == GAVE) != (self._without == "completed before out")
                label, what = ("completed += 1", COMPLETED) if is_first else ("words[place] = OUT", OUT)
                yield label, permits, _store(me, what, DONE if at == GAVE else IDLE), others
        elif at in {HEIR, AGENT, GIVE}:
            yield from self._hand_on(permits, me, others)
        else:
            yield from self._investigate(permits, me, others)

    def _with_file_lock(self, permits: int, me: Process, others: tuple[Process, ...]) -> Iterator[Move]:
        room = len(me.buffer) < BUFFER
        if me.at == WANT:
            yield "filelock (restore)", permits, me._replace(at=LIVING), others
            for number, other in enumerate(others):
                said_so = other.row and other.word == HELD
                if said_so and self._without == "dead first" and other.seen == UNSEEN:
                    yield "reads HELD", permits, me, _with(others, number, other._replace(seen="h"))
                if other.at == DEAD and (said_so or other.seen == "h") and room:
                    # `dead_ones`: first "is it dead?", then the row. The store of HELD is part of this step.
                    yield "filelock; dead, and HELD", permits, _store(me, HELD, HEIR), others
        elif self._agents and not me.buffer and any(_owns(other) for other in others):
            yield "filelock (release for another)", permits, me._replace(at=AGENT), others

    def _hand_on(self, permits: int, me: Process, others: tuple[Process, ...]) -> Iterator[Move]:
        at = me.at
        drained = not me.buffer
        if at == HEIR:
            if drained:
                dead = tuple(
                    other._replace(row=False) if other.at == DEAD and other.word == HELD else other
                    for other in others
                )
                yield (
                    "bury the dead owners; unlock",
                    permits,
                    me._replace(at=HOLD),
                    others if self._without == "not their heir" else dead,
                )
        elif at == AGENT:
            # These stores are made at once, without the buffer: the next step would have to wait for them.
            robbed = [number for number, other in enumerate(others) if _owns(other)]
            rest = others
            for number in robbed:
                owner = others[number]
                away = owner._replace(word=OUT, at=IDLE if owner.at == HOLD else owner.at)
                rest = _with(rest, number, _counted(away, COMPLETED))
            if robbed:
                yield "completed += 1; words[holder] = OUT", permits, me._replace(at=GIVE), rest
            else:
                yield "nobody holds it any more; unlock", permits, me._replace(at=IDLE), others
        elif at == GIVE and drained:
            yield "permit_release(); unlock", permits + 1, me._replace(at=IDLE), others

    def _investigate(self, permits: int, me: Process, others: tuple[Process, ...]) -> Iterator[Move]:
        at = me.at
        room = len(me.buffer) < BUFFER
        drained = not me.buffer
        late = self._without == "before the try"
        if at == LIVING:
            for number, other in enumerate(others):
                if other.seen == UNSEEN:
                    seen = ALIVE if other.row and other.at != DEAD else PASSED
                    yield "is_alive?", permits, me, _with(others, number, other._replace(seen=seen))
            if all(other.seen != UNSEEN for other in others):
                yield "living is known", permits, me._replace(at=BEFORE), others
        elif at == BEFORE:
            for number, other in enumerate(others):
                if other.seen == ALIVE:
                    yield (
                        "note completed",
                        permits,
                        me,
                        _with(others, number, other._replace(seen=NOTED + "0")),
                    )
            if all(other.seen != ALIVE for other in others):
                yield "T0 is over", permits, me._replace(at=ENTER), others
        elif at == ENTER:
            if room:
                yield "words[place] = TRYING", permits, _store(me, TRYING, LOOK), others
        elif at == LOOK:
            if permits and drained:
                yield "take(False): True", permits - 1, me._replace(at=SPARE), others
            if not permits and room:
                yield "take(False): False (T1); attempts += 1", permits, _store(me, ATTEMPTS, MISSED), others
        elif at == SPARE:
            if drained:
                yield "give()", permits + 1, me._replace(at=SPARED), others
        elif at in {SPARED, MISSED}:
            if room:
                yield (
                    "words[place] = OUT",
                    permits,
                    _store(me, OUT, LEAVE if at == SPARED else AFTER),
                    others,
                )
        elif at == AFTER:
            for number, other in enumerate(others):
                if other.seen.startswith(NOTED):
                    seen = (OUTDOORS if self._without == "watch" else INDOORS) + (
                        "0" if late else other.seen[1]
                    )
                    yield "note attempts", permits, me, _with(others, number, other._replace(seen=seen))
            if not any(other.seen.startswith(NOTED) for other in others):
                yield "attempts are known", permits, me._replace(at=WATCH), others
        elif at == WATCH:
            yield "time is up, or somebody holds it", permits, me._replace(at=LEAVE), others
            for number, other in enumerate(others):
                if other.seen.startswith(INDOORS) and other.word == OUT:
                    seen = OUTDOORS + other.seen[1]
                    yield "is out", permits, me, _with(others, number, other._replace(seen=seen))
            if not any(other.seen.startswith(INDOORS) for other in others):
                yield "each has been without the permit", permits, me._replace(at=CHECK), others
        elif at == CHECK:
            yield from self._check(permits, me, others)
        elif at == ADD:
            if drained:
                rest = tuple(
                    other._replace(row=False) if other.at == DEAD and other.seen == PASSED else other
                    for other in others
                )
                yield "bury; give() for the dead", permits + 1, me._replace(at=LEAVE), rest
        elif at == LEAVE:
            yield "unlock", permits, me._replace(at=WANT), _forgotten(others)

    def _check(self, permits: int, me: Process, others: tuple[Process, ...]) -> Iterator[Move]:
        for number, other in enumerate(others):
            if other.seen.startswith(OUTDOORS):
                if other.seen[1] == "1" and self._without != "completed":
                    yield "completed differs", permits, me._replace(at=LEAVE), others
                else:
                    yield "the same", permits, me, _with(others, number, other._replace(seen=SAME))
            elif other.seen == SAME:
                if other.at == DEAD:
                    yield "has died", permits, me._replace(at=LEAVE), others
                else:
                    yield "still lives", permits, me, _with(others, number, other._replace(seen=ALIVE))
        if all(other.seen in {PASSED, ALIVE} for other in others):
            if any(other.seen == PASSED and other.row and other.word == HELD for other in others):
                yield "a dead owner: to be taken over", permits, me._replace(at=LEAVE), others
            else:
                yield "nobody living has it", permits, me._replace(at=ADD), others

    def _file_lock_is_free(self, others: tuple[Process, ...]) -> bool:
        lockers = _LOCKERS - {AGENT, GIVE} if self._without == "alone" else _LOCKERS
        return self._without == "file lock" or not any(other.at in lockers for other in others)


def wrong(state: State) -> str | None:
    """Report a breach of mutual exclusion, or a permit that exists twice."""
    owners = sum(process.at in _WITH_PERMIT for process in state.processes)
    if owners > 1:
        return "two living processes have the lock"
    if state.permits + owners > 1:
        return "there is a permit although a living process has the lock"
    heirs = any(process.at == HEIR for process in state.processes)
    estate = any(process.at == DEAD and process.row and process.word == HELD for process in state.processes)
    if estate and not heirs and state.permits + owners:
        return "a process has the lock, and another one may take it over from a dead one"
    return None


def waits(state: State) -> bool:
    """Whether a living process wants the lock, and no living one has it."""
    places = [process.at for process in state.processes]
    return any(at not in {DEAD, IDLE} for at in places) and not any(at in _WITH_PERMIT for at in places)


def arrived(state: State) -> bool:
    """Whether a living process has the lock."""
    return any(process.at == HOLD for process in state.processes)


def _owns(process: Process) -> bool:
    """Whether this process owns the lock and another one may know it, and so may release the lock for it.

    It can know it only from a message, and sending one empties the store buffer.
    """
    return process.word == HELD and process.row and not process.buffer and process.at in {HOLD, DEAD}


# Cached: in hundreds of thousands of states, each process has only a few hundred different values.


@cache
def _store(process: Process, what: str, at: str) -> Process:
    return process._replace(at=at, buffer=(*process.buffer, what))


@cache
def _arrive(process: Process) -> Process:
    """Let the oldest store reach memory; note what the investigator learns from it."""
    what = process.buffer[0]
    process = process._replace(buffer=process.buffer[1:])
    if what in {COMPLETED, ATTEMPTS}:
        return _counted(process, what)
    return process._replace(word=what)


def _counted(process: Process, what: str) -> Process:
    """Note that a counter is now higher than when the investigator read it."""
    seen = process.seen
    if what == COMPLETED and seen[:1] in {NOTED, INDOORS, OUTDOORS}:
        return process._replace(seen=seen[0] + "1")
    if what == ATTEMPTS and seen.startswith(INDOORS):
        return process._replace(seen=OUTDOORS + seen[1])
    return process


def _killed(permits: int, process: Process, others: tuple[Process, ...]) -> State:
    """The state after the death of `process`. If it held the file lock, this is free."""
    return _state(
        permits, changed(process, at=DEAD), _forgotten(others) if process.at in _LOCKERS else others
    )


def _forgotten(processes: tuple[Process, ...]) -> tuple[Process, ...]:
    return tuple([changed(process, seen=UNSEEN) for process in processes])


def _with(processes: tuple[Process, ...], number: int, process: Process) -> tuple[Process, ...]:
    return (*processes[:number], process, *processes[number + 1 :])


def _state(permits: int, process: Process, others: tuple[Process, ...]) -> State:
    everyone = [process, *others]
    if _LOCKERS.isdisjoint([one.at for one in everyone]):
        everyone = [one if one.seen in {UNSEEN, "h"} else changed(one, seen=UNSEEN) for one in everyone]
    # The dead whose rows are cleared are interchangeable, and so are the dead that hold nothing.
    everyone = [
        Process(DEAD, row=False)
        if one.at == DEAD and one.seen == UNSEEN and (not one.row or one.word == OUT)
        else one
        for one in everyone
    ]
    everyone.sort()
    return State(permits, tuple(everyone))
