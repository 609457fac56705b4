"""What fits into a record."""

from __future__ import annotations

import errno
import os

import pytest

from mpkit.errors import SharedMemoryExhausted
from mpkit.pool import _payload
from mpkit.pool._channel import HEAD_SIZE, LONGEST_TASK, RAISED, Channel


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
