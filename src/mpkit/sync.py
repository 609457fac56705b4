"""`Lock` and `LockedCounter`: synchronisation between processes that survives the death of any of them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from mpkit._platform.messages import shown
from mpkit._platform.threads.deadlines import check_timeout, deadline_of
from mpkit._shm.locks.counter_file import HIGHEST, LOWEST, VALUE, CounterFile
from mpkit._shm.locks.handle import SharedHandle, checked_integer
from mpkit._shm.locks.lock_file import LockFile
from mpkit.errors import HandleLost, SharedMemoryExhausted

__all__ = ["CompoundUpdate", "Lock", "LockedCounter"]


class Lock(SharedHandle[LockFile]):
    """A lock between processes that knows its owner.

    It has the guarantees of `multiprocessing.Lock`, and more: if the owner dies, in whatever way, the lock
    goes to the next process that asks for it. `abandoned_by` then tells this process which one died, because
    what the lock protects may be half changed. A lock is never taken from a process that is
    alive, even if it is stopped.

    It is not recursive. Any thread or process may release it, not only the one that acquired it. A handle can
    be pickled anywhere: as an argument of a process under every start method, as an argument of a task in a
    running pool, or inside an item of a queue. The lock exists as long as its creator, or any process that
    has opened it, is alive and has not closed it; other processes can open it as long as its creator lives.

    If a handle arrives in a process that may not open or map more, every use of it there raises
    `SharedMemoryExhausted`. All methods and properties raise `ClosedError` after `close` in this process, and
    `HandleLost` as `acquire` does.

    Raises:
        SharedMemoryExhausted: There is no room for the lock (about 12 KiB); nothing is left behind.
        OSError: This system has no named semaphores (Windows).

    Safe from: any process, any thread, and signal handlers. But a signal handler that acquires a lock which
    the interrupted thread holds, or is just acquiring or releasing, waits forever, as with any lock that is
    not recursive: so pass a timeout there.

    Examples:
        >>> from mpkit import Lock
        >>> lock = Lock()
        >>> with lock:
        ...     lock.locked()
        True
    """

    __slots__ = ("_acquire", "_release")

    _shared_type = LockFile

    def __init__(self) -> None:
        self._begin(LockFile.create())

    def _bind(self, shared: LockFile) -> None:
        super()._bind(shared)
        # Stored, because looking them up through the shared object in each call would cost noticeable time.
        # They raise `ClosedError` themselves when the lock has been closed.
        self._acquire: Callable[[bool, float | None], bool] = shared.acquire
        self._release: Callable[[], bool] = shared.release

    def _bind_nothing(self, name: str, reason: HandleLost | SharedMemoryExhausted) -> None:
        super()._bind_nothing(name, reason)
        self._acquire = self._release = self._raise_lost

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock.

        Args:
            block: Wait until it is free.
            timeout: How many seconds to wait, if `block`; None: no limit.

        Returns:
            Whether the lock was acquired.

        Raises:
            ValueError: `timeout` is negative or NaN, even if `block` is false.
            TypeError: `timeout` is not a number.
            ClosedError: This process has closed the lock.
            HandleLost: The lock no longer existed when this handle arrived in this process: its creator, and
                every process that had opened it, had closed it or ended.

        Blocking: until the lock is free, if `block`, `timeout` seconds at most. If the owner dies, it is free
        within a fraction of a second.
        """
        deadline = None if timeout is None else deadline_of(check_timeout(timeout))
        return self._acquire(block, deadline)

    def release(self) -> None:
        """Release the lock. Any thread of any process may do this.

        Raises:
            ValueError: The lock is free.
            ClosedError, HandleLost: As `acquire`.
            RuntimeError: The lock could not be released for 5 seconds: another process holds it, and a third
                process has been stopped (SIGSTOP) while it took over or opened this lock.

        Blocking: for a microsecond; for about ten if another process holds the lock, or for up to half a
        second while some process checks whether the owner is dead.
        """
        if not self._release():
            raise ValueError("released a lock that nobody has acquired")

    def locked(self) -> bool:
        """Whether any process holds the lock at this moment. Never blocks."""
        return self._opened().owner() is not None

    def owner(self) -> int | None:
        """The pid of the process that holds the lock at this moment, dead or alive; None
        if it is free. Never blocks.
        """
        return self._opened().owner()

    @property
    def abandoned_by(self) -> int | None:
        """The pid of the dead process from which this process has taken over the lock; None if it was free.

        Also None while this process does not hold the lock, so read it before `release`. Never blocks.
        """
        return self._opened().abandoned_by

    def __enter__(self) -> bool:
        return self._acquire(True, None)

    def __exit__(self, *_exc_info: object) -> None:
        if not self._release():
            raise ValueError("released a lock that nobody has acquired")

    def __repr__(self) -> str:
        name = f"<{type(self).__name__}"
        if self._state():
            return f"{name} {self._state()}>"
        owner = self.owner()
        return f"{name} free>" if owner is None else f"{name} owned by pid {owner}>"


