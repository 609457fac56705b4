"""Numbers that the standard library takes and mpkit refuses."""

from __future__ import annotations


def not_negative(timeout: float | None) -> float | None:
    """A negative timeout is taken for 0."""
    return None if timeout is None else max(timeout, 0)


def not_bool(count: int | None) -> int | None:
    """True is taken for 1, and False for 0."""
    return int(count) if isinstance(count, bool) else count
