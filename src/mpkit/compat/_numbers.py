"""Converts numbers that the standard library accepts and mpkit does not."""

from __future__ import annotations

from typing import overload


@overload
def not_bool(count: int) -> int: ...
@overload
def not_bool(count: int | None) -> int | None: ...
def not_bool(count: int | None) -> int | None:
    """The number, or 1 for True and 0 for False."""
    return int(count) if isinstance(count, bool) else count
