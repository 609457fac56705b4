"""What counts as left behind: only what mpkit has named, and only when its creator is dead."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from pathlib import Path

import pytest

from mpkit._platform.processes import identity
from mpkit._shm.memory import names
from mpkit._shm.memory.segment import PAGE, Segment
from mpkit.cli.doctor import leftovers

# Larger than any pid of Linux.
NOBODY = 2**22 + 1
# The end of the names. Files count as used by their names, so two runs of these tests must not have the same.
RANDOM = os.urandom(8).hex()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(names, "SHM_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"x" * 100)
    path.chmod(0o600)
    return path


def test_a_file_of_a_dead_process_is_found_and_removed(folder: Path) -> None:
    path = put(folder, f"mpkit-queue-{NOBODY}-1-{RANDOM}")
    semaphore = put(folder, f"sem.mpkit-queue-{NOBODY}-1-{RANDOM}-0")
    found = leftovers.find()
    assert [left.path for left in found] == [str(path), str(semaphore)]
    assert found[0].size_bytes == 100
    assert found[0].pid == NOBODY
    assert leftovers.remove(found) == found
    assert leftovers.find() == []


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped shows in /proc")
def test_where_there_is_no_temporary_directory_shared_memory_is_looked_through(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    path = put(folder, f"mpkit-test-{NOBODY}-1-{RANDOM}")
    assert [left.path for left in leftovers.find()] == [str(path)]


def test_a_file_in_use_is_no_leftover_by_whichever_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is looked up through a link to the folder, it must not be removed either."""
    link = tmp_path_factory.mktemp("way") / "link"
    link.symlink_to(folder)
    monkeypatch.setattr(names, "SHM_DIRECTORY", str(link))
    path = put(folder, f"mpkit-queue-{NOBODY}-1-{RANDOM}")
    os.truncate(path, PAGE)
    segment = Segment.attach(str(path))
    assert leftovers.find() == []
    segment.close()
    assert len(leftovers.find()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="what is mapped shows in /proc")
def test_a_file_that_is_opened_just_before_its_creator_dies_is_no_leftover(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(folder, f"mpkit-queue-{NOBODY}-1-{RANDOM}")
    os.truncate(path, PAGE)
    opened: list[Segment] = []

    def dies(_process: object) -> bool:
        opened.append(Segment.attach(str(path)))
        return False

    monkeypatch.setattr(identity, "is_alive", dies)
    assert leftovers.find() == []
    opened.pop().close()


def test_a_file_of_a_reused_pid_is_found(folder: Path) -> None:
    me = identity.current()
    put(folder, f"mpkit-pool-{me.pid}-{me.started + 1}-{RANDOM}")
    assert len(leftovers.find()) == 1


def test_a_file_of_a_living_process_is_no_leftover(folder: Path) -> None:
    me = identity.current()
    put(folder, f"mpkit-pool-{me.pid}-{me.started}-{RANDOM}")
    put(folder, f"sem.mpkit-pool-{me.pid}-{me.started}-{RANDOM}-0")
    assert leftovers.find() == []


def test_a_file_that_is_open_is_no_leftover_behind_a_link(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS the temporary directory is always reached through a link."""
    link = folder / "link"
    link.symlink_to(folder)
    monkeypatch.setattr("tempfile.tempdir", str(link))
    monkeypatch.setattr(names, "SHM_DIRECTORY", "/nowhere")
    path = put(folder, f"mpkit-queue-{NOBODY}-1-{RANDOM}")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 100):
        assert leftovers.find() == []
    assert [left.path for left in leftovers.find()] == [str(path)]


@pytest.mark.parametrize(
    "name",
    [
        "mpkit-demo.sqlite3",
        f"mpkit-notes-{NOBODY}",
        f"mpkit-notes-{NOBODY}-1-0123456789abcdef.txt",
        f"xmpkit-queue-{NOBODY}-1-0123456789abcdef",
        f"sem.other-{NOBODY}-1-0123456789abcdef-0",
        # Otherwise any user could keep all others from using `doctor`.
        f"sem.mpkit-queue-{10**20}-1-0123456789abcdef-0",
    ],
)
def test_a_file_that_mpkit_has_not_named_is_left_alone(folder: Path, name: str) -> None:
    put(folder, name)
    assert leftovers.find() == []


def test_a_link_and_a_folder_are_left_alone(folder: Path) -> None:
    target = put(folder, "precious")
    (folder / f"mpkit-queue-{NOBODY}-1-{RANDOM}").symlink_to(target)
    (folder / f"mpkit-queue-{NOBODY}-2-{RANDOM}").mkdir()
    assert leftovers.find() == []


def test_a_file_that_disappears_meanwhile_does_no_harm(folder: Path) -> None:
    path = put(folder, f"mpkit-queue-{NOBODY}-1-{RANDOM}")
    found = leftovers.find()
    os.unlink(path)
    assert leftovers.remove(found) == []


@pytest.mark.skipif(sys.platform != "linux", reason="pid namespaces")
@pytest.mark.parametrize(
    "name, all_of_them", [("pid:[4026531836]", True), ("pid:[4026532201]", False), (None, False)]
)
def test_only_the_first_pid_namespace_sees_every_process(
    name: str | None, all_of_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "pid"
    if name is not None:
        link.symlink_to(name)
    monkeypatch.setattr(leftovers, "_OUR_PIDS", str(link))
    assert leftovers.sees_every_process() is all_of_them
