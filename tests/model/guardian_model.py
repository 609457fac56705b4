"""A model of the guardian (`mpkit._platform.parent_death.guardian`) and the processes that it serves: a
parent, its children, the lines (messages) that they write to the guardian, and deaths at any moment.

How the model relates to the code:

- `Guardian` and `ExitWatcher` are the real classes. The model replaces the system below them: which processes
  live, what the socket contains, what a process descriptor reports. For each step, both objects are built
  again from the state.
- The other processes are short programs (`PROGRAMS`) that start a process or write a line. Each may be killed
  at any step.
- Other processes go on while the guardian works. Between two of its steps they may take any number of steps.
  Within one, at one of its questions to the system, they may take one step (or two, if `at_once` is 2).
- Killing a family is a single step here; `tests/unit/platform/test_families.py` tests its details. If there
  is no guardian, a child watches its parent from a thread, and that thread kills only its own process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count, islice
from typing import NamedTuple

import pytest

from mpkit._platform.hints import override
from mpkit._platform.parent_death import guardian
from mpkit._platform.processes import exits, identity
from mpkit._platform.processes.identity import ProcessIdentity
from tests.model.checker import Step

__all__ = ["PROGRAMS", "GuardianModel", "State", "arrived", "waits_for", "wrong"]

#: The parent; its two children; a child of A; an orphan that A has started.
P, A, B, D, O = range(5)  # noqa: E741
_NAMES = "PABDO"
_WHO = [ProcessIdentity(number + 1, 10 * (number + 1)) for number in range(5)]

Action = tuple[str, int, int]


def start(child: int) -> Action:
    return "start", child, 0


def tell(parent: int, child: int) -> Action:
    """Write the line ``W`` (watch): the child is to die with the parent."""
    return "tell", parent, child


def free(orphan: int) -> Action:
    """Write the line ``F`` (free): nobody's death may end this orphan."""
    return "free", orphan, 0


#: Make sure that there is a guardian, as `ParentLink.create` does.
ENSURE: Action = ("ensure", 0, 0)

_FAMILY = {P: [ENSURE, start(A), tell(P, A), ENSURE, start(B), tell(P, B)], A: [tell(P, A)], B: [tell(P, B)]}
PROGRAMS: dict[str, dict[int, list[Action]]] = {
    "two children": _FAMILY,
    "two children, one of which hangs before it registers itself": {**_FAMILY, A: []},
    "a grandchild that only the guardian knows": {
        P: [ENSURE, start(A), tell(P, A)],
        A: [tell(P, A), ENSURE, start(D), tell(A, D)],
        D: [tell(A, D)],
    },
    "an orphan": {
        P: [ENSURE, start(A), tell(P, A)],
        A: [tell(P, A), start(O), free(O)],
        O: [free(O)],
    },
}

#: Each child and the process that forked it, whose family it is killed with. Not D: a fork server forked it.
_STARTED_BY = {A: P, B: P, O: A}
#: Each child and the parent that it has to die with.
_DIES_WITH = {A: P, B: P, D: A}

NEW, ALIVE, DEAD = "new", "alive", "dead"


class Process(NamedTuple):
    """A process of the application."""

    at: str = NEW
    step: int = 0
    #: The number of the guardian that it is connected to.
    line: int = -1
    #: Its guardian was dead when it registered itself, so it watches its parent from a thread.
    watches: bool = False
    #: It lived when the guardian was killed, so nothing need end it.
    excused: bool = False
    #: An orphan whose start was complete before the parent died: it must not be killed.
    owed: bool = False


class Keeper(NamedTuple):
    """The guardian between two of its steps."""

    at: str = "none"
    number: int = -1
    #: Lines written and not read yet.
    socket: tuple[Action, ...] = ()
    #: Lines read and not obeyed yet.
    lines: tuple[Action, ...] = ()
    ended: frozenset[ProcessIdentity] = frozenset()
    connected: bool = True
    watched: frozenset[ProcessIdentity] = frozenset()
    parents: frozenset[tuple[ProcessIdentity, ProcessIdentity]] = frozenset()
    children: frozenset[tuple[ProcessIdentity, ProcessIdentity]] = frozenset()
    free: frozenset[ProcessIdentity] = frozenset()
    found_ended: frozenset[ProcessIdentity] = frozenset()


class State(NamedTuple):
    """The state of the whole model."""

    processes: tuple[Process, ...]
    keeper: Keeper
    complaint: str = ""

    @override
    def __repr__(self) -> str:
        living = "".join(_NAMES[number] for number, one in enumerate(self.processes) if one.at == ALIVE)
        return f"alive: {living or 'nobody'}; {self.keeper.at}, to read: {len(self.keeper.socket)}"


