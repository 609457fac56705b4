"""A small explicit-state model checker. Breadth first, so that a counterexample is as short as possible.

A model is a function from a state (a hashable value) to its steps. A step is one atomic action of one
process: one load or store of a word, one operation on a semaphore, the arrival of one buffered store in
memory, a death.
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
    """One transition to another state."""

    label: str
    state: S
    fair: bool = True
    """Whether `stuck` may count on this step. False for a death: nobody may need one to go on."""


P = TypeVar("P")


class _Changed(Protocol):
    def __call__(self, process: P, **changes: object) -> P: ...


# `typed`, because named tuples of different classes with the same values are equal.
@lru_cache(maxsize=None, typed=True)
def _replaced(process: Any, **changes: object) -> Any:
    return process._replace(**changes)


#: `process._replace(**changes)`, cached: in hundreds of thousands of states, each process has only a few
#: thousand different values.
changed: _Changed = _replaced


class Violation(AssertionError):
    """A state was reached that must not be; with the steps that led to it."""

    def __init__(self, what: str, trace: list[str]) -> None:
        super().__init__("\n".join([what, *(f"  {number:3} {line}" for number, line in enumerate(trace, 1))]))
        self.what = what
        self.trace = trace


class Explored(Generic[S]):
    """All reachable states.

    Attributes:
        came: Where each state was first reached from, and by which step. None for a start.
        before: The states from which a fair step leads to each state.
    """

    def __init__(self) -> None:
        self.came: dict[S, tuple[S, str] | None] = {}
        self.before: dict[S, list[S]] = {}

    def trace(self, state: S) -> list[str]:
        """The steps that first led to `state`, each with its resulting state."""
        lines: list[str] = []
        at = self.came[state]
        while at is not None:
            lines.append(f"{at[1]:40} -> {state}")
            state = at[0]
            at = self.came[state]
        return lines[::-1]

    def stuck(self, waits: Callable[[S], bool], arrived: Callable[[S], bool]) -> None:
        """Check that fair steps lead from each state that `waits` to one that has `arrived`.

        Raises:
            Violation: There is a waiting state from which no fair steps lead to an arrived one.
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
        starts: The initial states.
        steps: Yields all steps from a state.
        wrong: Says what is wrong with a state, or None.
        remember_fair_steps: Whether to keep what `Explored.stuck` needs.

    Raises:
        Violation: `wrong` rejected a state.
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
