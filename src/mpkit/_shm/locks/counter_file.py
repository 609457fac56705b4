"""A 64-bit counter under a robust lock: the truth is one word, so every update is one store.

`mpkit.LockedCounter` is a handle to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from mpkit._shm.locks.robust_lock import COMPLETED, RobustLock
from mpkit._shm.locks.shared_file import MAGIC_BASE, Form
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.locks.sleepers import EVERYBODY, FIRST_TICKET, Sleepers, Waker
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore

VALUE = 8
SLEPT = 9
POSTED = 10
LOWEST: Final = -(1 << 63)
HIGHEST: Final = (1 << 63) - 1

# Another thread is no remedy inside the block: it would wait for the end of it.
_REENTERED = (
    "this thread is already inside an operation on the same counter: inside `with counter as locked` use "
    "`locked.value`; if this was called from a signal handler or a __del__ that ran in the middle of an "
    "operation, do it later"
)


class CounterFile(SharedObject):
    """One counter as this process has it open."""

    __slots__ = ("_quiet", "_sleepers", "_waker", "lock", "signed")

    form: ClassVar[Form] = Form(
        "counter",
        MAGIC_BASE | 0x43,
        rows_at=512,
        semaphores=((1, 1), (0, MAX_VALUE)),
        locks=1,
    )

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        self.lock: RobustLock = self.locks[0]
        self.lock.reentered = _REENTERED
        self.signed: memoryview[int] = self.words.cast("B").cast("q")
        self._sleepers = Sleepers(self.words, slept_at=SLEPT, posted_at=POSTED, tokens=semaphores[1])
        self._waker = Waker(self._sleepers, self.lock)
        # The value of SLEPT at which nobody is known to sleep.
        self._quiet = FIRST_TICKET

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:
        words[SLEPT] = words[POSTED] = FIRST_TICKET
        words[VALUE] = options["initial"] & ((1 << 64) - 1)

    def add(self, number: int) -> int:
        """Add and return the new value; OverflowError leaves the old one."""
        lock = self.lock
        try:
            try:
                # The body of RobustLock.try_acquire and release in line, for the common case.
                if lock.local_acquire(False):
                    words, value = self.words, lock.value
                    words[lock.at] = value + 1
                    if lock.permit_acquire(False) or lock.try_some_more():
                        signed = self.signed
                        total = signed[VALUE] + number
                        # Out of range this raises ValueError before it stores anything.
                        signed[VALUE] = total
                        lock.permit_release()
                        lock.value = words[lock.at] = value + COMPLETED
                        lock.local_release()
                        # The release above was the barrier between our value and this look (see sleepers).
                        if words[SLEPT] != self._quiet:
                            self._wake()
                        return total
                    lock.step_out(value)
                    lock.local_release()
            except ValueError as error:
                lock.unwind()
                # One with a further frame is that of a signal handler. (Another `try` around the store would
                # be more to pass through each time, and the stored value may be another's by now.)
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
            lock.unwind()
            raise
        # Which also says what is out of range.
        return self._update(lambda value: value + number)[1]

    def exchange(self, value: int) -> int:
        """Set the value and return the old one."""
        return self._update(lambda _old: value)[0]

    def compare_and_set(self, expected: int, new: int) -> bool:
        """Set the value to `new` if it is `expected`."""
        return self._update(lambda old: new if old == expected else old)[0] == expected

    def wait_for(self, target: int, deadline: float | None) -> bool:
        """Wait until the value is at least `target`; False when the deadline passed first."""

        def is_reached() -> bool:
            if self.signed[VALUE] >= target:
                return True
            self.check_open()
            return False

        return self._sleepers.wait_until(self.lock, is_reached, deadline)

    def end_compound(self) -> None:
        """Release the lock after a compound update."""
        self.lock.unwind()
        self._wake()

    def _wake(self) -> None:
        if self.words[SLEPT] != self._quiet:
            self._quiet = self._waker.wake(EVERYBODY)

    def _update(self, function: Callable[[int], int]) -> tuple[int, int]:
        updated = self.lock.run(None, self._update_locked, function)
        assert updated is not None  # it was waited for as long as it took
        self._wake()
        return updated

    def _update_locked(self, function: Callable[[int], int]) -> tuple[int, int]:
        old = self.signed[VALUE]
        new = function(old)
        if not LOWEST <= new <= HIGHEST:
            raise OverflowError(f"the counter would leave the range of 64 bits: {old} would become {new}")
        self.signed[VALUE] = new
        return old, new
