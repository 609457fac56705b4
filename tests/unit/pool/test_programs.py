"""Programs that stopped tasks have started: when they are told to end, killed, and no longer waited for."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.deadlines import NEVER
from mpkit._shm.locks import remains as _remains
from mpkit._shm.locks.remains import Member
from mpkit.pool._engine import programs as _programs
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.remains import Remains

_ONE, _TWO, _CHILD = (ProcessIdentity(1_000_000 + number, number) for number in range(3))
_GRACE = 10.0


class Scene:
    """Imitates the system; its clock moves only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.told: list[ProcessIdentity] = []
        self.killed: list[ProcessIdentity] = []
        self.foreign: set[ProcessIdentity] = set()
        self.gone: set[ProcessIdentity] = set()
        self.programs = Programs(_GRACE, lambda program: program not in self.gone)
        monkeypatch.setattr(_programs, "CLOCK", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(parent_watch, "signal_to_end", self._signal)
        monkeypatch.setattr(families, "kill_families", self._kill)
        monkeypatch.setattr(signalling, "may_be_signalled", lambda program: program not in self.foreign)

    def _signal(self, roots: list[ProcessIdentity], signum: int) -> list[ProcessIdentity]:
        assert signum == signal.SIGTERM
        self.told += roots
        return [*roots, _CHILD]

    def _kill(self, roots: Iterable[ProcessIdentity]) -> None:
        self.killed += roots

    def look(self) -> float:
        return self.programs.look_after(self.now)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_programs_that_end_in_time_are_forgotten(scene: Scene) -> None:
    assert not scene.programs
    assert scene.look() == NEVER
    scene.programs.terminate([_ONE])
    assert scene.told == [_ONE]
    assert scene.look() == scene.now + _GRACE
    for program in (_ONE, _CHILD):
        assert program in scene.programs
        assert scene.programs
        scene.programs.ended(program)
    assert not scene.programs
    assert scene.look() == NEVER
    assert scene.killed == []


def test_programs_that_do_not_end_in_time_are_killed_and_waited_for(scene: Scene) -> None:
    scene.programs.terminate([_ONE])
    scene.now += _GRACE
    assert scene.look() == scene.now + _programs._KILL_PATIENCE_SECONDS
    assert scene.killed == [_ONE, _CHILD]
    assert scene.programs
    scene.now += _programs._KILL_PATIENCE_SECONDS
    assert scene.look() == NEVER
    assert not scene.programs
    assert scene.killed == [_ONE, _CHILD]


def test_killed_programs_that_have_ended_are_not_waited_for(scene: Scene) -> None:
    scene.programs.follow([_ONE])
    scene.now += _GRACE
    scene.look()
    assert scene.killed == [_ONE]
    assert _ONE in scene.programs
    scene.programs.ended(_ONE)
    assert _ONE not in scene.programs
    assert not scene.programs
    assert scene.look() == NEVER


def test_each_program_is_told_once_and_keeps_its_deadline(scene: Scene) -> None:
    scene.programs.terminate([_ONE])
    first = scene.look()
    scene.now += 1.0
    scene.programs.terminate([_ONE])
    scene.programs.terminate([])
    assert scene.told == [_ONE]
    scene.programs.terminate([_ONE, _TWO])
    assert scene.told == [_ONE, _TWO]
    assert scene.look() == first


def test_ended_and_foreign_processes_are_not_waited_for(scene: Scene) -> None:
    scene.gone, scene.foreign = {_ONE}, {_CHILD}
    scene.programs.terminate([_ONE])
    assert not scene.programs


def test_a_kill_that_fails_is_tried_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_roots: object) -> None:
        raise OSError("no means")

    scene.programs.follow([_ONE])
    scene.now += _GRACE
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no means"):
        patch.setattr(families, "kill_families", fail)
        scene.look()
    scene.look()
    assert scene.killed == [_ONE]


def test_all_are_killed_when_nobody_looks_any_more(scene: Scene) -> None:
    scene.programs.follow([_ONE])
    scene.now += _GRACE
    scene.look()
    scene.programs.follow([_TWO])
    scene.killed.clear()
    scene.programs.kill()
    assert sorted(scene.killed) == [_ONE, _TWO]


def test_a_process_that_ends_between_two_looks_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise names that it made in between would be left to the resource tracker, which would warn."""
    scene = Scene(monkeypatch)
    dead = Member(_ONE, b"", [])
    looks = iter([[dead, Member(_TWO, b"first", None)], [dead, Member(_TWO, b"last", [])]])
    removed: list[list[Member]] = []
    monkeypatch.setattr(_remains, "family_of", lambda _process, _notes: next(looks))
    monkeypatch.setattr(_remains, "remove", removed.append)
    remains = Remains(scene.programs)
    remains.add(_ONE, b"", [])
    scene.gone.add(_TWO)
    remains.look_after()
    assert removed == [[dead, Member(_TWO, b"last", [])]]
    remains.look_after()
    assert len(removed) == 1
