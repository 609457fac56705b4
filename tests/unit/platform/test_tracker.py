"""The resource tracker gets one message about each name, and never one in the middle of another."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker, spawn
from types import SimpleNamespace
from typing import Any

import pytest

from mpkit import LockedCounter
from mpkit._platform.stdlib import tracker, tracker_process
from mpkit._shm.memory import names
from mpkit._shm.memory.semaphore import Semaphore
from tests.helpers.processes import forked
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is none on Windows")

NAME = "/mpkit-not-there"


def lock_of_tracker() -> Any:
    """The lock that is held while a thread talks to the tracker."""
    return vars(resource_tracker)["_resource_tracker"]._lock


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    told: list[tuple[str, str, str]] = []
    # What other tests have left to tell: the lock was taken, perhaps by another thread (before 3.11.6).
    tracker.tell()
    monkeypatch.setattr(tracker, "send", told.extend)
    return told


def test_names_are_registered_and_unregistered(told: list[tuple[str, str, str]]) -> None:
    tracker.track([NAME], "semaphore")
    tracker.untrack(NAME, "semaphore")
    assert told == [("REGISTER", NAME, "semaphore"), ("UNREGISTER", NAME, "semaphore")]


def test_a_program_that_drops_modules_keeps_its_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that reload modules remove them from `sys.modules`; multiprocessing does not look there."""
    LockedCounter().close()
    monkeypatch.delitem(sys.modules, "multiprocessing.resource_tracker")
    LockedCounter().close()
    assert tracker.is_running()


def test_a_name_unregistered_during_another_message_is_sent_with_the_next(
    told: list[tuple[str, str, str]],
) -> None:
    """A garbage collection may do that. On Python 3.10 it would deadlock, later Pythons would raise."""
    with lock_of_tracker():
        tracker.untrack(NAME, "semaphore")
    assert told == []
    tracker.track([NAME], "shared_memory")
    assert told == [("REGISTER", NAME, "shared_memory"), ("UNREGISTER", NAME, "semaphore")]


def test_a_name_that_comes_again_is_forgotten_at_once(told: list[tuple[str, str, str]]) -> None:
    """If its removal were sent later, the tracker would forget the new use of the name, and then complain."""
    # As if another thread were just sending the messages on the list.
    with lock_of_tracker():
        assert Semaphore.private().acquire(False)
    assert [what for what, _, _ in told] == ["REGISTER", "UNREGISTER"]


