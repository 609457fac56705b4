"""When a worker wakes a thread of the parent: as seldom as the words on the board allow."""

from __future__ import annotations

from mpkit._platform.threads.clock import CLOCK
from mpkit.pool._protocol.channel import (
    ALWAYS,
    ANY,
    BACK,
    DONE,
    FRONT,
    LOGS_LATE,
    LOW,
    SOON,
    WANTED,
    WHEN_LOW,
    Board,
    Channel,
    ring_bell,
)

#: While a worker has more to do, it rings no more often than this for outcomes that are wanted `SOON`.
_ANNOUNCE_NS = 1_000_000
#: The outbox is checked for filling up when these bits of the number of finished
#: tasks are 0: after every 16th.
_FILLING_MASK = 15


class Bells:
    """How one worker rings the two bells of its pool.

    The leader sleeps at the front bell (`mpkit.pool._engine.lead`), the collector at the back bell
    (`mpkit.pool._engine.collector`).
    """

    def __init__(self, channel: Channel, board: Board) -> None:
        self._channel = channel
        self._board = board
        self._last_ring = 0

    def ring(self, number: int, now: int, *, idle: bool) -> None:
        """Ring if the leader or the collector wants to know that task `number` is done.

        Args:
            number: The task whose outcome has been put into the outbox.
            now: `time.monotonic_ns`.
            idle: Whether the worker has nothing more to do.
        """
        words = self._channel.words
        low = words[LOW]
        empty = low > 0 and (idle or self._channel.inbox.left() < low)
        filling = not words[DONE] & _FILLING_MASK and self._is_filling()
        board = self._board.words
        if board[FRONT]:
            wanted = board[WANTED]
            if (
                empty
                or filling
                or wanted == number
                or wanted == ANY
                or (wanted == SOON and (idle or now - self._last_ring > _ANNOUNCE_NS))
            ):
                self._last_ring = now
                # In this order, because the leader sets the word again after it has woken up.
                board[FRONT] = 0
                ring_bell(self._board.front)
                return
        level = board[BACK]
        if level and (
            filling
            or (level >= WHEN_LOW and empty)
            or (level == ALWAYS and (idle or now - self._last_ring > _ANNOUNCE_NS))
        ):
            self._last_ring = now
            board[BACK] = 0
            ring_bell(self._board.back)

    def ring_for_a_part(self, number: int) -> None:
        """Ring for a part of task `number` if the leader wants it, but only once in `_ANNOUNCE_NS`."""
        board = self._board.words
        if board[FRONT] and board[WANTED] in (ANY, SOON, number):
            now = CLOCK.monotonic_ns()
            if now - self._last_ring > _ANNOUNCE_NS:
                self._last_ring = now
                board[FRONT] = 0
                ring_bell(self._board.front)

    def ring_for_logs(self) -> None:
        """Wake the collector, which passes on log records."""
        board = self._board.words
        if board[BACK]:
            board[BACK] = 0
            ring_bell(self._board.back)

    def logs_are_late(self) -> bool:
        """Whether the parent has more log records than its handlers keep up with."""
        return self._board.words[LOGS_LATE] != 0

    def ring_all(self) -> None:
        """Wake both the leader and the collector."""
        board = self._board
        board.words[FRONT] = 0
        ring_bell(board.front)
        board.words[BACK] = 0
        ring_bell(board.back)

    def _is_filling(self) -> bool:
        """Whether less than half of the outbox is free."""
        outbox = self._channel.outbox
        # `capacity` counts words of 8 bytes, and `room` bytes.
        return outbox.room() < outbox.capacity << 2
