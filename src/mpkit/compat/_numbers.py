"""Converts numbers that the standard library accepts and mpkit does not."""

from __future__ import annotations

from typing import TypeVar

C = TypeVar("C", int, "int | None")


def not_bool(count: C) -> C:
    """The number, or 1 for True and 0 for False."""
    return int(count) if isinstance(count, bool) else count
