"""A block that defers Ctrl-C: the main thread gets it when the block ends, and no other thread does."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from mpkit._platform.signals.interrupts import deferred_interrupts, end_deferral
from tests.helpers.processes import in_a_fork

forks = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts() as interrupts:
            assert not interrupts.has_arrived()
            signal.raise_signal(signal.SIGINT)
            assert interrupts.has_arrived()
            reached = True
    assert reached


def test_an_inner_block_passes_the_interrupt_on_to_the_outer_one() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts() as outer:
            with deferred_interrupts():
                signal.raise_signal(signal.SIGINT)
                assert not outer.has_arrived()
            assert outer.has_arrived()
            reached = True
    assert reached


def test_an_exception_of_the_block_is_the_context_of_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("first")
    assert isinstance(caught.value.__context__, ValueError)


def test_no_reference_to_an_interrupt_is_kept_after_it_was_raised() -> None:
    """It refers to the frames in which it came, and these perhaps to a half-made pool, which would go on."""
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
    assert not interrupts.has_arrived()


def test_an_interrupt_can_be_raised_early_inside_the_block() -> None:
    reached = False
    with deferred_interrupts() as interrupts:
        interrupts.hand_on()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.hand_on()
        assert not interrupts.has_arrived()
        reached = True
    assert reached


@pytest.mark.parametrize("inner", [True, False])
def test_a_handler_that_is_set_inside_a_block_stays(inner: bool) -> None:
    def once(_signum: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    before = signal.signal(signal.SIGINT, once)
    try:
        with deferred_interrupts() as outer:
            with deferred_interrupts() as interrupts:
                signal.raise_signal(signal.SIGINT)
                if inner:
                    interrupts.hand_on()
            outer.hand_on()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_an_interrupt_the_handler_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_application_that_ignores_ctrl_c_goes_on_doing_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert not interrupts.has_arrived()
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes() -> None:
    seen: list[object] = []

    def look() -> None:
        with deferred_interrupts() as interrupts:
            seen.extend((signal.getsignal(signal.SIGINT), interrupts.has_arrived()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), False]


def test_interrupts_are_not_deferred_while_a_condition_holds() -> None:
    through = False
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts(unless=lambda: through) as interrupts:
            through = True
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert not interrupts.has_arrived()
            through = False
            signal.raise_signal(signal.SIGINT)
            assert interrupts.has_arrived()
            reached = True
    assert reached


def test_a_block_that_never_reached_its_end_does_not_defer_later_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)

    def begin() -> None:
        # As when the handler of another signal raises just before its first line or its last line.
        deferred_interrupts().__enter__()

    begin()
    begin()
    assert signal.getsignal(signal.SIGINT) is not before
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            reached = True
    assert reached
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@forks
def test_a_fork_inside_a_block_ends_it() -> None:
    before = signal.getsignal(signal.SIGINT)

    def child() -> bool:
        signal.raise_signal(signal.SIGINT)
        try:
            end_deferral()
        except KeyboardInterrupt:
            return signal.getsignal(signal.SIGINT) is before
        return False

    with deferred_interrupts(), deferred_interrupts():
        assert in_a_fork(child)
    assert in_a_fork(lambda: signal.getsignal(signal.SIGINT) is before)
    end_deferral()
    assert signal.getsignal(signal.SIGINT) is before


@forks
def test_a_fork_by_another_thread_gets_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[bool] = []

    def fork() -> None:
        heard.append(in_a_fork(lambda: signal.getsignal(signal.SIGINT) is before))

    with deferred_interrupts():
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
    assert heard == [True]
