"""A canary for each private name of the standard library that `mpkit._platform.stdlib` uses.

If a test fails, this Python has changed such a name, and the module that uses it has to be adapted.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from mpkit._platform.signals import signal_handlers
from mpkit._platform.stdlib import exit_hooks, passing, sem_lock, tracker
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from tests.helpers.processes import run_python
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE

mp_util: Any = multiprocessing.util

posix = pytest.mark.skipif(sys.platform == "win32", reason="semaphores have no names on Windows")


@pytest.fixture
def name() -> str:
    return f"/mpkit-canary-{os.getpid()}-{secrets.token_hex(4)}"


@posix
def test_a_semaphore_is_opened_by_name(name: str) -> None:
    made = sem_lock.SemLock(sem_lock.SEMAPHORE_KIND, 1, 5, name, False)
    try:
        opened = sem_lock.rebuild_semaphore(name, 5)
        assert opened.acquire(True, 10)
        assert not made.acquire(False)
        made.release()
        assert opened.acquire(False)
    finally:
        sem_lock.sem_unlink(name)
    with pytest.raises(FileNotFoundError):
        sem_lock.sem_unlink(name)
    with pytest.raises(FileNotFoundError):
        sem_lock.rebuild_semaphore(name, 5)


@posix
def test_the_tracker_understands_several_messages_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send messages to a tracker that is run as a separate program. It removes what is left."""
    end, ours = os.pipe()
    command = f"from multiprocessing.resource_tracker import main; main({end})"
    theirs = subprocess.Popen(
        [sys.executable, "-c", command], pass_fds=[end], stderr=subprocess.PIPE, text=True
    )
    os.close(end)
    monkeypatch.setattr(resource_tracker, "_resource_tracker", SimpleNamespace(_fd=ours))
    left = [f"{name}-{number}" for number in range(9)]
    for each in left:
        sem_lock.SemLock(sem_lock.SEMAPHORE_KIND, 1, 1, each, False)
    tracker.send([("REGISTER", each, "semaphore") for each in [*left, name]])
    tracker.send([("UNREGISTER", name, "semaphore")])
    os.close(ours)
    _, said = theirs.communicate(timeout=PATIENCE)
    assert "There appear to be 9 leaked semaphore objects" in said
    assert "Traceback" not in said
    for each in left:
        with pytest.raises(FileNotFoundError):
            sem_lock.sem_unlink(each)


@posix
def test_a_tracker_that_has_died_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, str]] = []
    monkeypatch.setattr(resource_tracker, "register", lambda name, rtype: told.append(("+", name, rtype)))
    monkeypatch.setattr(resource_tracker, "unregister", lambda name, rtype: told.append(("-", name, rtype)))
    end, ours = os.pipe()
    os.close(end)
    dead = SimpleNamespace(_fd=ours)
    monkeypatch.setattr(resource_tracker, "_resource_tracker", dead)
    tracker.send([("REGISTER", name, "semaphore"), ("UNREGISTER", name, "semaphore")])
    os.close(ours)
    assert told == [("+", name, "semaphore"), ("-", name, "semaphore")]


def test_the_private_signal_functions_do_the_same_as_the_public_ones() -> None:
    before = signal.getsignal(signal.SIGINT)
    assert signal_handlers.get_signal_handler(signal.SIGINT) is before

    def handler(_signum: int, _frame: object) -> None:
        """A handler that is not the current one."""

    assert signal_handlers.set_signal_handler(signal.SIGINT, handler) is before
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, before)


def test_reducers_can_pickle_what_pickle_alone_cannot() -> None:
    assert socket.socket in passing.extra_reducers()


