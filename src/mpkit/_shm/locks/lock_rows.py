"""What the rows of a lock say: who holds it, and whether its permit died with somebody.

The lock is a semaphore with one permit. There is a row for each thread that is at it at the same time, with
three words: a state, how often the thread has completed something, and how often it has tried in vain. The
state goes round like this:

=============  =========================================================
``OUT``        has nothing
``TRYING``     may take the permit from now on, or has it already
``HELD``       has the permit, for as long as its owner likes
``RELEASING``  still has the permit, or has just given it back
``OUT``        after ``COMPLETED`` (in vain: ``ATTEMPTS``) has been raised
=============  =========================================================

Two things follow when a process dies, since its last store tells how far it had come:

- ``HELD``: the permit was taken before that store, and would have been given back only after the next one.
  So it died with the dead, and whoever finds this may have it: it says ``HELD`` itself and clears the row of
  the dead.
- ``TRYING`` or ``RELEASING``: the permit may be lost or not. Then the rule of the robust lock decides (see
  robust_lock): if nobody could get it at a moment T1, and everybody living has been empty-handed since
  without having completed anything since before T1, then nobody living had it at T1, and it is given back.

A process that is stopped while it waits (``TRYING``) can hold up only the latter, which takes a death within
microseconds of the semaphore's operation; a process that is stopped while it holds the lock is never robbed.

The words are apart, and the states small, because Python computes with numbers below 2**30 faster.

Memory order: taking the permit and giving it back are atomic operations and so full barriers on x86, where
other stores become visible in their order; elsewhere a full fence stands around both (see robust_lock).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.locks.shared_file import RECOVERIES
from mpkit._shm.memory.rows import FIRST_LOCK, Rows

OUT, TRYING, HELD, RELEASING = range(4)
#: Where the other two words are, from that of the state.
COMPLETED, ATTEMPTS = 1, 2

#: An investigation that cannot finish (somebody living neither gets the permit nor gives up) ends after this
#: long; waiters start another one later.
INVESTIGATION_SECONDS = 0.4
_LOOK_AGAIN_SECONDS = 0.001
#: How long who releases the lock of another process waits for the file lock, which is kept for microseconds
#: or, by an investigation, for as long as above.
_RELEASE_SECONDS = 5.0


class LockRows:
    """The rows of one lock, as one process sees them. A place is the index of a row's state.

    Args:
        rows: the table.
    """

    __slots__ = ("_rows", "_words")

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._words = rows.words

    def join(self, deadline: float | None) -> int:
        """The place of a new row of this process, or -1 when the deadline passed.

        Raises:
            SharedMemoryExhausted: every row belongs to a living process.
        """
        row = self._rows.join(deadline)
        return row if row < 0 else row + FIRST_LOCK

    def leave(self, place: int) -> None:
        """Give a row of this process back, which is out."""
        self._rows.leave(place - FIRST_LOCK)

    def places(self) -> list[tuple[int, ProcessIdentity]]:
        """Every row in use, and whose it is."""
        return [(at + FIRST_LOCK, process) for at, process in self._rows.taken()]

    def holders(self) -> list[tuple[int, ProcessIdentity]]:
        """Those who hold the lock at this moment, dead or alive: one at most, but for those who have been
        robbed of it by a release of somebody else.
        """
        words = self._words
        return [(place, process) for place, process in self.places() if words[place] == HELD]

    def completed(self) -> int:
        """A number that changes whenever somebody has held the lock and given it back."""
        words = self._words
        return sum(words[place + COMPLETED] for place, _ in self.places())

    def dead_ones(self, holders: list[tuple[int, ProcessIdentity]]) -> list[tuple[int, ProcessIdentity]]:
        """Those of the holders who have died with the lock."""
        # Dead first, then what it said: one that lives may let go in between.
        return [
            (place, process)
            for place, process in holders
            if not identity.is_alive(process) and self._words[place] == HELD
        ]

    def inherit(self, place: int, deadline: float) -> ProcessIdentity | None:
        """Hold the lock in the row at `place`, which is out, in place of somebody who died with it.

        Returns:
            Who that was. None: nobody has, or the deadline passed.
        """
        words = self._words
        with self._rows.exclusive(deadline) as alone:
            dead = self.dead_ones(self.holders()) if alone else []
            if not dead:
                return None
            try:
                # Ours first, then theirs: who dies in between leaves two of the dead with one permit, and
                # the next one clears both.
                words[place] = HELD
                self._bury(dead)
            except BaseException:
                if words[place] == HELD:
                    self._bury(dead)
                raise
            words[RECOVERIES] += 1
        return dead[-1][1]

    def take_from_holder(self, give: Callable[[], None]) -> bool:
        """Release the lock for whoever holds it.

        Returns:
            Whether anybody held it.

        Raises:
            RuntimeError: somebody who takes over or joins has been stopped, or is this very thread.
        """
        words = self._words
        with self._rows.exclusive(CLOCK.monotonic() + _RELEASE_SECONDS) as alone:
            if not alone:
                raise RuntimeError(
                    "cannot release the lock for its owner: another process has been stopped while it took "
                    "the lock over or opened it, or this is a signal handler that came in the middle of that"
                )
            holders = self.holders()
            # The file lock keeps everybody from finding out that nobody has the permit, until it is back.
            for holder, _ in holders:
                words[holder + COMPLETED] += 1
                words[holder] = OUT
            if holders:
                give()
        return bool(holders)

    def restore(self, place: int, take: Callable[[bool], bool], give: Callable[[], None]) -> None:
        """Give the permit back if nobody living has it. `place` is a row of this thread, which is out."""
        now = CLOCK.monotonic()
        # Whoever has the file lock already is about to find out for everybody.
        with self._rows.exclusive(now) as alone:
            if alone:
                self._restore(place, take, give, now + INVESTIGATION_SECONDS)

    def _restore(
        self, place: int, take: Callable[[bool], bool], give: Callable[[], None], give_up: float
    ) -> None:
        words = self._words
        everyone = [(other, process) for other, process in self.places() if other != place]
        living = [(other, process) for other, process in everyone if identity.is_alive(process)]
        completed = {other: words[other + COMPLETED] for other, _ in living}
        words[place] = TRYING
        if take(False):
            # It is not lost. Let the caller take it in the ordinary way.
            words[place] = RELEASING
            give()
            words[place + COMPLETED] += 1
            words[place] = OUT
            return
        words[place + ATTEMPTS] += 1
        words[place] = OUT
        attempts = {other: words[other + ATTEMPTS] for other, _ in living}
        waiting = [other for other, _ in living]
        while True:
            # Whoever has tried in vain since has had nothing since.
            waiting = [
                other
                for other in waiting
                if words[other] != OUT and words[other + ATTEMPTS] == attempts[other]
            ]
            if not waiting:
                break
            if CLOCK.monotonic() >= give_up or any(words[other] == HELD for other in waiting):
                return
            time.sleep(_LOOK_AGAIN_SECONDS)
        for other, process in living:
            if words[other + COMPLETED] != completed[other] or not identity.is_alive(process):
                return
        dead = [one for one in everyone if one not in living]
        if any(words[other] == HELD for other, _ in dead):
            return  # somebody's to inherit
        self._bury(dead)
        words[RECOVERIES] += 1
        give()

    def _bury(self, dead: list[tuple[int, ProcessIdentity]]) -> None:
        for place, _ in dead:
            self._rows.leave(place - FIRST_LOCK)


def is_held(words: memoryview[int], row: int) -> bool:
    """Whether the row that begins at word `row` says that its process holds the lock.

    Such a row of a dead process stays: whoever takes its place is to be told of it.
    """
    return words[row + FIRST_LOCK] == HELD
