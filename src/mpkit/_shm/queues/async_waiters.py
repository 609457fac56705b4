"""Waiting for a queue inside an event loop: one thread for each side that coroutines wait for, only as long
as any of them does.

The thread takes nothing from the queue and puts nothing in: it only tells the coroutines to try again. So a
coroutine that is cancelled has lost nothing, and one that was told for nothing waits again.

It tells no more of them than can succeed: with a hundred that wait for one item each, ninety-nine would be
woken in vain. Those it has told may not have tried yet when it looks again, so until they have, they are
counted as if they had.
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

#: A thread that nobody waits for any more ends after this long.
_LINGER_SECONDS = 0.2
#: How long the thread waits for the queue before it looks whether anybody still waits for it.
_LOOK_SECONDS = 1.0
#: How long a coroutine lets others run when the lock of its side cannot be had; and how long one that has
#: been told may take to try, before others are told as well (its loop may be busy, or stand still for ever).
_MOMENT_SECONDS = 0.05


#: No progress is that.
_NEVER_LOOKED = -2


class _Waiter:
    __slots__ = ("future", "loop", "seen", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, seen: int, size: int) -> None:
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.seen = seen
        self.size = size


class _Watch:
    """The thread of one side, and who waits for it.

    Args:
        name: of the thread.
        wait: ``wait(seen, deadline)`` blocks until it is worth trying again for somebody who has seen
            `progress` at `seen`, or the deadline.
        progress: a number that is another one when it is worth trying again.
        room: how many may succeed now, and of what size together, as far as can be told.
        pass_on: wakes another sleeper, for a token that the thread has taken and no coroutine makes use of.
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
        # A fork leaves the thread behind, and perhaps the lock taken.
        self._pid = os.getpid()
        self._condition = threading.Condition()
        # The same lock, for the threads of event loops: where Ctrl-C may come.
        self._lock = InterruptibleLock(self._condition)
        # In the order in which they came; dictionaries, because there may be thousands.
        self._waiters: dict[_Waiter, None] = {}
        #: Have been told, and not tried yet.
        self._trying: dict[_Waiter, None] = {}
        self._thread: threading.Thread | None = None
        self._stopped = False

    async def wait(self, seen: int, size: int = 0) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, seen, size)
        stopped = self._lock.run(self._enter, waiter)
        try:
            if not stopped:
                await waiter.future
        except asyncio.CancelledError:
            if self._end(waiter):
                # And not going to try: somebody else who sleeps might have been told instead.
                self._pass_on()
            raise
        finally:
            self._end(waiter)

    def _end(self, waiter: _Waiter) -> bool:
        """It waits no longer; whether it has been told. In a forked child, where it only goes, nothing."""
        return self._pid == os.getpid() and self._lock.run(self._leave, waiter)

    def _enter(self, waiter: _Waiter) -> bool:
        """Have the thread wait for it, too; whether that has been stopped."""
        if self._thread is None and not self._stopped:
            # A daemon: a program that ends while a coroutine waits must not be held up. It holds nothing that
            # could be lost.
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            # Should the system have no thread left, nothing has begun.
            thread.start()
            self._thread = thread
        self._waiters[waiter] = None
        self._condition.notify()
        return self._stopped

    def _leave(self, waiter: _Waiter) -> bool:
        was_told = waiter not in self._waiters
        self._waiters.pop(waiter, None)
        if waiter in self._trying:
            # It tries now: nothing comes between this and its next step.
            del self._trying[waiter]
            self._condition.notify()
        return was_told

    def stop(self, nudge: Callable[[], object]) -> None:
        thread = self._lock.run(self._stop)
        if thread is not None and thread is not threading.current_thread():
            # It sleeps for a token: one more, which costs others a look in vain at most, ends that at once.
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
                # Closed meanwhile: each coroutine meets the reason when it tries again.
                with self._condition:
                    self._tell(list(self._waiters))
            except BaseException as error:  # noqa: BLE001  each of them has to know
                with self._condition:
                    self._thread = None
                    self._tell(list(self._waiters), error)
                return

    def _tell_due(self) -> bool:
        """Tell those who may succeed, the first who came first. Whether there is something, and nobody here
        makes use of it.
        """
        # In this order: what changes after the first look is progress to those who are not told now.
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
            # Others were quicker, or it is too little. All of them have seen it now, as if they had tried.
            for waiter in self._waiters:
                waiter.seen = progress
        return number > 0 and not self._trying

    def _let_them_try(self) -> None:
        """Wait until one of those who were told has tried, for a moment."""
        before = len(self._trying)
        if not self._condition.wait_for(lambda: len(self._trying) < before or self._stopped, _MOMENT_SECONDS):
            self._trying.clear()

    def _tell(self, waiters: list[_Waiter], error: BaseException | None = None) -> None:
        """Let them try again, or know of the error."""
        for waiter in waiters:
            del self._waiters[waiter]
            # A loop that is closed has nobody left to tell.
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
    """Both sides of one queue, in this process."""

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
        """Return when it is worth trying to put an item of that weight, for somebody who failed when
        `PutSide.progress` was `seen`.
        """
        # An empty queue takes it in any case.
        await self._room.wait(seen, min(weight, self._file.max_bytes))

    async def moment(self) -> None:
        """Let others run for a moment: a process was stopped (SIGSTOP) while it held the lock."""
        await asyncio.sleep(_MOMENT_SECONDS)

    def stop(self) -> None:
        """End the threads; coroutines that wait try again (and find the queue closed)."""
        self._items.stop(lambda: self._file.items.post(1))
        self._room.stop(lambda: self._file.room.post(1))
