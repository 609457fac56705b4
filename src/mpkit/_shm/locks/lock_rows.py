"""The rows of a lock: they tell who holds it, and whether its permit was lost when a process died.

The lock is a semaphore with one permit. Each thread that holds the lock or tries to get it has a row of its
own, with three words: a state, how often the permit was had in this row and given back (``COMPLETED``), and
how often a try for it was in vain (``ATTEMPTS``). The state goes through this cycle:

=============  ============================================================================
``OUT``        it does not have the permit
``TRYING``     it may take the permit from now on, or has taken it already
``HELD``       it has the permit, for as long as the owner likes
``RELEASING``  it still has the permit, or has just given it back
``OUT``        again, after ``COMPLETED`` (or, after a try in vain, ``ATTEMPTS``) was raised
=============  ============================================================================

The last state that a process stored tells how far it had got when it died:

- ``HELD``: the permit was taken before that store, and would have been given back only after the next one. So
  it was lost with that process, and whoever finds this may take its place: it stores ``HELD`` in its own row
  and clears the row of the dead.
- ``TRYING`` or ``RELEASING``: the permit may be lost or not. This is decided by the rule of the robust lock
  (see robust_lock): if nobody could get the permit at a moment T1, and every living process has been seen
  without it since, and none has completed anything since before T1, then no living process had it at T1, and
  it is given back.

A process that is stopped while it waits (``TRYING``) can only delay the second case, which requires a death
within microseconds of the semaphore operation. Nothing is taken from a process that is stopped while it holds
the lock.

Each value has a word of its own, because Python computes faster with numbers below 2**30.

Memory order: taking and giving back the permit are atomic operations, and so full barriers on x86, where
other stores become visible, and loads are performed, in their order. Elsewhere there is a full fence before
and after both (see robust_lock). There is another one between raising ``COMPLETED`` and storing ``OUT``, and
one between seeing ``OUT`` (or ``ATTEMPTS`` raised) and reading ``COMPLETED``: a process that had the permit
and is seen without it must also be seen to have completed something.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.fences import full_fence
from mpkit._shm.locks.shared_file import RECOVERIES
from mpkit._shm.memory.rows import FIRST_LOCK, Rows

OUT, TRYING, HELD, RELEASING = range(4)
#: The offsets of the other two words from the state.
COMPLETED, ATTEMPTS = 1, 2

#: An investigation that cannot finish (because a living process neither gets the permit nor gives up) ends
#: after this time; waiting threads start another one later.
INVESTIGATION_SECONDS = 0.4
_LOOK_AGAIN_SECONDS = 0.001
#: How long a release for another process waits for the file lock. That is held for microseconds, or during an
#: investigation for the time above.
_RELEASE_SECONDS = 5.0


class LockRows:
    """The rows of one lock, as one process sees them. A *place* is the index of a row's state.

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
        """Give back a row of this process, which is out."""
        self._rows.leave(place - FIRST_LOCK)

    def places(self) -> list[tuple[int, ProcessIdentity]]:
        """Every row in use, and the process that it belongs to."""
        return [(at + FIRST_LOCK, process) for at, process in self._rows.taken()]

    def holders(self) -> list[tuple[int, ProcessIdentity]]:
        """The rows that say `HELD`, of living and dead processes.

        There is at most one, except while a dead owner's place is being taken (see `inherit`), or a release
        for another process overlaps with another release or acquisition.
        """
        words = self._words
        return [(place, process) for place, process in self.places() if words[place] == HELD]

    def completed(self) -> int:
        """A number that changes whenever the lock has been held and released."""
        words = self._words
        return sum(words[place + COMPLETED] for place, _ in self.places())

    def dead_ones(self, holders: list[tuple[int, ProcessIdentity]]) -> list[tuple[int, ProcessIdentity]]:
        """Those of the holders that have died while holding the lock."""
        # First whether it is dead, then its state: a living process may release the lock in between.
        return [
            (place, process)
            for place, process in holders
            if not identity.is_alive(process) and self._words[place] == HELD
        ]

    def inherit(self, place: int, deadline: float) -> ProcessIdentity | None:
        """Take the place of a process that died while it held the lock.

        Args:
            place: the row that is to hold the lock; it is out.
            deadline: for getting the file lock.

        Returns:
            The dead process. None: there was none, or the deadline passed.
        """
        words = self._words
        with self._rows.exclusive(deadline) as alone:
            dead = self.dead_ones(self.holders()) if alone else []
            if not dead:
                return None
            try:
                # Our row first, then theirs: if this process dies in between, there are two dead owners and
                # one permit, and the next process clears both rows.
                words[place] = HELD
                self._bury(dead)
            except BaseException:
                if words[place] == HELD:
                    self._bury(dead)
                raise
            words[RECOVERIES] += 1
        return dead[-1][1]

    def take_from_holder(self, give: Callable[[], None]) -> bool:
        """Release the lock on behalf of the process that holds it.

        Args:
            give: gives the permit back.

        Returns:
            Whether any process held it.

        Raises:
            RuntimeError: the file lock was not to be had, because a process was stopped while it had it, or
                this is a signal handler in a thread that has it.
        """
        words = self._words
        with self._rows.exclusive(CLOCK.monotonic() + _RELEASE_SECONDS) as alone:
            if not alone:
                raise RuntimeError(
                    "cannot release the lock for its owner: another process has been stopped while it took "
                    "the lock over or opened it, or this is a signal handler that came in the middle of that"
                )
            holders = self.holders()
            # Between these stores and giving the permit back, no row tells of it, as if it were lost. The
            # file lock keeps others from investigating meanwhile.
            for holder, _ in holders:
                words[holder + COMPLETED] += 1
                words[holder] = OUT
            if holders:
                give()
        return bool(holders)

    def restore(self, place: int, take: Callable[[bool], bool], give: Callable[[], None]) -> None:
        """Investigate whether the permit is lost, that is, no living process has it; if so, give it back.

        Args:
            place: a row of this thread, which is out.
            take: tries for the permit without waiting when called with False.
            give: gives the permit back.
        """
        now = CLOCK.monotonic()
        # The file lock is not waited for: if another process has it, that one is probably investigating.
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
            # It is not lost. The caller will try to take it in the ordinary way.
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
            # A row that is out, or has tried in vain since T1, was without the permit at some time after T1.
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
        full_fence()
        for other, process in living:
            if words[other + COMPLETED] != completed[other] or not identity.is_alive(process):
                return
        dead = [one for one in everyone if one not in living]
        if any(words[other] == HELD for other, _ in dead):
            return  # the permit is not lost: a waiting thread can take the place of this dead owner
        self._bury(dead)
        words[RECOVERIES] += 1
        give()

    def _bury(self, dead: list[tuple[int, ProcessIdentity]]) -> None:
        for place, _ in dead:
            self._rows.leave(place - FIRST_LOCK)


def is_held(words: memoryview[int], row: int) -> bool:
    """Whether the row that begins at word `row` says that its process holds the lock.

    Such a row of a dead process is not reused, because the next owner must be told of that process.
    """
    return words[row + FIRST_LOCK] == HELD
