"""A model of the robust lock (`mpkit._shm.locks.robust_lock`): any number of acquisitions by a few processes,
each of which may die at any step.

How the model simplifies the code:

- A row's word only grows, so ``words[x] == snapshot`` means "nothing has been stored to x since the
  snapshot". The model keeps that one bit instead of the numbers, and so covers runs of any length. Only one
  process investigates at a time, so the bit can be kept in the process that is looked at (`Process.seen`).
- There is no time: a slice may end at any moment, a process may begin to investigate after its first failure,
  and an investigation may give up at any moment. A process stopped by SIGSTOP simply takes no more steps.
- Memory is that of x86: a store waits in the buffer of its process and reaches memory later, in order.
  Semaphore operations that change the semaphore wait until the buffer is empty. A *failed* attempt to take
  the permit changes nothing and does not wait.
- Processes are interchangeable, so states that differ only in which process is which count as one.

The label of each step is the line of code that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from tests.model.checker import Step, changed

# Where a process is. Outside an investigation:
NEW = "new"  # no row: has not joined, or has left
JOIN = "join"  # has the file lock, about to join
OUT = "out"  # joined, does not want the lock
TRY = "try"  # has stored `inside`; about to try for the permit
HOLD = "hold"  # has the permit
GAVE = "gave"  # has given the permit back; about to store `completed + 1`
WANT = "want"  # has failed and still wants the lock
# Investigating (holds the file lock):
LIVING = "i-living"
BEFORE = "i-before"
ENTER = "i-enter"
LOOK = "i-try"
SPARE = "i-hold"  # got the permit, so it was not lost
SPARED = "i-gave"
AFTER = "i-after"
WATCH = "i-watch"
CHECK = "i-check"
ADD = "i-add"
LEAVE = "i-leave"
DEAD = "dead"

_HOLDERS = frozenset({HOLD, SPARE})
_LOCKERS = frozenset({JOIN, LIVING, BEFORE, ENTER, LOOK, SPARE, SPARED, AFTER, WATCH, CHECK, ADD, LEAVE})

# What a store in the buffer may be.
INSIDE = "in"  # value + INSIDE
FAILED = "out"  # value + ATTEMPT
COMPLETED = "done"  # (value | LOW) + 1
NO_ROW = "row0"  # rows.leave

# What the investigator knows about a process. The states "b", "i" and "o" are followed by a digit: "1" if
# `completed` has changed since `before` was noted, otherwise "0".
UNSEEN = ""
PASSED = "-"  # dead or without a row when it was looked at, or cleared of suspicion
ALIVE = "l"
NOTED = "b"  # b0, b1: `before` noted
INDOORS = "i"  # i0, i1: was inside when `after` was noted, and has not been stored to since
OUTDOORS = "o"  # o0, o1: has been seen outside
SAME = "s"  # its `completed` was still that of T0

#: The capacity of a store buffer. Two suffice for each store to be overtaken by what follows it.
BUFFER = 2


class Process(NamedTuple):
    """One process, its word in memory, and what the investigator knows of it."""

    at: str = OUT
    buffer: tuple[str, ...] = ()
    inside: bool = False
    row: bool = True
    seen: str = UNSEEN


class State(NamedTuple):
    """The state of the whole model."""

    permits: int
    processes: tuple[Process, ...]


class RobustLockModel:
    """The steps of the lock.

    Args:
        without: The precaution to leave out, to check that the model then finds a violation:
            "before the try" (note `completed` after the failed try instead of before it),
            "completed" (do not compare it at all),
            "watch" (do not wait until the living have been outside),
            "inside first" (store `inside` after taking the permit),
            "outside last" (store the new `completed` before giving the permit back),
            "file lock" (several processes investigate at a time),
            "stay while inside" (give the row back although a thread is still inside),
            "join alone" (join without the file lock).
        joining: Whether processes join and leave.
    """

    def __init__(self, *, without: str = "", joining: bool = False) -> None:
        self._without = without
        self._joining = joining

    def start(self, number: int) -> State:
        """An initial state: `number` processes, all outside."""
        return State(1, (Process(NEW, row=False) if self._joining else Process(),) * number)

    @staticmethod
    def start_with_a_dead_holder(number: int) -> State:
        """An initial state in which one of `number` processes has died with the permit."""
        return State(0, (Process(DEAD), *(Process(),) * (number - 1)))

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
            for label, permits, after, rest in self._steps_of(state.permits, process, others):
                yield Step(label, _state(permits, after, rest))

    def _steps_of(
        self, permits: int, me: Process, others: tuple[Process, ...]
    ) -> Iterator[tuple[str, int, Process, tuple[Process, ...]]]:
        at = me.at
        room = len(me.buffer) < BUFFER
        drained = not me.buffer
        if at == NEW:
            if (self._file_lock_is_free(others) or self._without == "join alone") and drained:
                yield "filelock.try_lock (join)", permits, me._replace(at=JOIN), others
        elif at == JOIN:
            yield "words[at] = me.pid; unlock", permits, me._replace(at=OUT, row=True, inside=False), others
        elif at in {OUT, WANT}:
            if self._without == "inside first":
                yield "(no store) try for the permit", permits, me._replace(at=TRY), others
            elif room:
                yield "words[at] = value + INSIDE", permits, _store(me, INSIDE, TRY), others
            if at == WANT:
                yield "give up (deadline)", permits, me._replace(at=OUT), others
                if self._file_lock_is_free(others):
                    yield "filelock.try_lock (investigate)", permits, me._replace(at=LIVING), others
            elif self._joining and room:
                yield "rows.leave", permits, _store(me, NO_ROW, NEW), others
        elif at == TRY:
            if permits and drained:
                yield "permit_acquire: True", permits - 1, me._replace(at=HOLD), others
            if not permits and room:
                yield (
                    "permit_acquire: False; words[at] = value + ATTEMPT",
                    permits,
                    _store(me, FAILED, WANT),
                    others,
                )
            if self._without == "stay while inside" and me.row and NO_ROW not in me.buffer and room:
                yield "rows.leave (too early)", permits, _store(me, NO_ROW, TRY), others
            if room:
                yield "unwind: words[at] = (value | LOW) + 1", permits, _store(me, COMPLETED, OUT), others
        elif at == HOLD:
            if self._without == "inside first" and not me.inside and INSIDE not in me.buffer:
                if room:
                    yield "words[at] = value + INSIDE (too late)", permits, _store(me, INSIDE, HOLD), others
            elif self._without == "outside last":
                if room:
                    yield (
                        "words[at] = (value | LOW) + 1 (too early)",
                        permits,
                        _store(me, COMPLETED, GAVE),
                        others,
                    )
            elif drained:
                yield "permit_release()", permits + 1, me._replace(at=GAVE), others
        elif at == GAVE:
            if self._without == "outside last":
                if drained:
                    yield "permit_release() (too late)", permits + 1, me._replace(at=OUT), others
            elif room:
                yield "words[at] = (value | LOW) + 1", permits, _store(me, COMPLETED, OUT), others
        else:
            yield from self._investigate(permits, me, others)

    def _investigate(
        self, permits: int, me: Process, others: tuple[Process, ...]
    ) -> Iterator[tuple[str, int, Process, tuple[Process, ...]]]:
        at = me.at
        room = len(me.buffer) < BUFFER
        drained = not me.buffer
        first = "before" if self._without != "before the try" else "nothing"
        if at == LIVING:
            # everyone = rows.taken(); living = [... if identity.is_alive(process)]
            for number, other in enumerate(others):
                if other.seen == UNSEEN:
                    seen = ALIVE if other.row and other.at != DEAD else PASSED
                    yield "is_alive?", permits, me, _with(others, number, other._replace(seen=seen))
            if all(other.seen != UNSEEN for other in others):
                yield "living is known", permits, me._replace(at=BEFORE), others
        elif at == BEFORE:
            # The line "before = ...".
            for number, other in enumerate(others):
                if other.seen == ALIVE:
                    yield (
                        f"note {first}",
                        permits,
                        me,
                        _with(others, number, other._replace(seen=NOTED + "0")),
                    )
            if all(other.seen != ALIVE for other in others):
                yield "T0 is over", permits, me._replace(at=ENTER), others
        elif at == ENTER:
            if room:
                yield "words[self.at] = value + INSIDE", permits, _store(me, INSIDE, LOOK), others
        elif at == LOOK:
            if permits and drained:
                yield "permit_acquire(False): True", permits - 1, me._replace(at=SPARE), others
            if not permits and room:
                yield "permit_acquire(False): False (T1)", permits, _store(me, FAILED, AFTER), others
        elif at == SPARE:
            if drained:
                yield "permit_release()", permits + 1, me._replace(at=SPARED), others
        elif at == SPARED:
            if room:
                yield "words[self.at] = (value | LOW) + 1", permits, _store(me, COMPLETED, LEAVE), others
        elif at == AFTER:
            # The line "after = ...".
            for number, other in enumerate(others):
                if other.seen.startswith(NOTED):
                    changed = other.seen[1] if self._without != "before the try" else "0"
                    where = INDOORS if other.inside and self._without != "watch" else OUTDOORS
                    yield (
                        "note after",
                        permits,
                        me,
                        _with(others, number, other._replace(seen=where + changed)),
                    )
            if not any(other.seen.startswith(NOTED) for other in others):
                yield "after is known", permits, me._replace(at=WATCH), others
        elif at == WATCH:
            # while waiting: ... waiting = [at for at in waiting if words[at + column] == after[at]]
            if any(other.seen.startswith(INDOORS) for other in others):
                yield "time is up", permits, me._replace(at=LEAVE), others
            else:
                yield "all have been outside", permits, me._replace(at=CHECK), others
        elif at == CHECK:
            # The last loop over `living`.
            for number, other in enumerate(others):
                if other.seen.startswith(OUTDOORS):
                    if other.seen[1] == "1" and self._without != "completed":
                        yield "completed differs", permits, me._replace(at=LEAVE), others
                    else:
                        yield (
                            "completed is the same",
                            permits,
                            me,
                            _with(others, number, other._replace(seen=SAME)),
                        )
                elif other.seen == SAME:
                    if other.at == DEAD:
                        yield "has died", permits, me._replace(at=LEAVE), others
                    else:
                        yield "still lives", permits, me, _with(others, number, other._replace(seen=PASSED))
            if all(other.seen == PASSED for other in others):
                yield "the holder is dead", permits, me._replace(at=ADD), others
        elif at == ADD:
            if drained:
                yield "permit_release() for the dead", permits + 1, me._replace(at=LEAVE), others
        elif at == LEAVE:
            yield "filelock.unlock", permits, me._replace(at=WANT), _forgotten(others)

    def _file_lock_is_free(self, others: tuple[Process, ...]) -> bool:
        return self._without == "file lock" or not any(other.at in _LOCKERS for other in others)


def wrong(state: State) -> str | None:
    """Report a breach of mutual exclusion, or a second permit: one that a dead process held and that was
    replaced more than once, or too early.
    """
    holders = sum(process.at in _HOLDERS for process in state.processes)
    if holders > 1:
        return "two living processes have the lock"
    if state.permits > 1:
        return "more than one permit"
    if state.permits + holders > 1:
        return "there is a permit although a living process has the lock"
    return None


def waits(state: State) -> bool:
    """Whether a living process wants the lock, and no living one has it."""
    places = [process.at for process in state.processes]
    return any(at not in {DEAD, OUT, NEW, JOIN} for at in places) and not any(at in _HOLDERS for at in places)


def arrived(state: State) -> bool:
    """Whether a living process has the lock."""
    return any(process.at == HOLD for process in state.processes)


# Cached: in tens of thousands of states, each process has only a few hundred different values.


@cache
def _store(process: Process, what: str, at: str) -> Process:
    return process._replace(at=at, buffer=(*process.buffer, what))


@cache
def _arrive(process: Process) -> Process:
    """Let the oldest store reach memory; note what the investigator learns from it."""
    what = process.buffer[0]
    process = process._replace(buffer=process.buffer[1:])
    if what == NO_ROW:
        return process._replace(row=False)
    seen = process.seen
    if seen[:1] in {NOTED, INDOORS, OUTDOORS}:
        seen = (OUTDOORS if seen[0] == INDOORS else seen[0]) + ("1" if what == COMPLETED else seen[1])
    return process._replace(inside=what == INSIDE, seen=seen)


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
        everyone = [changed(one, seen=UNSEEN) if one.seen else one for one in everyone]
    # The dead are interchangeable, except those that an investigator noted something about while they lived.
    everyone = [Process(DEAD) if one.at == DEAD and one.seen == UNSEEN else one for one in everyone]
    everyone.sort()
    return State(permits, tuple(everyone))
