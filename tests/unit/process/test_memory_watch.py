"""`mpkit.process.memory_watch`: a limit is watched until the process has ended, whatever fails meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from mpkit._platform.processes import families, identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.resources import memory
from mpkit.process import memory_watch
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until

ME, ANOTHER = identity.current(), ProcessIdentity(2, 1)


class Scene:
    """Processes with invented lives and memory sizes; records which are killed."""

    def __init__(self) -> None:
        self.sizes: dict[int, Iterator[int | BaseException | None]] = {}
        self.killed: list[ProcessIdentity] = []
        self.told: list[int] = []
        self.over = threading.Event()
        self.kill: Callable[[ProcessIdentity], None] = self.killed.append

    def rss_bytes(self, pid: int) -> int | None:
        size = next(self.sizes[pid])
        if isinstance(size, BaseException):
            raise size
        return size

    def kill_families(self, roots: list[ProcessIdentity]) -> None:
        self.kill(*roots)

    def fail_to_kill_once(self) -> None:
        failures = iter([OSError(errno.EIO, "broken")])

        def kill(process: ProcessIdentity) -> None:
            for failure in failures:
                raise failure
            self.killed.append(process)

        self.kill = kill

    def exceeded(self, size: int) -> None:
        self.told.append(size)
        self.over.set()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene()
    monkeypatch.setattr(memory, "rss_bytes", scene.rss_bytes)
    monkeypatch.setattr(families, "kill_families", scene.kill_families)
    monkeypatch.setattr(identity, "is_alive", lambda process: process in (ME, ANOTHER))
    monkeypatch.setattr(memory_watch, "_watcher", memory_watch._Watcher())
    monkeypatch.setattr(memory_watch, "_INTERVAL_SECONDS", 0.001)
    return scene


def ended() -> bool:
    """Wait until the watching thread has ended; whether it has."""
    for thread in threading.enumerate():
        if thread.name == "mpkit-memory-watch":
            thread.join(PATIENCE)
            return not thread.is_alive()
    return True


def test_a_process_whose_memory_cannot_be_read_once_is_still_watched(scene: Scene) -> None:
    scene.sizes[ME.pid] = iter([10, None, 0, None, 101])
    memory_watch.watch(ME, 100, scene.exceeded)
    assert scene.over.wait(PATIENCE)
    assert ended()
    assert scene.told == [101]
    assert scene.killed == [ME]


def test_after_a_thread_could_not_be_started_the_next_limit_is_enforced(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scene.sizes[ME.pid] = iter([101])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            memory_watch.watch(ANOTHER, 100, scene.exceeded)
    memory_watch.watch(ME, 100, scene.exceeded)
    assert scene.over.wait(PATIENCE)
    assert ended()
    assert scene.killed == [ME]


@pytest.mark.parametrize("size", [None, 0, 101])
def test_a_process_that_has_ended_is_forgotten(size: int | None, scene: Scene) -> None:
    # Its pid may have been given to another process, whose memory must not count.
    gone = ME._replace(started=ME.started + 1)
    scene.sizes[ME.pid] = iter([size])
    memory_watch.watch(gone, 100, scene.exceeded)
    assert ended()
    assert (scene.told, scene.killed) == ([], [])


def test_an_error_ends_neither_the_thread_nor_another_limit(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.fail_to_kill_once()
    scene.sizes = {ME.pid: iter([101, 102]), ANOTHER.pid: iter([MemoryError("none left"), 103])}
    with caplog.at_level(logging.ERROR, "mpkit.process"):
        # Both limits exist before the first look.
        memory_watch._watcher._limits[ANOTHER] = (100, scene.exceeded)
        memory_watch.watch(ME, 100, scene.exceeded)
        assert ended()
    assert sorted(scene.killed) == sorted([ME, ANOTHER])
    assert [record.getMessage() for record in caplog.records] == [
        f"the memory of process {pid} could not be limited; it is tried again"
        for pid in (ANOTHER.pid, ME.pid)
    ]


def test_a_log_handler_that_fails_does_not_end_the_thread(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the thread ended, no process would be watched any more, not even those started later."""

    class Failing(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            raise ValueError("of the handler")

    shown: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _traceback: shown.append(str(error)))
    monkeypatch.setattr(logging.getLogger("mpkit.process"), "handlers", [Failing()])
    scene.fail_to_kill_once()
    scene.sizes[ME.pid] = iter([101, 102])
    memory_watch.watch(ME, 100, scene.exceeded)
    assert ended()
    assert scene.killed == [ME]
    assert shown == ["of the handler"]


@pytest.mark.skipif(sys.platform != "linux", reason="emulates a lack of descriptors in /proc")
def test_without_a_descriptor_a_limit_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter(range(3))

    def no_descriptor(path: str, mode: str, buffering: int) -> object:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, "no descriptor left")
        return open(path, mode, buffering)

    monkeypatch.setattr(memory, "open", no_descriptor, raising=False)
    told: list[int] = []
    assert memory.rss_bytes(os.getpid()) is None
    assert not memory_watch._is_done_with(ME, 1 << 60, told.append)
    monkeypatch.setattr(families, "kill_families", lambda _roots: None)
    assert not memory_watch._is_done_with(ME, 1, told.append)
    assert memory_watch._is_done_with(ME, 1, told.append)
    assert len(told) == 1


class Interrupted(Exception):
    pass


@needs_a_trace_that_raises
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_handler_may_start_another_watch_at_any_step_and_raise(
    raises: bool, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(*_: object) -> None:
        memory_watch.watch(ANOTHER, 100, scene.exceeded)
        if raises:
            raise Interrupted

    def watchers() -> int:
        return sum(thread.name == "mpkit-memory-watch" for thread in threading.enumerate())

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        reached, step = True, 0
        while reached:
            large = threading.Event()
            for process in (ME, ANOTHER):
                scene.sizes[process.pid] = iter(lambda large=large: 101 if large.is_set() else 10, None)  # type: ignore[misc]
            monkeypatch.setattr(memory_watch, "_watcher", memory_watch._Watcher())
            reached = interrupt_at(
                step,
                lambda: memory_watch.watch(ME, 100, scene.exceeded),
                traced=("memory_watch.py", "interruptible_lock.py"),
                signum=signal.SIGUSR1,
                raises=Interrupted,
            )
            # A superfluous thread may still be about to end.
            wait_until(lambda: watchers() == 1, "one thread watches")
            large.set()
            assert ended(), step
            assert (ANOTHER in scene.killed) == reached, step
            assert ME in scene.killed or raises, step
            scene.killed.clear()
            step += 1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert step > 10
