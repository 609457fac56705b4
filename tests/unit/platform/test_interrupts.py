"""Ctrl-C waits until the block is over, in the main thread; nobody else ever gets it."""

from __future__ import annotations

import signal
import threading

import pytest

from mpkit._platform.interrupts import deferred_interrupts


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts() as arrived:
            assert not arrived()
            signal.raise_signal(signal.SIGINT)
            assert arrived()
            reached = True
    assert reached


def test_blocks_inside_blocks_hand_it_on() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with deferred_interrupts() as outer:
            with deferred_interrupts():
                signal.raise_signal(signal.SIGINT)
                assert not outer()
            assert outer()
            reached = True
    assert reached


def test_an_exception_of_the_block_is_the_context_of_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("first")
    assert isinstance(caught.value.__context__, ValueError)


def test_without_an_interrupt_the_handler_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_application_that_ignores_it_goes_on_doing_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupts() as arrived:
            signal.raise_signal(signal.SIGINT)
            assert not arrived()
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes() -> None:
    seen: list[object] = []

    def look() -> None:
        with deferred_interrupts() as arrived:
            seen.extend((signal.getsignal(signal.SIGINT), arrived()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT), False]