class _BlockedError(Exception):
    """The guardian would sleep: there is nothing for it to do."""


class OldWatcher(exits.ExitWatcher):
    """An earlier `ExitWatcher`: if a watched process was added again and had ended, it was forgotten."""

    @override
    def add(self, process: ProcessIdentity, *, by_event: bool = True) -> bool:
        self._watched.discard(process)
        return super().add(process, by_event=by_event)


class OldGuardian(guardian.Guardian):
    """An earlier `Guardian`: if the parent in a line had ended, it killed that one child, at once."""

    @override
    def _watch(self, parent: ProcessIdentity, child: ProcessIdentity) -> None:
        if not self._watcher.add(child):
            return
        if not self._watcher.add(parent):
            self._found_ended.add(parent)
        self._free.discard(child)
        self._parents[child] = parent
        self._children.setdefault(parent, set()).add(child)
        if self.take_found_ended():
            self._forget_child(child)
            self._kill({child}, spared=self._free)


class GuardianModel:
    """The steps of the guardian and of the processes around it.

    Args:
        programs: One of `PROGRAMS`.
        monkeypatch: Replaces the functions that ask the system.
        may_be_killed: Whether the guardian itself may be killed, once.
        blind: Whether the system has no process descriptors.
        at_once: How many steps others may take during one question of the guardian.
        without: The precaution to leave out, to check that the model then finds a violation:
            "both fixes" (use both earlier classes above),
            "all lines first" (use the earlier guardian, which kills at once when a line says so),
            "one more look" (act at once on ends that were found while obeying lines; do not read again),
            "the line last" (without process descriptors, look at the line before the processes),
            "lines before ends" (act on ends before obeying the lines that had arrived),
            "the parent tells" (only the child registers itself),
            "the child tells" (only the parent registers the child),
            "a thread" (a child whose guardian is dead does not watch its parent itself).
    """

    def __init__(
        self,
        programs: dict[int, list[Action]],
        monkeypatch: pytest.MonkeyPatch,
        *,
        may_be_killed: bool = False,
        blind: bool = False,
        at_once: int = 1,
        without: str = "",
    ) -> None:
        self._programs = programs
        self._may_be_killed = may_be_killed
        self._without = without
        self._at_once = at_once
        self._system = _System(self, blind, look_last=without != "the line last")
        monkeypatch.setattr(identity, "is_alive", self._system.is_alive)
        monkeypatch.setattr(exits, "wait_readable", self._system.wait_readable)

    def begin(self) -> State:
        """The initial state: only the parent lives."""
        return State((Process(ALIVE), *(Process(),) * (len(_WHO) - 1)), Keeper())

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Every step of the processes and of the guardian."""
        yield from self.steps_of_others(state)
        if state.keeper.at not in {"wait", "obey", "act"}:
            return
        label = f"the guardian: {state.keeper.at}"
        system = self._system
        after = self._try_step_of_guardian(state)
        if after is not None:
            yield Step(label, after)
        for point in range(system.questions):
            for choice in count():
                after = self._try_step_of_guardian(state, point, choice)
                if not system.meanwhile:
                    break
                if after is not None:
                    yield Step(f"{label}; at its question {point}: {system.meanwhile}", after, fair=False)

    def _try_step_of_guardian(self, state: State, point: int = -1, choice: int = 0) -> State | None:
        """The state after a step of the guardian during which, at its question number `point`, the step
        number `choice` of the others happens. None if the guardian would sleep.
        """
        self._system.begin(state, point, choice)
        try:
            return self._step_of_guardian(state)
        except _BlockedError:
            return None

    def meanwhile(self, state: State) -> Iterator[Step[State]]:
        """What the others may do during one question of the guardian."""
        steps = list(self.steps_of_others(state))
        yield from steps
        if self._at_once > 1:
            for first in steps:
                for second in self.steps_of_others(first.state):
                    yield Step(f"{first.label}, {second.label}", second.state)

    def steps_of_others(self, state: State) -> Iterator[Step[State]]:
        """The steps and the deaths of the processes, and the death of the guardian."""
        for number, process in enumerate(state.processes):
            if process.at != ALIVE:
                continue
            program = self._programs.get(number, [])
            if process.step < len(program):
                yield self._act(state, number, program[process.step])
            if number != O:
                yield Step(f"{_NAMES[number]} is killed", _with(state, number, at=DEAD), fair=False)
            parent = _DIES_WITH.get(number)
            if process.watches and parent is not None and state.processes[parent].at == DEAD:
                yield Step(f"the thread of {_NAMES[number]} ends it", _with(state, number, at=DEAD))
        keeper = state.keeper
        if self._may_be_killed and keeper.number == 0 and keeper.at not in {"none", "dead"}:
            after = state._replace(keeper=Keeper("dead", 0))
            for number, process in enumerate(state.processes):
                if process.at == ALIVE and number != P:
                    after = _with(after, number, excused=True)
            yield Step("the guardian is killed", after, fair=False)

    def _act(self, state: State, number: int, action: Action) -> Step[State]:
        kind, first, second = action
        me = state.processes[number]
        keeper = state.keeper
        state = _with(state, number, step=me.step + 1)
        label = f"{_NAMES[number]}: {kind}"
        heard = keeper.number == me.line and keeper.at not in {"none", "dead", "over"}
        if kind == "ensure":
            if not heard:
                state = _with(state, number, line=keeper.number + 1)
                state = state._replace(keeper=Keeper("wait", keeper.number + 1))
        elif kind == "start":
            state = _with(state, first, at=ALIVE, line=me.line)
        else:
            label += f" {_NAMES[second] if kind == 'tell' else _NAMES[first]}"
            itself = number == (second if kind == "tell" else first)
            left_out = self._without == ("the child tells" if itself else "the parent tells")
            if heard and not left_out:
                state = state._replace(keeper=keeper._replace(socket=(*keeper.socket, action)))
                if kind == "free" and not itself and state.processes[P].at == ALIVE:
                    state = _with(state, first, owed=True)
            elif kind == "tell" and not heard and itself and self._without != "a thread":
                state = _with(state, number, watches=True)
        return Step(label, state)

    def _step_of_guardian(self, state: State) -> State:
        """One round of `guardian.main` is: wait; obey one line after the other; act on what has ended."""
        system = self._system
        keeper = state.keeper
        its_class = OldWatcher if self._without == "both fixes" else exits.ExitWatcher
        watcher = its_class.__new__(its_class)
        watcher._watched = set(keeper.watched)
        watcher._blind = set(keeper.watched) if system.blind else set()
        system.events = set() if system.blind else set(keeper.watched)
        watcher._source = system  # type: ignore[assignment]
        kind = OldGuardian if self._without in {"both fixes", "all lines first"} else guardian.Guardian
        one = kind(watcher, system.kill)
        one._parents = dict(keeper.parents)
        for parent, child in keeper.children:
            one._children.setdefault(parent, set()).add(child)
        one._free, one._found_ended = set(keeper.free), set(keeper.found_ended)

        changes: dict[str, object] = {}
        if keeper.at == "wait":
            system.hurry = one.is_in_a_hurry
            ended, readable = watcher.wait(0.0, also=0 if keeper.connected else None)
            ended |= one.take_found_ended()
            socket = system.state.keeper.socket
            changes = {"at": "obey", "ended": frozenset(ended)}
            if readable:
                changes |= {"lines": socket, "socket": (), "connected": bool(socket)}
            if self._without == "lines before ends":
                one.ended(ended)
                changes["ended"] = frozenset()
        elif keeper.at == "obey":
            if keeper.lines:
                one.obey(_text(keeper.lines[0]))
                changes["lines"] = keeper.lines[1:]
            else:
                changes["at"] = "act"
        else:
            more = one.take_found_ended() if self._without == "one more look" else set[ProcessIdentity]()
            one.ended(more | keeper.ended)
            changes |= {"ended": frozenset[ProcessIdentity](), "at": "wait"}
            if not keeper.connected and one.idle:
                changes["at"] = "over"
        now = system.state
        if now.keeper.number != keeper.number or now.keeper.at != keeper.at:
            return now  # it was killed in the middle
        after = now.keeper._replace(
            watched=frozenset(watcher._watched),
            parents=frozenset(one._parents.items()),
            children=frozenset(
                (parent, child) for parent in one._children for child in one._children[parent]
            ),
            free=frozenset(one._free),
            found_ended=frozenset(one._found_ended),
        )
        return now._replace(keeper=after._replace(**changes))  # type: ignore[arg-type]


class _System:
    """Answers the guardian's questions to the system, and lets the others take steps meanwhile."""

    def __init__(self, model: GuardianModel, blind: bool, *, look_last: bool) -> None:
        self._model = model
        self._look_last = look_last
        self.blind = blind
        self.state: State = State((), Keeper())
        self.events: set[ProcessIdentity] = set()
        self.hurry = False
        self.begin(self.state, -1, 0)

    def begin(self, state: State, point: int, choice: int) -> None:
        """Prepare a step of the guardian; at its question `point`, step `choice` of the others comes."""
        self.state = state
        self.questions = 0
        self.meanwhile = ""
        self._point, self._choice = point, choice

    def _ask(self) -> None:
        if self.questions == self._point:
            for step in islice(self._model.meanwhile(self.state), self._choice, self._choice + 1):
                self.state = step.state
                self.meanwhile = step.label
        self.questions += 1

    # What `ExitWatcher` calls.

    def is_alive(self, process: ProcessIdentity) -> bool:
        self._ask()
        return self.state.processes[process.pid - 1].at == ALIVE

    def add(self, process: ProcessIdentity) -> bool:
        self._ask()
        if self.blind or self.state.processes[process.pid - 1].at != ALIVE:
            return False  # in this model, a process is reaped as soon as it ends
        self.events.add(process)
        return True

    def discard(self, process: ProcessIdentity) -> None:
        self.events.discard(process)

    def wait(self, timeout: float | None, also: int | None) -> tuple[set[ProcessIdentity], bool]:
        # The system polls one descriptor after the other, that of the socket last.
        ended = {process for process in self.events if self.state.processes[process.pid - 1].at == DEAD}
        self._ask()
        readable = also is not None and self._is_readable()
        # Without descriptors the guardian never blocks: it wakes up at intervals and looks at the processes.
        if not ended and not readable and not self.hurry and not self.blind:
            raise _BlockedError
        return ended, readable

    def wait_readable(self, descriptor: int, timeout: float | None) -> bool:
        self._ask()
        return self._look_last and self._is_readable()

    def _is_readable(self) -> bool:
        keeper = self.state.keeper
        return bool(keeper.socket) or not any(
            one.at == ALIVE and one.line == keeper.number for one in self.state.processes
        )

    def kill(self, roots: Iterable[ProcessIdentity], *, spared: Collection[ProcessIdentity] = ()) -> None:
        """Kill `roots` and their descendants in one step."""
        self._ask()
        todo = [root.pid - 1 for root in roots if root not in spared]
        for number in todo:
            process = self.state.processes[number]
            parent = _DIES_WITH.get(number)
            if process.at == ALIVE:
                if process.owed:
                    self.state = self.state._replace(
                        complaint="an orphan was killed although its start was complete"
                    )
                if parent is not None and self.state.processes[parent].at == ALIVE:
                    self.state = self.state._replace(
                        complaint="a process was killed although its parent lives"
                    )
                todo.extend(
                    child
                    for child, starter in _STARTED_BY.items()
                    if starter == number and _WHO[child] not in spared
                )
                self.state = _with(self.state, number, at=DEAD)


