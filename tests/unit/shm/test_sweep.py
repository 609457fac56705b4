"""The sweep removes files of dead processes from the temporary directory, and none of living ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpkit._platform.processes import identity
from mpkit._shm.memory import names, sweep
from mpkit._shm.memory.segment import PAGE, Segment
from tests.unit.shm.others import dead_process, living_stranger

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")

OLD = 2 * sweep.YOUNGEST_SECONDS


def put(folder: Path, *, pid: int, started: int, kind: str = "queue", age: float = OLD) -> Path:
    path = folder / f"mpkit-{kind}-{pid}-{started}-{os.urandom(8).hex()}"
    path.write_bytes(bytes(PAGE))
    path.chmod(0o600)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def of_the_dead(folder: Path, *, kind: str = "queue", age: float = OLD) -> Path:
    return put(folder, pid=dead_process().pid, started=dead_process().started, kind=kind, age=age)


@pytest.fixture
def fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Segments go to `tmp_path`, as if there were no /dev/shm, and this process has not swept yet."""
    monkeypatch.setattr("mpkit._shm.memory.segment._directories", lambda: [str(tmp_path)])
    monkeypatch.setattr(sweep, "_swept_by", 0)
    yield tmp_path
    assert not [name for name in names.owned_names() if name.startswith(str(tmp_path))]


def test_a_file_of_a_dead_process_goes(tmp_path: Path) -> None:
    left = [of_the_dead(tmp_path, kind=kind) for kind in ("queue", "lock", "counter", "parcel", "worker")]
    assert sorted(sweep.remove_abandoned(str(tmp_path))) == sorted(map(str, left))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of", [identity.current, living_stranger])
def test_a_file_of_a_living_process_stays(tmp_path: Path, of: Callable[[], identity.ProcessIdentity]) -> None:
    path = put(tmp_path, pid=of().pid, started=of().started)
    assert sweep.remove_abandoned(str(tmp_path)) == []
    assert path.exists()


def test_a_young_file_stays(tmp_path: Path) -> None:
    path = of_the_dead(tmp_path, age=sweep.YOUNGEST_SECONDS / 2)
    assert sweep.remove_abandoned(str(tmp_path)) == []
    assert path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "mpkit-demo.sqlite3",
        "mpkit-queue-{pid}",
        "mpkit-queue-{pid}-{started}-0123456789abcdef.txt",
        "xmpkit-queue-{pid}-{started}-0123456789abcdef",
        "mpkit-queue-{pid}-{started}-0123456789abcde",
    ],
)
def test_files_with_other_names_stay(tmp_path: Path, name: str) -> None:
    dead = dead_process()
    path = of_the_dead(tmp_path).rename(tmp_path / name.format(pid=dead.pid, started=dead.started))
    assert sweep.remove_abandoned(str(tmp_path)) == []
    assert path.exists()


def test_links_folders_and_pipes_stay(tmp_path: Path) -> None:
    dead = dead_process()
    start = f"mpkit-queue-{dead.pid}-{dead.started}-0123456789abcde"
    folder = tmp_path / "swept"
    folder.mkdir()
    target = of_the_dead(tmp_path)
    (folder / f"{start}1").symlink_to(target)
    (folder / f"{start}2").mkdir()
    os.mkfifo(folder / f"{start}3")
    for entry in folder.iterdir():
        os.utime(entry, (0, 0), follow_symlinks=False)
    assert sweep.remove_abandoned(str(folder)) == []
    assert len(list(folder.iterdir())) == 3
    assert target.exists()


def test_files_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = of_the_dead(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    assert sweep.remove_abandoned(str(tmp_path)) == []
    assert path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="locks of open files")
def test_what_somebody_has_open_stays_until_it_is_closed(fall_back: Path) -> None:
    # As seen from a container that shares the directory: here, the creator of the file does not exist.
    path = of_the_dead(fall_back)
    users = [Segment.attach(str(path)) for _ in range(2)]
    for user in users:
        assert sweep.remove_abandoned(str(fall_back)) == []
        user.close()
    assert sweep.remove_abandoned(str(fall_back)) == [str(path)]


@pytest.mark.skipif(sys.platform != "linux", reason="locks of open files")
def test_a_creator_has_its_file_in_use(fall_back: Path) -> None:
    made = Segment.create(100, kind="test")
    path = Path(made.name)
    dead = dead_process()
    elsewhere = path.rename(fall_back / f"mpkit-test-{dead.pid}-{dead.started}-0123456789abcdef")
    os.utime(elsewhere, (0, 0))
    assert sweep.remove_abandoned(str(fall_back)) == []
    made.close()
    assert sweep.remove_abandoned(str(fall_back)) == [str(elsewhere)]


def test_a_file_that_was_handed_over_is_kept_for_a_day(tmp_path: Path) -> None:
    path = of_the_dead(tmp_path, kind="parcel")
    names.hand_over(str(path))
    assert sweep.remove_abandoned(str(tmp_path)) == []
    then = time.time() - OLD
    os.utime(path, (then, then))
    assert sweep.remove_abandoned(str(tmp_path)) == [str(path)]
    # It may also have been received and removed already.
    names.hand_over(str(path))


def test_a_file_that_vanishes_meanwhile_and_a_folder_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing, left = of_the_dead(tmp_path), of_the_dead(tmp_path)
    is_alive = identity.is_alive

    def gone_before_it_is_opened(process: identity.ProcessIdentity) -> bool:
        vanishing.unlink(missing_ok=True)
        return is_alive(process)

    monkeypatch.setattr(identity, "is_alive", gone_before_it_is_opened)
    assert sweep.remove_abandoned(str(tmp_path)) == [str(left)]
    assert sweep.remove_abandoned(str(tmp_path / "nowhere")) == []


def test_the_first_fall_back_segment_of_a_process_sweeps(fall_back: Path) -> None:
    first = of_the_dead(fall_back)
    made = Segment.create(100, kind="test")
    assert not first.exists()
    second = of_the_dead(fall_back)
    Segment.create(100, kind="test").close()
    assert second.exists(), "once is enough"
    made.close()
