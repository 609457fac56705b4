"""The check for leftovers (`tests.helpers.leftovers`) finds everything that a test can leave behind."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import leftovers
from tests.helpers.processes import wait_gone


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(leftovers, "PATIENCE", 0.1)
    yield
    monkeypatch.undo()


def test_a_child_is_seen_and_removed() -> None:
    before = leftovers.take()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        left = leftovers.since(before)
        assert f"process {child.pid}" in "".join(left.describe())
        left.remove()
        wait_gone(child.pid)
    assert not leftovers.since(before).processes


@pytest.mark.skipif(sys.platform != "linux", reason="orphans can be adopted on Linux only")
def test_an_orphan_is_seen_and_removed() -> None:
    before = leftovers.take()
    code = """if True:
        import subprocess, sys
        # Not on this process's output: the test reads that to its end.
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child = subprocess.Popen([sys.executable, "-c", "input()"], **quiet)
        child.returncode = 0  # no warning about a child that is meant to go on
        print(child.pid, flush=True)
    """
    read, write = os.pipe()  # the orphan's standard input: it ends when this test closes the pipe
    try:
        parent = subprocess.run(
            [sys.executable, "-c", code], stdin=read, stdout=subprocess.PIPE, text=True, check=True
        )
        left = leftovers.since(before)
        assert f"process {int(parent.stdout)}" in "".join(left.describe())
        left.remove()
        wait_gone(int(parent.stdout))
    finally:
        os.close(read)
        os.close(write)
    assert not leftovers.since(before).processes


def test_a_child_of_the_fork_server_is_seen_but_not_the_server() -> None:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this platform has no forkserver")
    before = leftovers.take()
    process = multiprocessing.get_context("forkserver").Process(target=signal.pause)
    process.start()
    left = leftovers.since(before)
    assert [p.pid for p in left.processes] == [process.pid]
    process.kill()
    process.join()
    assert not leftovers.since(before).processes


def test_threads_are_seen_daemons_only_if_they_are_ours() -> None:
    before = leftovers.take()
    end = threading.Event()
    threads = [
        threading.Thread(target=end.wait, name="plain"),
        threading.Thread(target=end.wait, name="mpkit-collector", daemon=True),
        threading.Thread(target=end.wait, name="another daemon", daemon=True),
    ]
    for thread in threads:
        thread.start()
    seen = {thread.name for thread in leftovers.since(before).threads}
    end.set()
    for thread in threads:
        thread.join()
    assert seen == {"plain", "mpkit-collector"}


@pytest.mark.parametrize("name", ["mpkit-queue-{}-1-ab", "sem.mpkit-q-{}-ab"])
def test_a_shared_memory_file_is_seen_and_removed(name: str) -> None:
    directory = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())
    before = leftovers.take()
    file = directory / name.format(os.getpid())
    file.touch()
    left = leftovers.since(before).files
    assert str(file) in left  # there may be more, of test runs on the same machine
    leftovers.Snapshot(files=frozenset({str(file)})).remove()
    assert not file.exists()


def test_a_file_of_another_program_is_ignored() -> None:
    before = leftovers.take()
    # Process 1 lives and is no child of this one. (The name is different in each test run.)
    file = Path(tempfile.gettempdir(), f"mpkit-queue-1-1-{secrets.token_hex(8)}")
    file.touch()
    try:
        assert str(file) not in leftovers.since(before).files
    finally:
        file.unlink()
