"""When a worker wakes its parent: as seldom as those who wait allow."""

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

#: Outcomes that somebody waits for in general are announced this often while the worker has more to do.
_ANNOUNCE_NS = 1_000_000


class Bells:
    """The two bells of a pool, as one of its workers rings them.

    For whom: see `mpkit.pool._engine.lead` and `mpkit.pool._engine.collector`.
    """

    def __init__(self, channel: Channel, board: Board) -> None:
        self._channel = channel
        self._board = board
        self._last_ring = 0

    def ring(self, number: int, now: int, *, idle: bool) -> None:
        """Wake whoever wants to know that task `number` is done."""
        words = self._channel.words
        low = words[LOW]
        empty = low > 0 and (idle or self._channel.inbox.left() < low)
        filling = not words[DONE] & 15 and self._is_filling()
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
                # In this order: whoever sleeps there sets it again after it has woken.
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
        """Wake whoever waits for a part of task `number`, or for anything, now and then."""
        board = self._board.words
        if board[FRONT] and board[WANTED] in (ANY, SOON, number):
            now = CLOCK.monotonic_ns()
            if now - self._last_ring > _ANNOUNCE_NS:
                self._last_ring = now
                board[FRONT] = 0
                ring_bell(self._board.front)

    def ring_for_logs(self) -> None:
        """Wake whoever hands on log records."""
        board = self._board.words
        if board[BACK]:
            board[BACK] = 0
            ring_bell(self._board.back)

    def logs_are_late(self) -> bool:
        """Whether the parent has more log records than its handlers keep up with."""
        return self._board.words[LOGS_LATE] != 0

    def ring_all(self) -> None:
        """Wake everybody in the parent."""
        board = self._board
        board.words[FRONT] = 0
        ring_bell(board.front)
        board.words[BACK] = 0
        ring_bell(board.back)

    def _is_filling(self) -> bool:
        """Whether less than half of the outbox is free."""
        outbox = self._channel.outbox
        return outbox.room() < outbox.capacity << 2
