"""A lock between processes that survives the death of whoever holds it.

The lock itself is a semaphore with one permit, which has no owner: if its holder is killed the permit is
lost. So each process has two words in its row for each lock, written by itself alone, that tell where it
stands::

    completed << 1 | inside
    attempts

A process sets ``inside`` *before* it tries for the permit, and leaves it (with ``completed`` one higher)
*after* it has given the permit back. If it did not get the permit it raises ``attempts`` and leaves with
``completed`` unchanged; whoever waits long does so in slices and steps out between two. So a process that is
outside holds nothing, and whoever held the permit shows it by a higher ``completed``. (Two words, because
Python computes with numbers below 2**30 faster.)

Taking over (`_recover`, at most one process at a time, under a file lock that the kernel frees on death):

1. note every living process's word (T0);
2. try for the permit. Success: nobody was stuck. Failure, at the moment T1: somebody holds it, call him S;
3. wait until every living process has been seen outside after T1, each at its own time;
4. if no living process's ``completed`` differs from T0, and none of them has died meanwhile, S is dead: were
   S alive, it would have been inside at T1, and to be outside later it had to give the permit back and raise
   ``completed``. A dead process gives nothing back, so the permit is still gone: add it again.

A living process that holds the lock, one stopped by SIGSTOP included, is never seen outside before it has
released, so nothing is taken from it. A process that dies while taking over leaves either nothing done or the
permit added, and the next one starts again at 1. New processes cannot join meanwhile, because joining needs
the same file lock.

Memory order: ``inside`` must be visible before the permit is taken, ``completed`` not before it is given
back, and what is written under the lock before that. On x86 taking and giving are atomic operations and so
full barriers, and other stores and loads keep their order. Elsewhere glibc's are weaker (an acquire when
taking, a release when giving), so there a full fence stands on both sides of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mpkit._platform.processes import identity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.threads.scheduling import yield_cpu
from mpkit._shm.locks.shared_file import RECOVERIES
from mpkit._shm.locks.thread_lock import ThreadLock
from mpkit._shm.memory.rows import FIRST_LOCK, LOCK_WORDS, Rows
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError

P = ParamSpec("P")
R = TypeVar("R")

INSIDE = 1
COMPLETED = 2
#: Where the second word is, from the first one.
ATTEMPTS = 1

#: A waiter steps out this often, and looks for a dead holder after this long.
SLICE_SECONDS = 0.05
#: Failing for this long is a reason to look for a dead holder.
STUCK_SECONDS = 0.1
#: A call whose time is up may overrun it by this much when it looks for a dead holder.
SHORTEST_LOOK_SECONDS = 0.02
#: So often the fast paths of queue and counter try again for a permit that another process has, before they
#: take the long way, and so often they let others run in between: the permit is held for a microsecond,
#: unless whoever has it does not run, which on busy cores is what most often keeps it. A wait costs ten times
#: that.
_FEW_TRIES = 3
_FEW_YIELDS = 3
#: How long a call that may not block waits for the lock of its side: its holders are done in microseconds,
#: unless they are stopped.
PATIENCE_SECONDS = 1.0
#: `close` waits this long for another thread that is inside (it waits for a lock that a stopped process
#: holds).
SHUT_SECONDS = 5.0
#: A thread that waits for another thread of its process looks this often whether the object has been closed.
SHUT_SLICE_SECONDS = 0.1
#: An investigation that cannot finish (somebody living stays inside) gives up after this long; waiters start
#: another one later.
INVESTIGATION_SECONDS = 0.25
_LOOK_AGAIN_SECONDS = 0.001

REENTERED = (
    "this thread is already inside an operation on the same object (called from a signal handler, a "
    "__del__ or a __reduce__ that ran "
    "in the middle of it?); hand the work to another thread or do it later"
)


def never(_block: bool = True, _timeout: float | None = None) -> bool:
    """Stands in for the local semaphore's acquire where there is none yet, so that the fast path needs no
    check of its own.
    """
    return False


def _closed(_deadline: float | None) -> bool:
    """Stands in for an owner that is not there any more."""
    raise ClosedError("this object is closed in this process")


class RobustLock:
    """One lock of a segment, seen from one process; its threads share this object.

    The fast paths of queue and counter repeat the bodies of `try_acquire` and `release` in line, where a
    function call would be felt.

    Args:
        rows: the table of processes.
        number: which of the segment's locks this is, from 0.
        permit: the semaphore, created with one permit of at most one.
        join: gives this process a row and opens its locks (`open`); False when the deadline passed; raises
            when the object is closed.
    """

    __slots__ = (
        "_column",
        "_given_for_dead",
        "_join",
        "_local",
        "_permit",
        "_shut",
        "_stuck_at",
        "_stuck_since",
        "at",
        "local_acquire",
        "local_release",
        "permit_acquire",
        "permit_release",
        "reentered",
        "repair",
        "rows",
        "value",
        "words",
    )

    def __init__(
        self,
        rows: Rows,
        number: int,
        permit: Semaphore,
        *,
        join: Callable[[float | None], bool],
    ) -> None:
        self.rows: Rows = rows
        self.words: memoryview[int] = rows.words
        self._column = FIRST_LOCK + LOCK_WORDS * number
        self._permit = permit
        self.permit_acquire: Callable[..., bool] = permit.acquire
        self.permit_release: Callable[[], None] = permit.release
        if not TOTAL_STORE_ORDER:
            self.permit_acquire, self.permit_release = fenced(permit)
        # Permits that this process has given back for the dead: the semaphore counts them as ours.
        self._given_for_dead = 0
        self._join = join
        self._local: ThreadLock | None = None
        self.local_acquire: Callable[..., bool] = never
        self.local_release: Callable[[], None] = _nothing_to_release
        self.at: int = 0
        self.value: int = 0
        #: What to put in order before the lock of a dead process is given back; must bear being done again.
        self.repair: Callable[[], None] | None = None
        #: What a thread is told that is inside already; for an owner that knows a likelier cause.
        self.reentered: str = REENTERED
        self._shut = False
        self._stuck_at = -1
        self._stuck_since = 0.0

    # -- taking part -----------------------------------------------------------------------------------------

    def open(self, row: int) -> None:
        """Start to use the row at word `row`."""
        local = ThreadLock()
        self.at = row + self._column
        self.value = 0
        self._stuck_at = -1
        self._shut = False
        self.local_release = local.release
        # Last: from here on other threads use what has been set above.
        self._local = local
        self.local_acquire = local.acquire

    def begin_to_shut(self, deadline: float) -> bool:
        """Wait until no thread of this process is inside, and keep all out; False when one stays inside.

        This thread may have begun before, and been interrupted; that it was not inside then is for
        `refuse_reentry` to say.
        """
        if self._local is None or self.held_here():
            return True
        # Whoever waits for the permit meanwhile looks at `_local` in every slice.
        return self.local_acquire(True, max(deadline - CLOCK.monotonic(), 0.0))

    def shut(self, *, outside: bool = True) -> None:
        """Stop: every further attempt ends in the slow path, where `join` decides what to say.

        Args:
            outside: what `begin_to_shut` said; a thread that stayed inside still has to come out in good
                order.
        """
        self.local_acquire = never
        self._shut = True
        if outside:
            self._local = None

    def take_apart(self) -> None:
        """Know the owner no more: it has been closed, and nobody uses it."""
        self._join = _closed
        self.repair = None

    def forget(self) -> None:
        """After a fork, in the child: the row, and the lock between threads, are the parent's."""
        self.shut()
        # What the parent holds at this moment is not ours, but the semaphore object counts it as ours.
        self._given_for_dead = -self._permit.raw._count()

    # -- the lock --------------------------------------------------------------------------------------------

    def run(
        self, deadline: float | None, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Call ``function(*args, **kwargs)`` under the lock; None when that could not be had by `deadline`.

        An exception may come between any two instructions (Ctrl-C). It leaves nothing taken.

        Raises:
            RuntimeError: this very thread is inside already.
            ClosedError: this process has closed the object.
        """
        if self.held_here():
            raise RuntimeError(self.reentered)
        try:
            try:
                if not self.acquire(deadline):
                    return None
                result = function(*args, **kwargs)
                self.release()
            except BaseException:
                self.unwind()
                raise
        except BaseException:
            # Should an interrupt have come in the middle of the first one, or, after an error of the
            # function, just before it.
            self.unwind()
            raise
        return result

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Never blocks, except to join when this process is new."""
        if not self.local_acquire(False):
            return False
        if self._try_permit():
            return True
        self.local_release()
        return False

    def step_out(self, value: int) -> None:
        """Outside again, after a try in vain; `value` is the word without ``inside``."""
        words, at = self.words, self.at
        # First: who has seen it knows that nothing is held, whatever the other word says then.
        words[at + ATTEMPTS] += 1
        words[at] = value

    def acquire(self, deadline: float | None = None) -> bool:
        """Take the lock, waiting for it until `deadline` (`time.monotonic`, None = for ever). False when it
        has passed.

        After an exception whoever has called it calls `unwind`, as `run` does.

        Raises:
            RuntimeError: this very thread is inside already; it would wait for itself.
        """
        # Most often it is free.
        if self.try_acquire():
            return True
        return self._acquire_local(deadline) and self._acquire_permit(deadline)

    def release(self) -> None:
        """Give the lock back."""
        self.permit_release()
        self.value = self.words[self.at] = self.value + COMPLETED
        self.local_release()

    def held_here(self) -> bool:
        """Whether this thread is inside."""
        local = self._local
        return local is not None and local.is_mine()

    def refuse_reentry(self) -> None:
        """Raise RuntimeError if this thread is inside. To be called before the `try` whose `finally` calls
        `unwind`.
        """
        if self.held_here():
            raise RuntimeError(self.reentered)

    def unwind(self) -> None:
        """Leave, however far this thread has come: give back what it has, do nothing where it has nothing.

        For `run`, and for who has its body in line because a further call would be felt.
        """
        if not self.held_here():
            return
        if self._permit.raw._count() + self._given_for_dead > 0:
            self.permit_release()
        self.value = self.words[self.at] = self.value + COMPLETED
        self.local_release()

    def try_some_more(self) -> bool:
        """A few more tries for the permit, for a fast path that has not got it, and is inside."""
        take = self.permit_acquire
        for _ in range(_FEW_YIELDS):
            for _ in range(_FEW_TRIES):
                if take(False):
                    return True
            yield_cpu()
        return take(False)

    def _acquire_local(self, deadline: float | None) -> bool:
        while True:
            local = self._local
            if local is None or self._shut:
                if not self._join(deadline):
                    return False
                continue
            if local.is_mine():
                raise RuntimeError(self.reentered)
            wait = (
                SHUT_SLICE_SECONDS
                if deadline is None
                else min(SHUT_SLICE_SECONDS, deadline - CLOCK.monotonic())
            )
            if local.acquire(True, wait) if wait > 0 else local.acquire(False):
                return True
            # A lock that is shut is never given back: notice it, and let `join` say why.
            if self._local is local and has_passed(deadline):
                return False

    def _acquire_permit(self, deadline: float | None) -> bool:
        """Wait for the permit in slices, looking for a dead holder from time to time.

        On False the local lock is free again.
        """
        words, at = self.words, self.at
        while True:
            now = CLOCK.monotonic()
            wait = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - now)
            words[at] = self.value + INSIDE
            if self.permit_acquire(True, wait) if wait > 0 else self.permit_acquire(False):
                if self._shut:
                    # By another thread, while we waited: says so. (Our caller gives everything back.)
                    self._join(deadline)
                return True
            self.step_out(self.value)
            now = CLOCK.monotonic()
            if self._stuck_for(now) >= STUCK_SECONDS:
                self._investigate(deadline)
                self._stuck_since = CLOCK.monotonic()
                if self._try_permit():
                    return True
            if self._shut:
                self._join(deadline)
            if deadline is not None and now >= deadline:
                self.local_release()
                return False

    def _try_permit(self) -> bool:
        """Take the permit if it is there, holding the local lock; outside again when it fails."""
        self.words[self.at] = self.value + INSIDE
        if self.permit_acquire(False):
            return True
        self.step_out(self.value)
        return False

    def _stuck_for(self, now: float) -> float:
        """How long this process has failed to get the permit, counted over calls (one short timeout after
        the other finds the dead, too).
        """
        completed = self.value
        if completed != self._stuck_at:
            self._stuck_at = completed
            self._stuck_since = now - SLICE_SECONDS
        return now - self._stuck_since

    # -- the dead --------------------------------------------------------------------------------------------

    def _investigate(self, deadline: float | None) -> None:
        """Give the permit back for its holder, if that is dead. Called while outside (and holding the local
        lock).
        """
        now = CLOCK.monotonic()
        give_up = now + INVESTIGATION_SECONDS
        if deadline is not None:
            # Even the shortest timeouts together must find the dead: what is left of the time, but at least
            # a short look.
            give_up = min(give_up, max(deadline, now + SHORTEST_LOOK_SECONDS))
        # Whoever has the file lock already is about to find out for everybody.
        with self.rows.exclusive(CLOCK.monotonic()) as alone:
            if alone:
                self._recover(give_up)

    def _recover(self, give_up: float) -> None:
        words = self.words
        column = self._column
        mine = self.at - column
        everyone = [(at, process) for at, process in self.rows.taken() if at != mine]
        living = [(at, process) for at, process in everyone if identity.is_alive(process)]
        before = {at: words[at + column] for at, _ in living}
        if self._try_permit():
            # Nobody is stuck. Let the wait above take it in the ordinary way.
            self.permit_release()
            self.value = words[self.at] = self.value + COMPLETED
            return
        after = {at: (words[at + column], words[at + column + ATTEMPTS]) for at, _ in living}
        waiting = [at for at, _ in living if after[at][0] & INSIDE]
        while waiting:
            if CLOCK.monotonic() >= give_up:
                return
            time.sleep(_LOOK_AGAIN_SECONDS)
            waiting = [
                at for at in waiting if (words[at + column], words[at + column + ATTEMPTS]) == after[at]
            ]
        for at, process in living:
            if words[at + column] >> 1 != before[at] >> 1 or not identity.is_alive(process):
                return
        words[RECOVERIES] += 1
        for at, process in everyone:
            if (at, process) not in living:
                self.rows.leave(at)
        if self.repair is not None:
            self.repair()
        self._given_for_dead += 1
        self.permit_release()


def fenced(permit: Semaphore) -> tuple[Callable[..., bool], Callable[[], None]]:
    """The two operations on the permit as full barriers, for machines whose semaphores are weaker."""

    def acquire(block: bool = True, timeout: float | None = None) -> bool:
        full_fence()
        taken = permit.acquire(block, timeout)
        full_fence()
        return taken

    def release() -> None:
        full_fence()
        permit.release()
        full_fence()

    return acquire, release


def _nothing_to_release() -> None:
    raise RuntimeError("released a lock that this process has not opened")
