"""A small explicit-state model checker: breadth first, so a counterexample is as short as can be.

A model is a function from a state (a hashable value) to its steps. A step is one action of one process that
no other process can see half done: one load or store of a word, one operation on a semaphore, the way of one
store from a processor's store buffer into memory, a death.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

# A generic named tuple: on 3.10 the standard library has none.
from typing_extensions import NamedTuple

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One way to go on."""

    label: str
    state: S
    fair: bool = True
    """Whether `stuck` may use it. A death is not fair: nobody may be rescued by one."""


P = TypeVar("P")


class _Changed(Protocol):
    def __call__(self, process: P, **changes: object) -> P: ...


# By type as well: named tuples of different kinds with the same values are equal.
@lru_cache(maxsize=None, typed=True)
def _replaced(process: Any, **changes: object) -> Any:
    return process._replace(**changes)


#: A process, a named tuple, with other values in some of its fields. It is in one of a few thousand ways, in
#: hundreds of thousands of states: so each change is made once.
changed: _Changed = _replaced


class Violation(AssertionError):
    """A state that must not be reached, and how it was."""

    def __init__(self, what: str, trace: list[str]) -> None:
        super().__init__("\n".join([what, *(f"  {number:3} {line}" for number, line in enumerate(trace, 1))]))
        self.what = what
        self.trace = trace


class Explored(Generic[S]):
    """All states that can be reached.

    Attributes:
        came: for each state the one it was first reached from, and by which step.
        before: for each state those that lead to it by a fair step.
    """

    def __init__(self) -> None:
        self.came: dict[S, tuple[S, str] | None] = {}
        self.before: dict[S, list[S]] = {}

    def trace(self, state: S) -> list[str]:
        """The steps that led to `state`, each with the state that it led to."""
        lines: list[str] = []
        at = self.came[state]
        while at is not None:
            lines.append(f"{at[1]:40} -> {state}")
            state = at[0]
            at = self.came[state]
        return lines[::-1]

    def stuck(self, waits: Callable[[S], bool], arrived: Callable[[S], bool]) -> None:
        """Check that whoever `waits` can still arrive, by fair steps alone.

        Raises:
            Violation: a state in which somebody waits, from which no state that has `arrived` can be reached.
        """
        good = {state for state in self.came if arrived(state)}
        todo = deque(good)
        while todo:
            for earlier in self.before.get(todo.popleft(), ()):
                if earlier not in good:
                    good.add(earlier)
                    todo.append(earlier)
        for state in self.came:
            if state not in good and waits(state):
                raise Violation("nothing that the living can do leads on from here", self.trace(state))


def explore(
    starts: Collection[S],
    steps: Callable[[S], Iterable[Step[S]]],
    wrong: Callable[[S], str | None],
    *,
    remember_fair_steps: bool = False,
) -> Explored[S]:
    """Visit every state that can be reached from `starts`.

    Args:
        starts: where the model begins.
        steps: all ways to go on from a state.
        wrong: says what is wrong with a state, or None.
        remember_fair_steps: keep what `Explored.stuck` needs.

    Raises:
        Violation: `wrong` had something to say.
    """
    found: Explored[S] = Explored()
    came, before = found.came, found.before
    todo = deque(starts)
    for state in starts:
        came[state] = None
    while todo:
        state = todo.popleft()
        complaint = wrong(state)
        if complaint is not None:
            raise Violation(complaint, found.trace(state))
        for label, after, fair in steps(state):
            if after not in came:
                came[after] = (state, label)
                todo.append(after)
            if remember_fair_steps and fair:
                before.setdefault(after, []).append(state)
    return found
