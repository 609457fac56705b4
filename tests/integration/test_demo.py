"""`mpkit demo`, as a whole program: when it succeeds, and when something in it fails or is interrupted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from typing_extensions import override

from mpkit.cli.demo import index, store
from mpkit.cli.demo.progress import Amount, ProgressLine
from mpkit.errors import WorkerCrashed
from mpkit.process import WorkerProcess
from tests.helpers.processes import python, run_python
from tests.helpers.waiting import PATIENCE, wait_until

STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with some files of the standard library, and three that cannot be read or parsed."""
    root = tmp_path / "library"
    for package in ("json", "concurrent"):
        shutil.copytree(STDLIB / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "broken.py").write_text("def f(:\n")
    (root / "bad_coding.py").write_bytes(b"# coding: nonsense\n")
    (root / "dangling.py").symlink_to("nowhere.py")
    return root


def rows(database: Path) -> int:
    """Return the number of files in the index; 0 if there is no index yet."""
    try:
        with store.Index(str(database)) as found:
            return found.totals().files
    except sqlite3.Error:
        return 0


def check_intact(database: Path) -> None:
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()


def check_readable(database: Path) -> None:
    """Check that the database is intact, and that there is no journal or other file beside it."""
    check_intact(database)
    assert [path.name for path in database.parent.iterdir() if path.name.startswith(database.name)] == [
        database.name
    ]


def test_the_demo_indexes_a_folder_and_agrees_with_one_process(library: Path, tmp_path: Path) -> None:
    database = tmp_path / "index.sqlite3"
    ended = run_python("-m", "mpkit", "demo", library, "--database", database, "--processes", "2")
    files = sum(1 for path in library.rglob("*.py"))
    assert f"{files} files" in ended.stdout
    assert "with 2 workers" in ended.stdout
    assert "the shared counters, the writer and the database agree" in ended.stdout
    assert "3 could not be measured in full" in ended.stdout
    assert "both results are identical" in ended.stdout
    assert "json/decoder.py" in ended.stdout
    assert ended.stderr == ""
    assert rows(database) == files
    check_readable(database)


def test_no_compare_leaves_out_the_comparison_with_one_process(library: Path, tmp_path: Path) -> None:
    database = tmp_path / "index.sqlite3"
    ended = run_python(
        "-m", "mpkit", "demo", library, "--database", database, "--no-compare", "--no-progress"
    )
    assert "Totals" in ended.stdout
    assert "one process" not in ended.stdout


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = run_python("-m", "mpkit", "demo", tmp_path / "nowhere", check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nowhere is not a directory" in ended.stderr


def test_a_file_that_is_no_index_is_not_overwritten(library: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    ended = run_python("-m", "mpkit", "demo", library, "--database", precious, check=False)
    assert ended.returncode == 1
    assert "left alone" in ended.stderr
    assert precious.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_device_is_recorded_as_unreadable_and_does_not_hang(library: Path, tmp_path: Path) -> None:
    os.mkfifo(library / "pipe.py")
    (library / "device.py").symlink_to(os.devnull)
    database = tmp_path / "index.sqlite3"
    ended = run_python("-m", "mpkit", "demo", library, "--database", database, "--processes", "1")
    assert "5 could not be measured in full" in ended.stdout
    assert "pipe.py: not a regular file" in ended.stdout
    assert "both results are identical" in ended.stdout
    assert ended.stderr == ""


def _reader_gone() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "open_output, code, message",
    [
        (_reader_gone, 141, ""),
        (
            lambda: os.open("/dev/full", os.O_WRONLY),
            1,
            "mpkit demo: cannot write to standard output: No space left on device\n",
        ),
    ],
    ids=["reader-gone", "full"],
)
def test_a_failing_standard_output_is_not_reported_as_a_database_error(
    open_output: Callable[[], int], code: int, message: str, library: Path, tmp_path: Path
) -> None:
    database, temporary = tmp_path / "index.sqlite3", tmp_path / "temporary"
    temporary.mkdir()
    output = open_output()
    try:
        arguments = ("-m", "mpkit", "demo", library, "--database", database, "--processes", "1")
        with python(*arguments, stdout=output, env={"TMPDIR": str(temporary)}) as process:
            _, err = process.communicate(timeout=PATIENCE)
            assert (process.returncode, err) == (code, message)
            wait_until(lambda: _group_is_gone(process.pid), "every process of the program has ended")
    finally:
        os.close(output)
    # All the work was done before the output failed.
    assert rows(database) == sum(1 for path in library.rglob("*.py"))
    check_readable(database)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C in the POSIX way")
@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "main-process"])
def test_ctrl_c_ends_it_at_once_and_leaves_a_readable_index(to_all: bool, tmp_path: Path) -> None:
    database = tmp_path / "index.sqlite3"
    with python("-m", "mpkit", "demo", "--database", database) as process:
        wait_until(lambda: rows(database) or process.poll() is not None, "the first files are in the index")
        if to_all:
            # A terminal sends Ctrl-C to the whole process group.
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, err
        # multiprocessing's own helpers (the resource tracker, the fork server) end right after the program.
        wait_until(lambda: _group_is_gone(process.pid), "every process of the program has ended")
    assert "Traceback" not in err
    assert out == ""
    files = rows(database)
    assert files > 0
    assert err == f"Interrupted: {files} files are in {database}\n"
    check_readable(database)


def _group_is_gone(group: int) -> bool:
    # Orphans become children of the pytest process, which must reap them.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_error_in_the_writer_is_raised(library: Path, tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open database"):
        index.index(
            str(library), str(tmp_path / "nowhere" / "x"), processes=1, line=ProgressLine(shown=False)
        )


class Watched(WorkerProcess[int]):
    """A writer process that records its pid, so that the test can kill it."""

    victims: ClassVar[list[int]] = []

    @override
    def start(self) -> None:
        super().start()
        assert self.pid is not None
        self.victims.append(self.pid)


class Murderer(ProgressLine):
    """Kills the writer as soon as there is progress to show."""

    @override
    def show(self, what: str, done: Amount, more: str = "") -> None:
        if Watched.victims:
            os.kill(Watched.victims.pop(), signal.SIGKILL)


def test_a_writer_that_is_killed_does_not_hang_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(tmp_path / "index.sqlite3")
    store.create(database)
    monkeypatch.setattr(index, "WorkerProcess", Watched)
    with pytest.raises(WorkerCrashed) as caught:
        index.index(str(STDLIB), database, processes=2, line=Murderer(shown=False))
    assert caught.value.signal == "SIGKILL"
    # The dead writer may have left a journal beside the database. SQLite rolls it back if that is necessary.
    check_intact(Path(database))
