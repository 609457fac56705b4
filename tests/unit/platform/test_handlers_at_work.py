"""Finding out whether another process is still running the handler of a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from mpkit._platform.signals import handlers_at_work
from mpkit._platform.signals.handlers_at_work import is_caught, threads_that_block

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows it")


def test_a_thread_in_which_the_signal_is_blocked_is_noticed() -> None:
    assert threads_that_block(os.getpid(), signal.SIGUSR1) == frozenset()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMAX})
    try:
        for signum in (signal.SIGUSR1, signal.SIGRTMAX):
            assert threads_that_block(os.getpid(), signum) == {str(threading.get_native_id())}
        assert threads_that_block(os.getpid(), signal.SIGUSR2) == frozenset()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert threads_that_block(os.getpid(), signal.SIGRTMAX) == frozenset()


def test_a_handler_of_a_signal_is_noticed() -> None:
    assert is_caught(os.getpid(), signal.SIGINT)
    assert not is_caught(os.getpid(), signal.SIGRTMAX)
    # For a process that cannot be examined the answer is yes, so that it is sent the signal all the same.
    assert is_caught(2**30, signal.SIGRTMAX)


def test_nothing_is_known_about_a_process_that_does_not_exist() -> None:
    # Larger than any pid.
    assert threads_that_block(2**30, signal.SIGUSR1) == frozenset()


def test_without_a_descriptor_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("none left")

    monkeypatch.setattr(handlers_at_work, "open", refuse, raising=False)
    assert threads_that_block(os.getpid(), signal.SIGUSR1) == frozenset()


def test_a_thread_that_blocked_the_signal_before_does_not_count() -> None:
    watch = handlers_at_work.HandlerWatch(os.getpid(), signal.SIGUSR1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        assert watch.is_at_work()
        assert not handlers_at_work.HandlerWatch(os.getpid(), signal.SIGUSR1).is_at_work()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not watch.is_at_work()
