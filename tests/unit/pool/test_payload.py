"""The layout of a parcel, which is that of the wire and not of the machine."""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpkit.pool import _payload
from mpkit.pool._channel import LONGEST_TASK, Channel


def test_a_parcel_is_little_endian_whatever_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths were packed as little-endian and read in the order of the machine."""
    monkeypatch.setattr(_payload, "sys", SimpleNamespace(platform=sys.platform, byteorder="big"))
    data = struct.pack("<QQ", 2, 3) + struct.pack("<QQ", 5, 5) + b"abc"
    data = data.ljust(64, b"\0") + b"hello".ljust(64, b"\0") + b"world"
    assert [bytes(piece) for piece in _payload._slices(cast("Any", data))] == [b"abc", b"hello", b"world"]


def test_the_longest_task_fits_into_an_inbox_wherever_its_index_stands() -> None:
    channel = Channel.create()
    try:
        inbox = channel.inbox
        rooms: list[int] = []
        for _ in range(inbox.capacity):
            rooms.append(inbox.room())
            # Another index, and empty again.
            assert inbox.try_put(b"")
            inbox.try_get_many(1)
        assert min(rooms) == LONGEST_TASK
    finally:
        channel.discard()
