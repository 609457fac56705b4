"""Waiting for a queue in an event loop: for each side there is a thread while any coroutine waits for it.

The thread takes nothing from the queue and puts nothing in; it only *tells* coroutines to try again. So when
a coroutine is cancelled, nothing is lost, and one that was told in vain waits again.

The thread tells only as many coroutines as can succeed: if a hundred wait for one item, ninety-nine would be
woken in vain. Coroutines that it has told may not have tried yet when it looks again; until they have, they
are counted as if they had succeeded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.queues.get_side import GetSide
from mpkit._shm.queues.put_side import PutSide
from mpkit._shm.queues.queue_file import QueueFile
from mpkit.errors import MpkitError

#: The thread ends when no coroutine has waited for this long.
_LINGER_SECONDS = 0.2
#: How long the thread waits for the queue before it checks whether any coroutine still waits.
_LOOK_SECONDS = 1.0
#: How long a coroutine lets others run when the lock of its side is not to be had; and how long one that was
#: told may take to try before others are told as well (its event loop may be busy, or stopped for ever).
_MOMENT_SECONDS = 0.05


#: A value that `progress` never has.
_NEVER_LOOKED = -2


class _Waiter:
    """A waiting coroutine: when it last looked (as `progress`), and how much room it needs."""

    __slots__ = ("future", "loop", "seen", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, seen: int, size: int) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.seen = seen
        self.size = size


class _Watch:
    """The thread of one side, and the coroutines that wait for that side.

    Args:
        name: the name of the thread.
        wait: ``wait(seen, deadline)`` blocks until `progress` differs from `seen`, so that another try may
            succeed, or until the deadline; it returns whether the former is the case.
        progress: a number that changes when another try may succeed.
        room: how many coroutines can succeed now, and how much room they may need together, as an estimate.
        pass_on: wakes another sleeper, if the thread has taken a token that no coroutine makes use of.
    """

    def __init__(
        self,
        name: str,
        wait: Callable[[int, float], object],
        progress: Callable[[], int],
        room: Callable[[], tuple[int, int]],
        pass_on: Callable[[], object],
    ) -> None:
        self._name = name
        self._wait = wait
        self._progress = progress
        self._room = room
        self._pass_on = pass_on
        # In a forked child there is no such thread, and the lock may be held for ever.
        self._pid = os.getpid()
        self._condition = threading.Condition()
        # The same lock, for the threads of event loops, in which Ctrl-C may come at any step.
        self._lock = InterruptibleLock(self._condition)
        # The coroutines that have not been told, in the order in which they came. (These are dictionaries
        # because there may be thousands of coroutines.)
        self._waiters: dict[_Waiter, None] = {}
        # Those that have been told, and have not tried yet.
        self._trying: dict[_Waiter, None] = {}
        self._thread: threading.Thread | None = None
        self._stopped = False

    async def wait(self, seen: int, size: int = 0) -> None:
        """Return when another try may succeed.

        Args:
            seen: `progress` at the last try.
            size: how much room the coroutine needs.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, seen, size)
        stopped = self._lock.run(self._enter, waiter)
        try:
            if not stopped:
                await waiter.future
        except asyncio.CancelledError:
            if self._end(waiter):
                # It was told, but is not going to try: another sleeper could have been woken instead.
                self._pass_on()
            raise
        finally:
            self._end(waiter)

    def _end(self, waiter: _Waiter) -> bool:
        """Remove a waiter, and return whether it had been told. In a forked child, this does nothing."""
        return self._pid == os.getpid() and self._lock.run(self._leave, waiter)

    def _enter(self, waiter: _Waiter) -> bool:
        """Add a waiter, and start the thread if necessary; return whether `stop` was called."""
        if self._thread is None and not self._stopped:
            # A daemon thread, because it must not keep a program from ending while a coroutine waits. It
            # holds nothing that could be lost.
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            # If no thread can be started, this raises before anything has changed.
            thread.start()
            self._thread = thread
        self._waiters[waiter] = None
        self._condition.notify()
        return self._stopped

    def _leave(self, waiter: _Waiter) -> bool:
        was_told = waiter not in self._waiters
        self._waiters.pop(waiter, None)
        if waiter in self._trying:
            # It tries now, as its next step.
            del self._trying[waiter]
            self._condition.notify()
        return was_told

    def stop(self, nudge: Callable[[], object]) -> None:
        """End the thread, and tell all coroutines; `nudge` adds a token, for which the thread may wait."""
        thread = self._lock.run(self._stop)
        if thread is not None and thread is not threading.current_thread():
            # If another sleeper takes the token, it looks once in vain, and this waits a little longer.
            nudge()
            thread.join(_LOOK_SECONDS + _LINGER_SECONDS)

    def _stop(self) -> threading.Thread | None:
        self._stopped = True
        self._tell(list(self._waiters))
        self._condition.notify()
        return self._thread

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._waiters and not self._stopped:
                    self._condition.wait(_LINGER_SECONDS)
                if not self._waiters or self._stopped:
                    self._thread = None
                    return
                seen = next(iter(self._waiters)).seen
            try:
                ready = self._wait(seen, CLOCK.monotonic() + _LOOK_SECONDS)
                with self._condition:
                    left_over = self._tell_due()
                    if self._waiters and self._trying:
                        self._let_them_try()
                if ready and left_over:
                    self._pass_on()
            except MpkitError:
                # The queue has been closed, say: each coroutine gets the error when it tries again.
                with self._condition:
                    self._tell(list(self._waiters))
            except BaseException as error:  # noqa: BLE001  each coroutine gets it
                with self._condition:
                    self._thread = None
                    self._tell(list(self._waiters), error)
                return

    def _tell_due(self) -> bool:
        """Tell as many coroutines as can succeed, the first one that came first.

        Returns:
            Whether there is something of which no coroutine makes use.
        """
        # `progress` first: what changes after that counts as progress for those that are not told now.
        progress = self._progress()
        number, size = self._room()
        number -= len(self._trying)
        size -= sum(waiter.size for waiter in self._trying)
        due: list[_Waiter] = []
        for waiter in self._waiters:
            if number <= len(due):
                break
            if waiter.seen != progress and waiter.size <= size:
                due.append(waiter)
                size -= waiter.size
        self._tell(due)
        if not self._trying and not due:
            # Other processes or threads were quicker, or there is too little room. All waiters count as
            # having tried now.
            for waiter in self._waiters:
                waiter.seen = progress
        return number > 0 and not self._trying

    def _let_them_try(self) -> None:
        """Wait until one of the coroutines that were told has tried; but only for a moment."""
        before = len(self._trying)
        if not self._condition.wait_for(lambda: len(self._trying) < before or self._stopped, _MOMENT_SECONDS):
            self._trying.clear()

    def _tell(self, waiters: list[_Waiter], error: BaseException | None = None) -> None:
        """Tell waiters to try again, or have them raise the error."""
        for waiter in waiters:
            del self._waiters[waiter]
            # RuntimeError: the event loop is closed.
            with contextlib.suppress(RuntimeError):
                waiter.loop.call_soon_threadsafe(_finish, waiter.future, error)
                self._trying[waiter] = None


