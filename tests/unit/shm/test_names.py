"""Names: each has one owner, which removes it when nobody can need it any more."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpkit._platform.stdlib import tracker
from mpkit._shm.memory import names
from tests.helpers.waiting import PATIENCE


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "mpkit-test-1-1-0"
    path.touch()
    names.own(str(path), "shared_memory")
    yield str(path)
    names.remove(str(path))


def test_the_owner_removes(file: str) -> None:
    assert file in names.owned_names()
    names.remove(file)
    assert not os.path.exists(file)
    Path(file).touch()
    names.remove(file)
    assert os.path.exists(file), "a name that is not owned any more was removed"


def test_a_file_that_is_gone_already_is_no_error(file: str) -> None:
    os.unlink(file)
    names.remove(file)


@pytest.mark.parametrize("exists", [True, False])
def test_a_name_that_may_not_be_removed_is_left_to_the_tracker(
    exists: bool, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a program that gives up its privileges could not close what it made before."""

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not permitted", path)

    forgotten: list[str] = []
    monkeypatch.setattr(names, "_is_tracked", lambda _name, _rtype: True)
    monkeypatch.setattr(tracker, "untrack", lambda name, _kind: forgotten.append(name))
    if not exists:
        os.unlink(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        names.remove(file)
    assert file not in names.owned_names()
    assert len(forgotten) == (not exists)


def test_a_name_that_was_handed_over_is_not_removed(file: str) -> None:
    names.hand_over(file)
    names.remove(file)
    names.let_go(file, file, None)
    assert os.path.exists(file)


def test_a_name_that_nobody_needs_goes_at_once(file: str) -> None:
    names.let_go(file, file, None)
    assert not os.path.exists(file)


def test_a_name_that_may_be_needed_lingers(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("mpkit._shm.memory.names.CLOCK.monotonic", lambda: now[0])
    # Names of earlier tests linger by the real clock, and would come first.
    monkeypatch.setattr(names, "_lingering", deque())
    asked = []
    needed = [True]

    def in_use(about: str, *, under_way: bool = False) -> bool:
        asked.append(about)
        return needed[0]

    names.let_go(file, "the object", in_use)
    names._remove_due()
    assert asked == []
    for _ in range(2):
        now[0] += names.LINGER_SECONDS + 1
        names._remove_due()
        assert os.path.exists(file)
    assert asked == ["the object"] * 2
    needed[0] = False
    now[0] += names.LINGER_SECONDS - 1
    names._remove_due()
    assert os.path.exists(file)
    now[0] += 2
    names._remove_due()
    assert not os.path.exists(file)
    assert not names._lingering


def test_if_many_names_linger_they_are_checked_sooner(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise a program that makes a hundred queues a second would have thirty thousand names."""
    monkeypatch.setattr(names, "_lingering", deque())
    monkeypatch.setattr(names, "_MANY_LINGER", 4)
    needed = {"kept", "a"}
    asked: list[str] = []

    def in_use(about: str, *, under_way: bool = False) -> bool:
        if not under_way:
            return True
        asked.append(about)
        return about in needed

    of_each: dict[str, list[str]] = {}
    for about in ("kept", "a", "b"):
        of_each[about] = [str(tmp_path / f"mpkit-{about}-{number}") for number in range(2)]
        for name in of_each[about]:
            names.own(name, "shared_memory")
            Path(name).touch()
        for name in of_each[about]:
            names.let_go(name, about, in_use)

    def left() -> list[str]:
        return [about for about in of_each for name in of_each[about] if os.path.exists(name)]

    assert asked == []
    names.own(file, "shared_memory")
    assert asked == [], "checked too soon: a message may be unpickled once more"
    monkeypatch.setattr(names, "_LEAST_LINGER_SECONDS", 0.0)
    names.own(file, "shared_memory")
    assert asked == ["kept", "a"]
    needed.remove("a")
    names.own(file, "semaphore")
    names.own(file, "shared_memory")
    assert asked == ["kept", "a", "b", "kept"]
    assert left() == ["kept"] * 2 + ["a"] * 2
    names.own(file, "shared_memory")
    assert asked == ["kept", "a", "b", "kept"], "there are few now"
    names.remove_unneeded()
    assert left() == ["kept"] * 2
    needed.clear()
    names.remove_unneeded()
    assert left() == []
    assert not names._lingering


def test_only_what_the_resource_tracker_can_remove_is_tracked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tracked: list[tuple[str, str, str]] = []
    monkeypatch.setattr(tracker, "track", lambda new, kind: tracked.extend(("+", name, kind) for name in new))
    monkeypatch.setattr(tracker, "untrack", lambda name, kind: tracked.append(("-", name, kind)))
    names.own(str(tmp_path / "mpkit-a"), "shared_memory")
    names.remove(str(tmp_path / "mpkit-a"))
    assert tracked == []
    names.own(f"{names.SHM_DIRECTORY}/mpkit-test-0-0-none", "shared_memory")
    names.remove(f"{names.SHM_DIRECTORY}/mpkit-test-0-0-none")
    name = "/mpkit-test-0-0-none"
    assert tracked == [("+", name, "shared_memory"), ("-", name, "shared_memory")]
    tracked.clear()
    names.own("/mpkit-test-0-0-none", "semaphore")
    names.remove("/mpkit-test-0-0-none")
    assert tracked == [("+", "/mpkit-test-0-0-none", "semaphore"), ("-", "/mpkit-test-0-0-none", "semaphore")]


def test_macos_allows_thirty_one_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = f"/tmp/{names.new_name('counter')}"
    monkeypatch.setattr("sys.platform", "darwin")
    made = {names.semaphore_name(segment, number) for number in range(2)}
    assert len(made) == 2
    assert all(len(name) <= 31 for name in made)


def test_at_the_exit_everything_goes(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_owned", {file: "shared_memory"})
    monkeypatch.setattr(names, "_lingering", type(names._lingering)())
    names.let_go(file, file, lambda _about, *, under_way=False: True)
    names._remove_all()
    assert not os.path.exists(file)
    assert not names._lingering


def test_a_signal_handler_in_the_middle_may_wait_for_a_thread_that_removes_a_name(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a handler that makes a pool and waits for it would wait for ever."""

    def on_signal(_hook: object) -> None:
        thread = threading.Thread(target=names.remove, args=(file,))
        thread.start()
        thread.join(PATIENCE)
        assert file not in names.owned_names()

    monkeypatch.setattr(names, "_exit_hook_pid", 0)
    monkeypatch.setattr(names, "at_exit_after_children_joined", on_signal)
    names.own(str(tmp_path / "mpkit-test-1-1-1"), "shared_memory")
    names.remove(str(tmp_path / "mpkit-test-1-1-1"))