def wrong(state: State) -> str | None:
    """Report a process that was killed wrongly, or a guardian that ended while it was still needed."""
    if state.complaint:
        return state.complaint
    if state.keeper.at == "over" and any(
        one.at == ALIVE and one.line == state.keeper.number for one in state.processes
    ):
        return "the guardian has ended although a process that is connected to it lives"
    return None


def _bereaved(state: State) -> Iterator[int]:
    """The processes that live although the parent that they have to die with is dead."""
    for child, parent in _DIES_WITH.items():
        process = state.processes[child]
        if process.at == ALIVE and state.processes[parent].at == DEAD and not process.excused:
            yield child


def waits_for(programs: dict[int, list[Action]]) -> Callable[[State], bool]:
    """Whether a process that has lost its parent has to be ended. One that hangs before it registers itself
    has to be only if its parent lived long enough to register it.
    """

    def waits(state: State) -> bool:
        for child in _bereaved(state):
            parent = _DIES_WITH[child]
            if programs.get(child) or state.processes[parent].step > programs[parent].index(
                tell(parent, child)
            ):
                return True
        return False

    return waits


def arrived(state: State) -> bool:
    """Whether no process that has lost its parent is alive."""
    return not any(_bereaved(state))


def _text(action: Action) -> bytes:
    kind, first, second = action
    if kind == "free":
        return b"F %d %d" % _WHO[first]
    return b"W %d %d %d %d" % (*_WHO[first], *_WHO[second])


def _with(state: State, number: int, **changes: object) -> State:
    process = state.processes[number]._replace(**changes)  # type: ignore[arg-type]
    return state._replace(processes=(*state.processes[:number], process, *state.processes[number + 1 :]))