def _finish(future: asyncio.Future[None], error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class AsyncWaiters:
    """The coroutines of this process that wait for one queue, on both sides."""

    def __init__(self, file: QueueFile, puts: PutSide, gets: GetSide) -> None:
        self._file = file
        self._items = _Watch(
            "mpkit-queue-items",
            lambda _seen, deadline: gets.wait_for_item(deadline),
            gets.progress,
            lambda: (gets.number_to_try(), 0),
            lambda: puts.wake_getters(1),
        )
        self._room = _Watch(
            "mpkit-queue-room",
            puts.wait_for_progress,
            puts.progress,
            puts.room_to_try,
            puts.pass_on,
        )

    async def item(self) -> None:
        """Return when it is worth trying to take an item."""
        await self._items.wait(_NEVER_LOOKED)

    async def room(self, seen: int, weight: int) -> None:
        """Return when it is worth trying to put an item.

        Args:
            seen: `PutSide.progress` when the last try failed.
            weight: how much the item counts for `max_bytes`.
        """
        # An item that is heavier than the bound goes into an empty queue.
        await self._room.wait(seen, min(weight, self._file.max_bytes))

    async def moment(self) -> None:
        """Let others run for a moment, when a process is stopped (SIGSTOP) while it has the lock."""
        await asyncio.sleep(_MOMENT_SECONDS)

    def stop(self) -> None:
        """End the threads; waiting coroutines try again (and find the queue closed)."""
        self._items.stop(lambda: self._file.items.post(1))
        self._room.stop(lambda: self._file.room.post(1))
