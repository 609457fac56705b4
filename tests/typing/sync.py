"""What type checkers see of Lock and LockedCounter. Never run."""

from __future__ import annotations

from typing_extensions import assert_type

from mpkit import Lock, LockedCounter


def lock() -> None:
    held = Lock()
    assert_type(held.acquire(), bool)
    assert_type(held.acquire(False), bool)
    assert_type(held.acquire(timeout=0.5), bool)
    assert_type(held.release(), None)
    assert_type(held.owner(), "int | None")
    assert_type(held.abandoned_by, "int | None")
    with held as acquired:
        assert_type(acquired, bool)


def counter() -> None:
    count = LockedCounter(3)
    assert_type(count.value, int)
    assert_type(count.add(), int)
    assert_type(count.sub(2), int)
    assert_type(count.compare_and_set(1, 2), bool)
    assert_type(count.reset(), int)
    assert_type(count.wait_for(5, timeout=1), bool)
    with count as locked:
        locked.value = locked.value * 2
