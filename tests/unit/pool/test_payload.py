"""What fits into a record."""

from __future__ import annotations

from mpkit.pool._channel import LONGEST_TASK, Channel


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
