"""Converts numbers that the standard library accepts and mpkit does not."""

from __future__ import annotations


def not_negative(timeout: float | None) -> float | None:
    """The timeout, or 0 if it is negative."""
    return None if timeout is None else max(timeout, 0)


def not_bool(count: int | None) -> int | None:
    """The number, or 1 for True and 0 for False."""
    return int(count) if isinstance(count, bool) else count
