"""The layout of a pickle and its buffers in a file."""

from __future__ import annotations

import struct

import pytest

from mpkit._wire.frame import in_one_piece, lay_out, take_apart
from mpkit.errors import SerializationError


def written(head: bytes, buffers: list[bytes], at: int) -> bytes:
    pieces, end = lay_out(head, [memoryview(buffer) for buffer in buffers], at)
    contents = bytearray(end)
    for place, piece in pieces:
        contents[place : place + len(piece)] = piece
    return bytes(contents)


def test_it_is_little_endian_whatever_the_machine() -> None:
    """Lengths must be read in the same byte order in which they are written."""
    data = struct.pack("<QQ", 2, 3) + struct.pack("<QQ", 5, 5) + b"abc"
    data = data.ljust(64, b"\0") + b"hello".ljust(64, b"\0") + b"world"
    assert written(b"abc", [b"hello", b"world"], 0) == data
    assert [bytes(part) for part in take_apart(memoryview(data))] == [b"abc", b"hello", b"world"]


@pytest.mark.parametrize("at", [0, 8, 40, 64])
@pytest.mark.parametrize("buffers", [[], [b""], [b"x" * 63, b"", b"y" * 65, b"z"]])
def test_a_layout_that_was_written_can_be_read(at: int, buffers: list[bytes]) -> None:
    data = written(b"head", buffers, at)
    assert not any(data[:at])
    assert [bytes(part) for part in take_apart(memoryview(data), at)] == [b"head", *buffers]
    if not at:
        assert in_one_piece(b"head", [memoryview(buffer) for buffer in buffers]) == data


@pytest.mark.parametrize(
    "data", [b"", bytes(15), struct.pack("<QQ", 1 << 60, 1), struct.pack("<QQ", 0, 5) + b"four"]
)
def test_data_that_is_too_short_is_an_error_that_says_so(data: bytes) -> None:
    with pytest.raises(SerializationError, match="damaged"):
        take_apart(memoryview(data))


def test_each_buffer_begins_at_a_cache_line_of_the_file() -> None:
    pieces, _ = lay_out(b"head", [memoryview(b"a"), memoryview(b"b")], 40)
    assert [at % 64 for at, _ in pieces[2:]] == [0, 0]
