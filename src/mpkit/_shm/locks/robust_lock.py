"""A lock between processes that survives the death of its holder.

The lock itself is a semaphore with one permit. A semaphore has no owner, so if the holder is killed, the
permit is lost. To find out when this has happened, each process has two words for each lock in its row, which
only it writes::

    completed << 1 | inside
    attempts

A process sets ``inside`` *before* it tries for the permit. It clears ``inside``, together with raising
``completed`` by one, *after* it has given the permit back. If it did not get the permit, it raises
``attempts``, and then clears ``inside`` with ``completed`` unchanged. A process that waits long does so in
slices, and is outside for a moment between two of them. So a process that is outside does not have the
permit, and one that had it shows this by a higher ``completed``. (These are two words because Python computes
faster with numbers below 2**30.)

Taking over (`_recover`) is done by at most one process at a time, under a file lock that the kernel frees
when its holder dies:

1. note the word of every living process (T0);
2. try for the permit. Success: it is not lost. Failure, at the moment T1: some process, S, has it;
3. wait until every living process has been seen outside after T1 (or with a word changed, which means that it
   has been outside), each at its own time;
4. if no living process's ``completed`` differs from T0, and none of them has died meanwhile, S is dead: if S
   were alive, it would have been inside at T1, and to be outside later it would have had to give the permit
   back and raise ``completed``. A dead process gives nothing back, so the permit is still missing: add it
   again.

A living process that holds the lock, even one stopped by SIGSTOP, is never seen outside before it has
released the lock, so nothing is taken from it. A process that dies while taking over either has added the
permit or has not; if not, the next one starts again at 1. New processes cannot join meanwhile, because
joining needs the same file lock.

Memory order: ``inside`` must be visible before the permit is taken; what is written under the lock, before
the permit is given back; and ``completed`` not before that. On x86, taking and giving back are atomic
operations and so full barriers, and other stores become visible in their order. Elsewhere glibc's operations
are weaker (acquire when taking, release when giving back), so there is a full fence before and after each.

The reads of a process that takes over must stay in order, too: T0, the failed try, the words after it, and
``completed`` once more. On x86 loads stay in order (a failed try is no barrier there); elsewhere there is a
full fence around the try, and one before the last step.
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

#: The bit `inside` of the first word, and what raises its `completed` by one.
INSIDE = 1
COMPLETED = 2
#: The offset of the second word from the first one.
ATTEMPTS = 1

#: A waiting process is outside for a moment after each slice of this length.
SLICE_SECONDS = 0.05
#: A process that has failed to get the permit for this long looks for a dead holder.
STUCK_SECONDS = 0.1
#: By how much a call may exceed its timeout while it looks for a dead holder.
_SHORTEST_LOOK_SECONDS = 0.02
#: When another process has the permit, the fast paths of queue and counter try again before they take the
#: slow path: `_FEW_YIELDS` times they try `_FEW_TRIES` times and then yield the CPU. The permit is held for
#: about a microsecond, unless its holder is not running, which is the most frequent reason on busy cores.
#: Waiting for the semaphore would cost ten times as much.
_FEW_TRIES = 3
_FEW_YIELDS = 3
#: How long a call that must not block waits for this lock at most: holders are done in microseconds, unless
#: they are stopped.
PATIENCE_SECONDS = 1.0
#: How long `close` waits for another thread that is inside (because it waits for a lock that a stopped
#: process holds, say).
SHUT_SECONDS = 5.0
#: How often a thread that waits for another thread of its process checks whether the object has been closed.
SHUT_SLICE_SECONDS = 0.1
#: An investigation that cannot finish (because a living process stays inside) ends after this time; waiting
#: processes start another one later.
INVESTIGATION_SECONDS = 0.25
_LOOK_AGAIN_SECONDS = 0.001

REENTERED = (
    "this thread is already inside an operation on the same object (called from a signal handler, a __del__ "
    "or a __reduce__ that ran in the middle of it?); hand the work to another thread or do it later"
)


def never(_block: bool = True, _timeout: float | None = None) -> bool:
    """The `local_acquire` of a lock that is not open. It fails, so that fast paths need no extra check."""
    return False


def _closed(_deadline: float | None) -> bool:
    """The `join` of a lock whose object is closed for good."""
    raise ClosedError("this object is closed in this process")


class RobustLock:
    """One lock of a segment, as one process sees it; the threads of the process share this object.

    To take the lock, a thread first takes the *local* lock between the threads of its process, and then the
    permit. The fast paths of queue and counter repeat the bodies of `try_acquire` and `release` in line,
    because a function call would be noticeable there; they use the attributes below.

    Args:
        rows: the table of processes.
        number: which of the segment's locks this is, from 0.
        permit: the semaphore, created with one permit of at most one.
        join: gives this process a row and opens its locks (`open`); False when the deadline passed; raises
            when the object is closed.

    Attributes:
        at: index of this process's first word for this lock.
        value: the value of that word, without ``inside``.
        local_acquire, local_release: the operations of the local lock.
        permit_acquire, permit_release: the operations of the semaphore. They are full barriers, except that
            on x86 a try that fails is none.
        repair: completes or undoes what a dead holder has left half done. It is called before the lock of the
            dead is given back, and a second time if the caller dies in between.
        reentered: the error message for a thread that is already inside; owners that know a likelier cause
            set their own.
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
        # How many permits this process has given back on behalf of the dead: the semaphore object, which
        # counts how often this process has acquired minus released it, includes these.
        self._given_for_dead = 0
        self._join = join
        self._local: ThreadLock | None = None
        self.local_acquire: Callable[..., bool] = never
        self.local_release: Callable[[], None] = _nothing_to_release
        self.at: int = 0
        self.value: int = 0
        self.repair: Callable[[], None] | None = None
        self.reentered: str = REENTERED
        self._shut = False
        # Since when this process has failed to get the permit, and its `value` at that time.
        self._stuck_at = -1
        self._stuck_since = 0.0

    # -- taking part -----------------------------------------------------------------------------------------

    def open(self, row: int) -> None:
        """Start to use the row that begins at word `row`."""
        local = ThreadLock()
        self.at = row + self._column
        self.value = 0
        self._stuck_at = -1
        self._shut = False
        self.local_release = local.release
        # Last, because from here on other threads use what has been set above.
        self._local = local
        self.local_acquire = local.acquire

    def begin_to_shut(self, deadline: float) -> bool:
        """Wait until no thread of this process is inside, and let none in; False if one stays inside.

        It may be called again after an interrupt: the calling thread then has the local lock from the first
        call. (The caller has made sure with `refuse_reentry` that it was not inside an operation.)
        """
        if self._local is None or self.held_here():
            return True
        # Threads that wait for the local lock meanwhile check `_shut` in every slice.
        return self.local_acquire(True, max(deadline - CLOCK.monotonic(), 0.0))

    def shut(self, *, outside: bool = True) -> None:
        """Stop using the row: from now on every attempt takes the slow path, where `join` raises the error.

        Args:
            outside: the result of `begin_to_shut`. A thread that has stayed inside still needs the local
                lock, to leave in the ordinary way.
        """
        self.local_acquire = never
        self._shut = True
        if outside:
            self._local = None

    def take_apart(self) -> None:
        """Drop the references to the owner, which is closed and no longer used."""
        self._join = _closed
        self.repair = None

    def forget(self) -> None:
        """After a fork, in the child: drop the row and the local lock, which are the parent's."""
        self.shut()
        # A permit that the parent has at this moment is not ours, but the semaphore object counts it as ours.
        self._given_for_dead = -self._permit.raw._count()

    # -- the lock --------------------------------------------------------------------------------------------

    def run(
        self, deadline: float | None, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """Call ``function(*args, **kwargs)`` under the lock.

        An exception may come between any two instructions (Ctrl-C); after it, the lock is not held.

        Returns:
            The result of the function; None if the lock was not to be had by `deadline`.

        Raises:
            RuntimeError: the calling thread is already inside.
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
            # Again, in case an interrupt came in the middle of the first `unwind`, or just before it.
            self.unwind()
            raise
        return result

    def try_acquire(self) -> bool:
        """Take the lock if it is free. Never blocks; False also when this process has no row yet."""
        if not self.local_acquire(False):
            return False
        if self._try_permit():
            return True
        self.local_release()
        return False

    def step_out(self, value: int) -> None:
        """Go outside again after a try in vain; `value` is the first word without ``inside``."""
        words, at = self.words, self.at
        # First: an investigator that sees it change knows that this process does not have the permit, even if
        # the other word still says ``inside``.
        words[at + ATTEMPTS] += 1
        words[at] = value

    def acquire(self, deadline: float | None = None) -> bool:
        """Take the lock, waiting for it until `deadline` (on the clock of `time.monotonic`; None: no limit).

        After an exception, the caller has to call `unwind`, as `run` does.

        Returns:
            Whether it has the lock; False when the deadline passed.

        Raises:
            RuntimeError: the calling thread is already inside, and would wait for itself.
            ClosedError: this process has closed the object.
        """
        # Usually it is free.
        if self.try_acquire():
            return True
        return self._acquire_local(deadline) and self._acquire_permit(deadline)

    def release(self) -> None:
        """Give the lock back, which the calling thread has."""
        self.permit_release()
        self.value = self.words[self.at] = self.value + COMPLETED
        self.local_release()

    def held_here(self) -> bool:
        """Whether the calling thread is inside."""
        local = self._local
        return local is not None and local.is_mine()

    def refuse_reentry(self) -> None:
        """Raise RuntimeError if the calling thread is inside.

        To be called before a `try` that ends in `unwind`, which would otherwise release the lock of the
        operation that was interrupted.
        """
        if self.held_here():
            raise RuntimeError(self.reentered)

    def unwind(self) -> None:
        """Give back what the calling thread has, however far it has come; nothing if it has nothing.

        For `run`, and for fast paths that repeat its body in line.
        """
        if not self.held_here():
            return
        if self._permit.raw._count() + self._given_for_dead > 0:
            self.permit_release()
        self.value = self.words[self.at] = self.value + COMPLETED
        self.local_release()

    def try_some_more(self) -> bool:
        """Try for the permit a few more times, for a fast path that is inside and has not got it."""
        take = self.permit_acquire
        for _ in range(_FEW_YIELDS):
            for _ in range(_FEW_TRIES):
                if take(False):
                    return True
            yield_cpu()
        return take(False)

    def _acquire_local(self, deadline: float | None) -> bool:
        """Take the local lock, joining first if necessary; False when the deadline passed."""
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
            # When the lock is shut, its local lock is never given back. Then this begins again, for `join` to
            # raise the error.
            if self._local is local and has_passed(deadline):
                return False

    def _acquire_permit(self, deadline: float | None) -> bool:
        """Wait for the permit in slices, and look for a dead holder from time to time.

        Returns:
            Whether the permit was taken. False: the deadline passed, and the local lock has been given back.
        """
        words, at = self.words, self.at
        while True:
            now = CLOCK.monotonic()
            wait = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - now)
            words[at] = self.value + INSIDE
            if self.permit_acquire(True, wait) if wait > 0 else self.permit_acquire(False):
                if self._shut:
                    # By another thread, meanwhile: this raises the error, and our caller gives everything
                    # back.
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
        """Take the permit if it is there, holding the local lock. If it is not, be outside again."""
        self.words[self.at] = self.value + INSIDE
        if self.permit_acquire(False):
            return True
        self.step_out(self.value)
        return False

    def _stuck_for(self, now: float) -> float:
        """For how many seconds this process has failed to get the permit.

        This is counted across calls, so that a dead holder is also found by calls with short timeouts.
        """
        completed = self.value
        if completed != self._stuck_at:
            self._stuck_at = completed
            self._stuck_since = now - SLICE_SECONDS
        return now - self._stuck_since

    # -- the dead --------------------------------------------------------------------------------------------

    def _investigate(self, deadline: float | None) -> None:
        """Give the permit back on behalf of its holder if that is dead.

        To be called outside, holding the local lock.
        """
        now = CLOCK.monotonic()
        give_up = now + INVESTIGATION_SECONDS
        if deadline is not None:
            # The rest of the timeout, but at least a short time, so that even calls with the shortest
            # timeouts find a dead holder.
            give_up = min(give_up, max(deadline, now + _SHORTEST_LOOK_SECONDS))
        # The file lock is not waited for: if another process has it, that one is probably investigating.
        with self.rows.exclusive(CLOCK.monotonic()) as alone:
            if alone:
                self._recover(give_up)

    def _recover(self, give_up: float) -> None:
        """Take over from a dead holder, by the steps at the top of this module, until the time `give_up`."""
        words = self.words
        column = self._column
        mine = self.at - column
        everyone = [(at, process) for at, process in self.rows.taken() if at != mine]
        living = [(at, process) for at, process in everyone if identity.is_alive(process)]
        before = {at: words[at + column] for at, _ in living}
        if self._try_permit():
            # It is not lost. The caller will try to take it in the ordinary way.
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
        # Whatever was seen above, what the process stored before it is seen from here on.
        full_fence()
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
    """The two operations on the permit, made full barriers, for machines on which they are not.

    These barriers hold whether the permit is taken or not.
    """

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