class LockedCounter(SharedHandle[CounterFile]):
    """A 64-bit signed counter shared between processes. No update is ever lost.

    Every method is one atomic step for all processes and threads. If a process is killed in the middle of an
    update, the update has either happened or not, and other processes can go on.

    For an update that needs the old value, lock the counter: ``with counter as locked: locked.value =
    f(locked.value)``. All other processes wait in the meantime, so be quick. Inside the block, other methods
    of the same counter raise RuntimeError. If the process dies inside, the last assigned value stays.

    A handle can be pickled anywhere: as an argument of a process under every start method, as an argument of
    a task in a running pool, or inside an item of a queue. The counter exists as long as its creator, or any
    process that has opened it, is alive and has not closed it; other processes can open it
    as long as its creator lives.

    If a handle arrives in a process that may not open or map more, every use of it there raises
    `SharedMemoryExhausted`. All methods and properties raise `ClosedError` after `close` in this process, and
    `HandleLost` as `add` does.

    Args:
        initial: The initial value, from ``-2**63`` to ``2**63 - 1``.

    Raises:
        TypeError: `initial` is not an integer.
        OverflowError: `initial` does not fit into 64 bits.
        SharedMemoryExhausted: There is no room for the counter (about 12 KiB); nothing is left behind.
        OSError: This system has no named semaphores (Windows).

    Safe from: any process, any thread. Not from a signal handler or a ``__del__`` that interrupts an
    operation on the same counter, which gets a RuntimeError instead of waiting for itself.

    Examples:
        >>> from mpkit import LockedCounter
        >>> counter = LockedCounter(40)
        >>> counter.add(2)
        42
        >>> with counter as locked:
        ...     locked.value = locked.value // 2
        >>> counter.value
        21
    """

    __slots__ = ("_add", "_compound")

    _shared_type = CounterFile

    def __init__(self, initial: int = 0) -> None:
        self._begin(CounterFile.create(initial=_in_range("initial", initial)))

    def _bind(self, shared: CounterFile) -> None:
        super()._bind(shared)
        self._compound: CompoundUpdate | None = None
        # Stored, because looking it up through the shared object in each call would cost noticeable time. It
        # raises `ClosedError` itself when the counter has been closed.
        self._add: Callable[[int], int] = shared.add

    def _bind_nothing(self, name: str, reason: HandleLost | SharedMemoryExhausted) -> None:
        super()._bind_nothing(name, reason)
        self._compound = None
        self._add = self._raise_lost

    @property
    def value(self) -> int:
        """The value at this moment. Never blocks."""
        return self._opened().signed[VALUE]

    def add(self, n: int = 1) -> int:
        """Add `n` (which may be negative) and return the new value.

        Raises:
            TypeError: `n` is not an integer.
            OverflowError: The result does not fit into 64 bits; the value is unchanged.
            ClosedError: This process has closed the counter.
            HandleLost: The counter no longer existed when this handle arrived in this process: its creator,
                and every process that had opened it, had closed it or ended.

        Blocking: for microseconds; for as long as any process is inside ``with counter``; for up to half a
        second if a process was killed in the middle of an operation on the counter; and for as long as a
        process stays stopped (SIGSTOP) in the middle of one.
        """
        return self._add(n if type(n) is int else checked_integer("n", n))

    def sub(self, n: int = 1) -> int:
        """Subtract `n` and return the new value. Errors and blocking as `add`."""
        return self._add(-checked_integer("n", n))

    def compare_and_set(self, expected: int, new: int) -> bool:
        """If the value is `expected`, set it to `new`; returns whether it was. Otherwise as `add`."""
        return self._opened().compare_and_set(checked_integer("expected", expected), _in_range("new", new))

    def reset(self, value: int = 0) -> int:
        """Set the value and return the old one. Errors and blocking as `add`."""
        return self._opened().exchange(_in_range("value", value))

    def wait_for(self, target: int, timeout: float | None = None) -> bool:
        """Wait until the value is at least `target`.

        If the value reaches `target`, and falls again before this process has read it, this may go unnoticed.

        Args:
            target: The value to wait for.
            timeout: How many seconds to wait; None: no limit.

        Returns:
            Whether the value was `target` or more; False if the time ran out.

        Raises:
            ValueError: `timeout` is negative or NaN.
            TypeError: `target` is not an integer, or `timeout` is not a number.
            ClosedError, HandleLost: As `add`.

        Blocking: until the value is `target` or more, `timeout` seconds at most.
        """
        return self._opened().wait_for(checked_integer("target", target), deadline_of(check_timeout(timeout)))

    def __enter__(self) -> CompoundUpdate:
        shared = self._opened()
        shared.lock.refuse_reentry()
        try:
            try:
                shared.lock.acquire(None)
                self._compound = CompoundUpdate(shared)
                return self._compound
            except BaseException:
                shared.lock.unwind()
                raise
        except BaseException:
            shared.lock.unwind()
            raise

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        # Nothing can be done about an interrupt before the `try`; after it, none leaves the counter locked.
        try:
            compound, self._compound = self._compound, None
            if compound is not None:
                compound.end()
        finally:
            shared = self._shared
            if shared is not None:
                try:
                    shared.lock.unwind()
                finally:
                    shared.lock.unwind()

    def __repr__(self) -> str:
        name = f"<{type(self).__name__}"
        return f"{name} {self._state()}>" if self._state() else f"{name} {self.value}>"


class CompoundUpdate:
    """What ``with counter as locked`` binds: the counter while it is locked. Usable inside the block only."""

    __slots__ = ("_shared",)

    def __init__(self, shared: CounterFile) -> None:
        self._shared: CounterFile | None = shared

    @property
    def value(self) -> int:
        """The value of the counter. An assignment takes effect at once, and needs no further lock.

        Raises:
            RuntimeError: The block is over.
            TypeError: The assigned value is not an integer.
            OverflowError: The assigned value does not fit into 64 bits.
        """
        return self._inside().signed[VALUE]

    @value.setter
    def value(self, value: int) -> None:
        self._inside().signed[VALUE] = _in_range("value", value)

    def end(self) -> None:
        """End the block. Called by the counter."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.end_compound()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'over' if self._shared is None else self.value}>"

    def _inside(self) -> CounterFile:
        if self._shared is None:
            raise RuntimeError("this update is over: use the value inside the `with` block only")
        return self._shared


def _in_range(name: str, value: object) -> int:
    number = checked_integer(name, value)
    if not LOWEST <= number <= HIGHEST:
        raise OverflowError(f"{name} must fit into 64 bits (-2**63 to 2**63 - 1), not {shown(number)}")
    return number