def test_an_object_comes_and_goes_with_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message wakes the tracker. With one or two per name, a queue would take half as long again."""
    LockedCounter().close()  # sends messages that earlier tests left
    told: list[int] = []
    monkeypatch.setattr(tracker, "send", lambda messages: told.append(len(messages)))
    LockedCounter().close()
    # One for its file, one for its semaphores, and one that takes all back.
    first, semaphores, gone = told
    assert (first, gone) == (1, 1 + semaphores)


def test_many_removals_are_collected_and_sent_together(told: list[tuple[str, str, str]]) -> None:
    with tracker.in_one_message():
        for number in range(tracker._MOST_WAIT):
            assert len(told) == 0
            tracker.untrack(f"{NAME}-{number}", "semaphore")
        assert len(told) == tracker._MOST_WAIT
        tracker.untrack(NAME, "semaphore")
        assert len(told) == tracker._MOST_WAIT
    assert told[-1] == ("UNREGISTER", NAME, "semaphore")


def test_a_name_that_comes_again_in_a_block_is_forgotten_first(told: list[tuple[str, str, str]]) -> None:
    """A name that a dead worker handed over does that. Removed twice, it would make the tracker complain."""
    with tracker.in_one_message():
        for _ in range(2):
            tracker.track([NAME], "shared_memory")
            tracker.untrack(NAME, "shared_memory")
    assert [what for what, _, _ in told] == ["REGISTER", "UNREGISTER"] * 2


@needs_a_trace_that_raises
def test_an_interrupt_leaves_no_block_unfinished(told: list[tuple[str, str, str]]) -> None:
    """Otherwise, after Ctrl-C at its begin or end, later removals would be sent late or never."""

    def work() -> None:
        with tracker.in_one_message():
            tracker.untrack(NAME, "semaphore")

    for step in itertools.count():
        interrupted = interrupt_at(step, work, traced=("tracker.py", "contextlib.py"))
        tracker.tell()
        told.clear()
        tracker.untrack(NAME, "semaphore")
        assert told == [("UNREGISTER", NAME, "semaphore")], f"interrupted at step {step}"
        if not interrupted:
            break


def test_at_the_end_messages_are_sent_even_if_another_thread_is_sending_some(
    told: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon thread may be closing a queue. The tracker must not complain of names of the main thread."""
    monkeypatch.setattr(names, "_owned", {})
    monkeypatch.setattr(names, "_lingering", type(names._lingering)())
    with tracker.in_one_message():
        tracker.untrack(NAME, "semaphore")
        names._remove_all()
        assert told[-1] == ("UNREGISTER", NAME, "semaphore")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_does_not_send_pending_messages_of_its_parent(told: list[tuple[str, str, str]]) -> None:
    """Both use the same tracker, which would complain of names that it does not know any more."""

    def child() -> None:
        tracker.track([NAME], "shared_memory")
        assert told == [("REGISTER", NAME, "shared_memory")]

    with lock_of_tracker():
        tracker.untrack(NAME, "semaphore")
    assert forked(child) == 0
    assert told == []
    tracker.tell()
    assert told == [("UNREGISTER", NAME, "semaphore")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_while_another_thread_uses_the_tracker_leaves_no_lock_behind() -> None:
    talking, go_on = threading.Event(), threading.Event()

    def talk() -> None:
        with lock_of_tracker():
            talking.set()
            go_on.wait(PATIENCE)

    def child() -> None:
        lock = lock_of_tracker()
        assert lock.acquire(False), "the child would wait for a thread that it does not have"
        lock.release()

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        assert talking.wait(PATIENCE)
        assert forked(child) == 0
        assert not lock_of_tracker().acquire(False), "the parent's lock is that thread's"
    finally:
        go_on.set()
        thread.join(PATIENCE)


class Alarm(Exception):
    """Stands for the exception that a signal handler raises."""


@needs_a_trace_that_raises
def test_an_exception_of_a_signal_handler_leaves_the_tracker_unlocked(
    told: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise (before Python 3.11.6) the next queue, lock or pool would wait for ever."""
    lock = threading.Lock()
    monkeypatch.setattr(tracker, "_tracker", lambda: SimpleNamespace(_lock=lock))

    def on_signal(_signum: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        for step in itertools.count():
            tracker._untold.append((NAME, "semaphore"))
            interrupted = interrupt_at(
                step, tracker.tell, traced=("tracker.py",), signum=signal.SIGUSR1, raises=Alarm
            )
            assert not lock.locked(), f"at step {step}"
            if not interrupted:
                break
    finally:
        signal.signal(signal.SIGUSR1, before)
        tracker._untold.clear()
    assert step > 5
    assert told


@needs_a_trace_that_raises
def test_an_exception_of_a_signal_handler_at_its_start_leaves_no_signal_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the program, and all that it starts, would not end with its terminal any more."""
    from multiprocessing import resource_tracker  # POSIX only

    monkeypatch.setattr(resource_tracker, "_resource_tracker", SimpleNamespace(_fd=None))
    monkeypatch.setattr(resource_tracker, "ensure_running", lambda: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for step in itertools.count():
        interrupted = interrupt_at(step, tracker_process.start_tracker, traced=("tracker_process.py",))
        blocked = signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert blocked == before, f"at step {step}"
        if not interrupted:
            break
    assert step > 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["-B", "-S", "-c", "from multiprocessing.forkserver import main; main(3, 4)"],
        ["-c", "from multiprocessing.resource_tracker import main;main(3)"],
        ["--multiprocessing-fork", "tracker_fd=3", "pipe_handle=4"],
    ],
)
def test_a_frozen_program_that_does_not_know_what_it_was_started_for(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would start itself again and again."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    LockedCounter().close()
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(RuntimeError, match="freeze_support"):
        LockedCounter()
    # In the fork server, which imports the main module.
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    LockedCounter().close()


@pytest.mark.parametrize("executable", [None, "", "/nowhere/python"])
def test_an_interpreter_that_is_not_there(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Python is embedded, or was removed meanwhile, the error must say so, and not be a broken pipe."""
    from multiprocessing import resource_tracker  # POSIX only

    monkeypatch.setattr(resource_tracker, "_resource_tracker", SimpleNamespace(_fd=None))
    monkeypatch.setattr(spawn, "_python_exe", executable)
    with pytest.raises(FileNotFoundError, match="set_executable"):
        tracker_process.start_tracker()
