"""The `Guardian`: which processes it kills, and when. The watcher and the killing are imitations."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest

from mpkit._platform.parent_death.guardian import Guardian
from mpkit._platform.processes.identity import ProcessIdentity

APP, A, B, C = (ProcessIdentity(pid, pid * 10) for pid in (1, 2, 3, 4))


class Scene:
    """A guardian, the processes that live, and those that it has killed."""

    def __init__(self) -> None:
        self.dead: set[ProcessIdentity] = set()
        self.examined: list[ProcessIdentity] = []
        self.killed: list[tuple[set[ProcessIdentity], set[ProcessIdentity]]] = []
        self.guardian = Guardian(self, self.kill)

    def add(self, process: ProcessIdentity) -> bool:
        self.examined.append(process)
        return process not in self.dead

    def kill(self, roots: Iterable[ProcessIdentity], *, spared: Collection[ProcessIdentity] = ()) -> None:
        self.killed.append((set(roots), set(spared)))

    def watch(self, parent: ProcessIdentity, child: ProcessIdentity) -> None:
        self.guardian.obey(b"W %d %d %d %d" % (*parent, *child))

    def free(self, process: ProcessIdentity) -> None:
        self.guardian.obey(b"F %d %d" % process)

    def die(self, *processes: ProcessIdentity) -> None:
        self.dead |= set(processes)
        self.guardian.ended(set(processes) | self.guardian.take_found_ended())


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_children_die_with_their_parent(scene: Scene) -> None:
    scene.watch(APP, A)
    scene.watch(APP, B)
    scene.watch(APP, B)  # both the parent and the child itself register the child
    assert scene.examined == [A, APP, B]
    assert scene.killed == []
    scene.die(APP)
    assert scene.killed == [({A, B}, set())]
    assert scene.guardian.idle


def test_a_child_that_has_ended_is_forgotten(scene: Scene) -> None:
    scene.watch(APP, A)
    scene.watch(APP, B)
    scene.die(A)
    scene.die(APP)
    assert scene.killed == [({B}, set())]


def test_a_child_that_has_ended_together_with_its_parent(scene: Scene) -> None:
    scene.watch(APP, A)
    scene.die(A, APP)
    assert scene.guardian.idle


def test_a_child_that_is_registered_after_its_parent_has_died(scene: Scene) -> None:
    scene.dead.add(APP)
    scene.watch(APP, A)
    assert scene.killed == []
    assert not scene.guardian.idle
    assert scene.guardian.is_in_a_hurry
    scene.die()
    assert scene.killed == [({A}, set())]
    assert scene.guardian.idle


def test_all_lines_are_obeyed_before_anybody_is_killed(scene: Scene) -> None:
    """Lines may be waiting when the guardian starts, and the last one may say that an orphan is spared."""
    scene.dead.add(APP)
    scene.watch(APP, A)
    scene.free(B)
    scene.die()
    assert scene.killed == [({A}, {B})]


def test_a_child_that_is_registered_after_it_has_died(scene: Scene) -> None:
    scene.dead.add(A)
    scene.watch(APP, A)
    assert scene.killed == []
    assert scene.guardian.idle


def test_generations(scene: Scene) -> None:
    scene.watch(APP, A)
    scene.watch(A, B)
    scene.watch(B, C)
    scene.die(APP)
    assert scene.killed == [({A}, set())]
    scene.die(A)  # the guardian has just killed it
    scene.die(B)
    assert scene.killed[1:] == [({B}, set()), ({C}, set())]
    assert scene.guardian.idle


def test_orphans_are_spared_while_they_live(scene: Scene) -> None:
    scene.free(C)
    scene.free(B)
    scene.watch(APP, A)
    scene.die(B)
    scene.die(APP)
    assert scene.killed == [({A}, {C})]


def test_an_orphan_that_was_told_to_end_gets_a_second_parent_and_is_not_spared(scene: Scene) -> None:
    scene.watch(APP, A)
    scene.watch(A, B)
    scene.free(C)
    scene.watch(APP, B)
    scene.watch(APP, C)
    scene.die(A)
    assert scene.killed == [({B}, set())]
    scene.die(APP)
    assert scene.killed[1:] == [({C}, set())]
    assert scene.guardian.idle


@pytest.mark.parametrize(
    "line", [b"", b"W", b"W 1 2 3", b"W 1 2 3 x", b"F", b"F 1 2 3", b"Q 1 2 3 4", b"\xff\xfe", b"W 1 2 3 4 5"]
)
def test_invalid_lines_are_ignored(line: bytes, scene: Scene) -> None:
    scene.guardian.obey(line)
    assert scene.guardian.idle
    assert scene.killed == []
