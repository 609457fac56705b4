"""The layout of a parcel, which is that of the wire and not of the machine."""

from __future__ import annotations

import errno
import os
import struct
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpkit.errors import SharedMemoryExhausted
from mpkit.pool import _payload
from mpkit.pool._channel import HEAD_SIZE, LONGEST_TASK, RAISED, Channel


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


@pytest.mark.skipif(os.name != "posix", reason="files without a drive letter")
def test_a_big_outcome_for_which_there_is_no_descriptor_ends_with_the_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, name = _payload.dump_value(bytes(100_000), "pickle")

    def refused(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(os, "open", refused)
    kind, error = _payload.adopt(kind, bytes(HEAD_SIZE) + name)
    assert kind == RAISED
    assert isinstance(error, SharedMemoryExhausted)
    assert "ulimit -n" in str(error)
    assert not os.path.exists(name.decode()), "nobody can ask for it again"
