"""Handlers of signals that arrive during a fork run after it, in the process that got the signal."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from mpkit._platform.signals.deferred_handlers import deferred_handlers, end_deferral_of_handlers
from tests.helpers.processes import in_a_fork

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Heard(Exception):
    """Raised by a signal handler."""


@pytest.fixture(autouse=True)
def heard() -> Iterator[list[int]]:
    """Records the signals whose handlers are called. The handler of SIGTERM also raises `Heard`."""
    found: list[int] = []

    def handler(signum: int, _frame: FrameType | None) -> None:
        found.append(signum)
        if signum == signal.SIGTERM:
            raise Heard

    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    yield found
    for signum, previous in before.items():
        signal.signal(signum, previous)


def test_handlers_wait_for_the_end_of_the_block_and_are_called_once(heard: list[int]) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(Heard), deferred_handlers():
        for _ in range(3):
            for signum in SIGNALS:
                signal.raise_signal(signum)
        assert heard == []
    # Both handlers are called, even if the first one raised.
    assert sorted(heard) == sorted(SIGNALS)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_an_exception_of_the_block_is_the_context() -> None:
    with pytest.raises(Heard) as caught, deferred_handlers():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("no process left")
    assert isinstance(caught.value.__context__, OSError)


def test_an_inner_block_passes_signals_on_to_the_outer_one(heard: list[int]) -> None:
    with pytest.raises(Heard), deferred_handlers():
        with deferred_handlers():
            signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_a_handler_that_is_set_inside_a_block_stays() -> None:
    with deferred_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_interrupts_and_what_has_no_handler_are_left_alone() -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = signal.getsignal(signal.SIGINT)
    with deferred_handlers():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def run() -> None:
        with deferred_handlers():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_a_handler_that_raises_while_it_is_restored_does_not_prevent_others(
    heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    real = deferred_handlers._put_back
    calls: list[int] = []

    def put_back(self: deferred_handlers, signum: int) -> None:
        calls.append(signum)
        if len(calls) == 1:
            raise Heard
        real(self, signum)

    monkeypatch.setattr(deferred_handlers, "_put_back", put_back)
    with pytest.raises(Heard), deferred_handlers():
        pass
    signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    with pytest.raises(Heard):
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize("nested", [True, False])
def test_a_fork_gets_only_its_own_signals_when_it_is_ready(heard: list[int], nested: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def child() -> bool:
        signal.raise_signal(signal.SIGUSR1)
        if heard:
            return False
        end_deferral_of_handlers()
        # Not the signal that was sent to its parent.
        return heard == [signal.SIGUSR1] and signal.getsignal(signal.SIGTERM) is before

    with pytest.raises(Heard), deferred_handlers():
        signal.raise_signal(signal.SIGTERM)
        if nested:
            with deferred_handlers():
                assert in_a_fork(child)
        else:
            assert in_a_fork(child)
    end_deferral_of_handlers()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fork_by_another_thread_gets_signals_at_once(heard: list[int]) -> None:
    results: list[bool] = []

    def child() -> bool:
        signal.raise_signal(signal.SIGUSR1)
        return heard == [signal.SIGUSR1]

    with deferred_handlers():
        thread = threading.Thread(target=lambda: results.append(in_a_fork(child)))
        thread.start()
        thread.join()
    assert results == [True]