@pytest.fixture
def finalizers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty the registry of finalizers, and use new exit callbacks."""
    # The registry cannot be replaced, because it is a default argument of `Finalize.__call__`. So empty it.
    real = mp_util._finalizer_registry
    kept = dict(real)
    real.clear()
    # Empty the registry of fork hooks, too: some would register finalizers that end helpers of other tests.
    monkeypatch.setattr(mp_util, "_afterfork_registry", weakref.WeakValueDictionary())
    monkeypatch.setattr(exit_hooks, "_exit_callbacks", exit_hooks._ExitCallbacks())
    yield
    real.clear()
    real.update(kept)


@pytest.mark.usefixtures("finalizers")
def test_exit_callbacks_run_after_the_children_were_joined_last_one_first() -> None:
    ran: list[str] = []
    exit_hooks.at_exit_after_children_joined(lambda: ran.append("first"))
    exit_hooks.at_exit_after_children_joined(lambda: ran.append("second"))
    cancel = exit_hooks.at_exit_after_children_joined(lambda: ran.append("cancelled"))
    cancel()
    cancel()
    mp_util._run_finalizers(0)
    assert ran == []  # the children have not been joined yet
    mp_util._run_finalizers()
    assert ran == ["second", "first"]


@pytest.mark.usefixtures("finalizers")
def test_exit_callbacks_outlive_what_multiprocessing_clears_in_a_new_child() -> None:
    ran: list[str] = []
    exit_hooks.at_exit_after_children_joined(lambda: ran.append("here"))
    # BaseProcess does this in a child of the fork server, after the arguments were unpickled.
    mp_util._finalizer_registry.clear()
    mp_util._run_after_forkers()
    mp_util._run_finalizers()
    assert ran == ["here"]


@pytest.mark.usefixtures("finalizers")
def test_exit_callbacks_of_the_parent_do_not_run_in_a_forked_child() -> None:
    ran: list[str] = []
    exit_hooks.at_exit_after_children_joined(lambda: ran.append("parent"))
    exit_hooks._exit_callbacks._pid = -1  # as if inherited
    mp_util._run_finalizers()
    exit_hooks._exit_callbacks.forget()  # as at each fork
    exit_hooks.at_exit_after_children_joined(lambda: ran.append("child"))
    mp_util._run_finalizers()
    assert ran == ["child"]


@pytest.mark.usefixtures("finalizers")
def test_an_exit_callback_that_raises_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []

    def fail() -> None:
        raise LookupError("on purpose")

    exit_hooks.at_exit_after_children_joined(lambda: ran.append("ran"))
    exit_hooks.at_exit_after_children_joined(fail)
    mp_util._run_finalizers()
    assert ran == ["ran"]
    assert "on purpose" in capsys.readouterr().err


@pytest.mark.usefixtures("finalizers")
def test_the_first_exit_callback_comes_before_all_others_in_a_child_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    registered: list[Any] = []
    monkeypatch.setattr(threading, "_register_atexit", registered.append)

    def first() -> None:
        ran.append("first")

    exit_hooks.at_exit_before_children_joined(lambda: ran.append("second"))
    exit_hooks.at_exit_first(first)
    assert registered == [first]
    mp_util._run_finalizers(0)
    assert ran == ["first", "second"]
    # BaseProcess does this in a new child.
    mp_util._finalizer_registry.clear()
    mp_util._run_after_forkers()
    mp_util._run_finalizers(0)
    assert ran == ["first", "second", "first"]


def test_threading_has_a_hook_for_what_must_run_first_at_the_end() -> None:
    code = """
import atexit, threading
threading.Thread(target=threading.main_thread().join).start()
atexit.register(print, "atexit")
threading._register_atexit(print, "first")
"""
    assert run_python("-W", "error", "-c", code).stdout.split() == ["first", "atexit"]


@pytest.mark.usefixtures("finalizers")
def test_callbacks_before_the_children_are_joined_run_first_and_once() -> None:
    ran: list[str] = []
    exit_hooks.at_exit_before_children_joined(lambda: ran.append("before"))
    cancel = exit_hooks.at_exit_before_children_joined(lambda: ran.append("cancelled"))
    cancel()
    cancel()
    # What multiprocessing does at exit: these callbacks, then it joins the children, then other callbacks.
    mp_util._run_finalizers(0)
    assert ran == ["before"]
    mp_util._run_finalizers()
    assert ran == ["before"]


def test_an_interruptible_lock_knows_its_owner() -> None:
    lock = InterruptibleLock()
    lock.unwind()
    assert lock.acquire()
    taken: list[bool] = []

    def other() -> None:
        taken.append(lock.acquire(False))
        lock.unwind()

    def ask() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    ask()
    assert taken == [False], "a lock of another thread was released by this one"
    lock.unwind()
    ask()
    assert taken == [False, True]
    condition = threading.Condition(lock.raw)
    with condition:
        assert not condition.wait(0)
    ask()
    assert taken == [False, True, True]


either_way = pytest.mark.parametrize(
    "run", [InterruptibleLock.run, lambda lock, function: lock.run_within(None, function)]
)


@needs_a_trace_that_raises
@either_way
def test_an_interrupt_while_an_error_is_raised_leaves_an_interruptible_lock_free(
    run: Callable[[InterruptibleLock, Callable[[], object]], object],
) -> None:
    lock = InterruptibleLock()

    def fail() -> None:
        raise KeyError

    def work() -> None:
        with contextlib.suppress(KeyError):
            run(lock, fail)

    for step in itertools.count():
        interrupted = interrupt_at(step, work, traced=("interruptible_lock.py",))
        assert not lock.is_owned(), f"at step {step}"
        if not interrupted:
            break
    assert step > 5


@either_way
def test_an_error_in_the_middle_takes_an_interruptible_lock_from_nobody(
    run: Callable[[InterruptibleLock, Callable[[], object]], object],
) -> None:
    """If a `__del__` runs in the middle of a release, and raises, the lock must not be released twice."""
    lock = InterruptibleLock()

    def fail() -> None:
        assert lock.is_owned()
        raise KeyError

    def work() -> bool:
        with pytest.raises(KeyError):
            run(lock, fail)
        return lock.is_owned()

    assert lock.run(work)
    assert not lock.is_owned()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_of_a_forked_child_lose_no_exit_callback() -> None:
    kept = exit_hooks._exit_callbacks
    take_back = kept.add(_nothing)
    added = 0

    def trace(frame: FrameType, event: str, _value: object) -> Any:
        nonlocal added
        if event == "line" and frame.f_locals.get("self") is kept and frame.f_code.co_name != "add":
            # Do what another thread may do between any two lines.
            added += 1
            kept.add(_nothing)
        return trace

    pid = os.fork()
    if pid == 0:
        sys.settrace(trace)
        kept.add(_nothing)
        sys.settrace(None)
        os._exit(0 if added and len(kept._callbacks) == 1 + added else 1)
    take_back()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _nothing() -> None:
    """A callback that does nothing."""
