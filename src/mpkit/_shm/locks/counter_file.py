"""A 64-bit counter under a robust lock. Its value is one word, so every update is a single store.

`mpkit.LockedCounter` is a handle to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from mpkit._platform.messages import shown
from mpkit._shm.locks.robust_lock import COMPLETED, RobustLock
from mpkit._shm.locks.shared_file import MAGIC_BASE, Form
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.locks.sleepers import EVERYBODY, FIRST_TICKET, Sleepers, Waker
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore

#: Indices of words: the value, and the counters of `Sleepers`.
VALUE = 8
SLEPT = 9
POSTED = 10
#: The range of the value.
LOWEST: Final = -(1 << 63)
HIGHEST: Final = (1 << 63) - 1

# Unlike the general message, this does not suggest another thread: that would wait for the end of the block.
_REENTERED = (
    "this thread is already inside an operation on the same counter: inside `with counter as locked` use "
    "`locked.value`; if this was called from a signal handler or a __del__ that ran in the middle of an "
    "operation, do it later"
)


class CounterFile(SharedObject):
    """One counter, as this process has it open."""

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
        # The value of SLEPT at which it is known that nobody sleeps.
        self._quiet = FIRST_TICKET
        self._constructed()

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:
        words[SLEPT] = words[POSTED] = FIRST_TICKET
        words[VALUE] = options["initial"] & ((1 << 64) - 1)

    def add(self, number: int) -> int:
        """Add `number` and return the new value.

        Raises:
            OverflowError: the new value would leave the range of 64 bits; the old one stays.
            RuntimeError: this thread is already inside an operation on the counter.
            ClosedError: this process has closed the counter.
        """
        lock = self.lock
        try:
            try:
                # For the common case, the bodies of RobustLock.try_acquire and release are repeated in line.
                if lock.local_acquire(False):
                    words, value = self.words, lock.value
                    words[lock.at] = value + 1
                    if lock.permit_acquire(False) or lock.try_some_more():
                        signed = self.signed
                        total = signed[VALUE] + number
                        # If it is out of range, this raises ValueError and stores nothing.
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
                # If the traceback has a second frame, the error comes from a signal handler, and not from the
                # store above. (A separate `try` around the store would cost time in each call. Comparing the
                # stored value would prove nothing, since another process may have changed it.)
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
            lock.unwind()
            raise
        # The slow path, which also raises the OverflowError.
        return self._update(lambda value: value + number)[1]

    def exchange(self, value: int) -> int:
        """Set the value, and return the old one."""
        return self._update(lambda _old: value)[0]

    def compare_and_set(self, expected: int, new: int) -> bool:
        """Set the value to `new` if it is `expected`; return whether it was."""
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
        assert updated is not None  # `run` returns None only when a deadline has passed
        self._wake()
        return updated

    def _update_locked(self, function: Callable[[int], int]) -> tuple[int, int]:
        old = self.signed[VALUE]
        new = function(old)
        if not LOWEST <= new <= HIGHEST:
            raise OverflowError(
                f"the counter would leave the range of 64 bits: {old} would become {shown(new)}"
            )
        self.signed[VALUE] = new
        return old, new
