"""The handle of a task: a real `concurrent.futures.Future` that is cheap to create, awaitable, and has the
methods of `multiprocessing.pool.AsyncResult`.

A plain Future creates a condition (a re-entrant lock and a queue) at once. That costs more than everything
else that sending a short task takes, and hardly any handle needs one. So here the condition is created on
first use: by `wait`, `as_completed`, `wrap_future` or `add_done_callback`. This relies on some private names
of `concurrent.futures.Future` (`tests/unit/pool/test_handle.py` fails if a new Python changes them):

- ``_state`` with the values ``PENDING``, ``CANCELLED_AND_NOTIFIED`` and ``FINISHED``;
- ``_condition``, ``_waiters`` and ``_done_callbacks``, read through the instance;
- ``_waiters`` holds objects with ``add_result``, ``add_exception`` and ``add_cancelled``;
- ``_result`` and ``_exception``, which only `result`, `exception`, `__repr__` and (3.15) ``_get_snapshot``
  read: all of these are overridden here.

An outcome is unpickled by the first thread that asks for it, in that thread: a slow or broken
``__setstate__`` harms nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import _base as futures_base
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mpkit._platform.hints import override
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.deadlines import check_timeout
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._wire.unsendable import Unsendable
from mpkit.errors import TaskCancelled, WaitTimeout
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import BIG_ERROR, BIG_VALUE, ERROR, PLAIN, RAISED, VALUE

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine
    from mpkit.pool._engine.ledger import Task

R = TypeVar("R")
T = TypeVar("T")

_Callback = Callable[[Future[Any]], object]

_PENDING = futures_base.PENDING
_FINISHED = futures_base.FINISHED
_CANCELLED = futures_base.CANCELLED_AND_NOTIFIED

#: How long a thread that brings an outcome waits to acquire the condition of the handle.
CONDITION_SECONDS = 1.0

# For all handles: whether a handle is settled without a condition, or gets one first, is decided while
# holding this lock. It is held for a few instructions, and no other lock is taken meanwhile.
_creation = InterruptibleLock()


@in_forked_children
def _forget_after_fork() -> None:
    global _creation
    _creation = InterruptibleLock()


def _holding(condition: threading.Condition, function: Callable[..., T], *args: object) -> T:
    """Call ``function(*args, True)`` holding the condition, or ``function(*args, False)`` without it.

    The latter after `CONDITION_SECONDS`: Ctrl-C in `concurrent.futures.wait` can leave the condition acquired
    for ever. Without it the function cannot notify the pool's own waiters, but these wait in time slices.
    """
    result = InterruptibleLock(condition).run_within(CONDITION_SECONDS, function, *args, True)
    return function(*args, False) if result is None else result[0]


def is_of_asyncio(callback: _Callback) -> bool:
    """Whether a callback is the one of `asyncio.wrap_future`, which only notifies an event loop.

    If a new Python has it in another module, this is false, and it is called in turn with other callbacks.
    """
    # By its type alone: what poses as something else (a weak proxy, say) may raise when it is asked.
    return type(callback) is FunctionType and callback.__module__ == "asyncio.futures"


class _ConditionOnDemand:
    """The attribute `_condition` of a handle: created on first access, and a plain attribute from then on.

    It is not a property, because a property calls Python code on each access, and Ctrl-C may come in any
    Python code: even where `concurrent.futures` is just about to release the condition.
    """

    def __get__(self, handle: TaskHandle[Any], owner: object) -> threading.Condition:
        condition = handle._ensure_condition()
        handle._watch()
        handle.__dict__["_condition"] = condition
        return condition


class TaskHandle(Unsendable, Future[R]):
    """What `TaskPool.submit` returns: the future result of a task.

    It is a `concurrent.futures.Future`, so `concurrent.futures.wait`, `as_completed` and
    `asyncio.wrap_future` work. It can also be awaited, and it has `get`, `wait`, `ready` and `successful` of
    `multiprocessing.pool.AsyncResult`. It ends exactly once.

    ``handle.add_done_callback(fn)`` calls ``fn(handle)`` when the task has ended: in a thread of the pool, or
    immediately in the caller's thread if the task has ended already. ``await handle`` returns the result, or
    raises what `result` would; cancelling the ``await`` cancels the task, even if it is running.

    Attributes:
        task_id: The number of the task, as in log records, errors and snapshots.

    Safe from: any thread of the process that made it.
    """

    _instead = "send what its result() returns"
    # Class-level defaults of what Future.__init__ would set, which is not called.
    _state: str = _PENDING
    _result: R | None = None
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    #: Waiters of `concurrent.futures` that have still to be told that the task has ended; None: nobody.
    _untold: list[Any] | None = None
    #: Once the task has ended, the callbacks that have still to be called: asyncio's, and all others.
    _due: tuple[list[_Callback], list[_Callback]] | None = None
    #: See `Sink`.
    _can_be_told_again: bool = True
    #: Kind and data of the outcome: in one tuple, so that no thread sees one of them without the other.
    _got: tuple[int, Any] = (PLAIN, None)
    task_id: int = 0

    def __init__(self, engine: Engine) -> None:
        # Future.__init__ is not called on purpose, see the top of this file.
        self._engine = engine
        self._task: Task | None = None

    # -- what Future's own methods, wait() and as_completed() use --------------------------------------------

    if not TYPE_CHECKING:
        # For type checkers it stays the plain attribute of `Future`, because their stubs ask for one.
        _condition = _ConditionOnDemand()

    def _watch(self) -> None:
        """Have the collector fetch the outcome: it is awaited in a way that fetches nothing by itself."""
        if self._state is _PENDING:
            self._engine.collector.watch(self)

    def _ensure_condition(self) -> threading.Condition:
        """The condition; from now on the handle is settled while holding it."""
        return self._made_condition or _creation.run(self._make_condition)

    def _make_condition(self) -> threading.Condition:
        if self._made_condition is None:
            # The lists first: any thread that sees the condition may use them.
            self._waiters: list[Any] = []
            self._done_callbacks: list[_Callback] = []
            self._made_condition = threading.Condition()
        return self._made_condition

    def _sent(self, task: Task) -> None:
        """Note the task of this handle; the pool is about to send it."""
        self._task = task
        self.task_id = task.number

    def _next_item(self) -> int | None:
        return None

    if not TYPE_CHECKING:
        # For whoever makes futures: here that is the pool, and what anybody else sets would get lost.

        def set_result(self, *_outcome: object) -> NoReturn:
            """Refused: the outcome comes from the pool alone."""
            raise InvalidStateError(
                f"{self!r} gets its outcome from its pool; make a Future of your own to set one"
            )

        set_exception = set_running_or_notify_cancel = set_result

    # -- the outcome -----------------------------------------------------------------------------------------

    def _settle(self, task: Task | None, kind: int, data: object) -> bool:  # noqa: ARG002  a Sink
        """Take the outcome; False if there was one already. Called by the pool, which then holds no lock."""
        state = _CANCELLED if kind == RAISED and isinstance(data, TaskCancelled) else _FINISHED
        lock = _creation
        try:
            lock.acquire()
            first = self._state is _PENDING
            condition = self._made_condition
            if first and condition is None:
                self._got = (kind, data)
                self._task = None
                self._state = state
            lock.release()
        except BaseException:
            try:
                lock.unwind()
            finally:
                lock.unwind()
            raise
        if not first or condition is None:
            return first
        # Deferred, so that an interrupt does not prevent waiters and callbacks from being told.
        with deferred_interrupts():
            try:
                if not _holding(condition, self._end, state, kind, data):
                    return False
                self._tell()
            except BaseException:
                # The handler of another signal has raised. Try again in a thread in which no handler runs.
                self._engine.collector.do_later(partial(self._tell, again=True))
                raise
        return True

    def _end(self, state: str, kind: int, data: object, owned: bool) -> bool:
        """Take the outcome; False if there was one already. With `owned`, this thread holds the condition."""
        if self._state is not _PENDING:
            return False
        self._got = (kind, data)
        self._task = None
        # A copy: a waiter that is added later sees by itself that the task has ended.
        self._untold = list(self._waiters)
        callbacks = self._done_callbacks
        if callbacks:
            self._due = (
                [callback for callback in callbacks if is_of_asyncio(callback)],
                [callback for callback in callbacks if not is_of_asyncio(callback)],
            )
        self._state = state
        if owned:
            self._ensure_condition().notify_all()
        return True

    def _tell(self, *, again: bool = False) -> None:
        """Tell the waiters of `concurrent.futures`, and have the callbacks called.

        With `again`, an earlier call was ended by an exception: waiters that have been told are left out.
        """
        for waiter in self._untold or ():
            if again and self in waiter.finished_futures:
                continue
            if self._state is _CANCELLED:
                waiter.add_cancelled(self)
            elif self._got[0] in (ERROR, BIG_ERROR, RAISED):
                waiter.add_exception(self)
            else:
                waiter.add_result(self)
        if self._state is not _PENDING:
            self._untold = None
            collector = self._engine.collector
            collector.unwatch(self)
            if self._due is not None:
                self._done_callbacks = []
                of_asyncio, others = self._due
                if of_asyncio:
                    # Not in the caller's thread: a coroutine need not wait for slow callbacks of other tasks.
                    collector.do_later(partial(self._call_all, of_asyncio))
                if others:
                    collector.call_back(partial(self._call_all, others))

    def _call_all(self, callbacks: list[_Callback]) -> None:
        # Each is removed before it is called: after an exception in `_tell` this may be called twice.
        while callbacks:
            self._call(callbacks.pop(0))

    def _call(self, callback: _Callback) -> None:
        try:
            callback(self)
        except BaseException as error:  # noqa: BLE001  it is logged, as in concurrent.futures
            # Logged in the caller's thread: this may be the collector's, and log handlers may be slow.
            text = "exception calling callback for %r"
            log = partial(futures_base.LOGGER.error, text, self, exc_info=error)
            self._engine.collector.call_back(log)

    def _call_back(self, callback: _Callback) -> None:
        """`add_done_callback`, but the callback is never called in this thread, even if the task has ended.

        This thread has just submitted the task, and may hold a lock that the callback takes.
        """
        with deferred_interrupts():
            if not InterruptibleLock(self._condition).run(self._add_callback, callback):
                self._engine.collector.call_back(partial(self._call, callback))

    def _add_callback(self, callback: _Callback) -> bool:
        """Add a callback; False if the task has ended already (holding the condition)."""
        pending = self._state is _PENDING
        if pending:
            self._done_callbacks.append(callback)
        return pending

    def _outcome(self) -> tuple[R | None, BaseException | None]:
        """The outcome, unpickled. To be called only when the task has ended."""
        kind, data = self._got
        if kind != PLAIN and kind != RAISED:
            value, error = payload.open_outcome(kind, data)
            if error is not None and (kind == VALUE or kind == BIG_VALUE):
                # Not stored: the value may be good, and the error be that of a signal handler which ran in
                # the middle of the unpickling. The next call tries again.
                return None, error
            lock = _creation
            try:
                lock.acquire()
                # Two threads may have unpickled it at once: both return what the first one has stored.
                if self._got[0] != PLAIN and self._got[0] != RAISED:
                    self._got = (PLAIN, value) if error is None else (RAISED, error)
                kind, data = self._got
                lock.release()
            except BaseException:
                try:
                    lock.unwind()
                finally:
                    lock.unwind()
                raise
        # The kind says what `data` is. (Calling `cast` would cost something for each outcome.)
        return (data, None) if kind == PLAIN else (None, data)  # pyright: ignore[reportReturnType]

    def _wait(self, timeout: float | None, what: str) -> None:
        if timeout is not None:
            timeout = check_timeout(timeout)
        if not self._engine.lead.wait_for(self, timeout):
            raise WaitTimeout(
                f"task {self.task_id} did not end within {timeout:g} s; "
                f"it goes on ({what} can be called again)"
            )

    @override
    def result(self, timeout: float | None = None) -> R:
        """Wait for the task and return what it returned.

        The first call unpickles the value, in the calling thread. That runs code of its classes, and no time
        limit can stop it: if it hangs, this call hangs, but no other; Ctrl-C (`KeyboardInterrupt`) ends it.
        `done` and `wait` never unpickle anything. If unpickling fails, the next call tries again, because the
        handler of another signal may have raised an exception in the middle of it (which is then the cause of
        the `SerializationError`).

        Args:
            timeout: Seconds to wait for the task; None: until it has ended. If the time runs out, the task
                goes on. Unpickling is not included.

        Raises:
            WaitTimeout: The time ran out.
            ValueError: `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            TaskCancelled: The task was cancelled, or its pool was terminated.
            TaskTimeout: The task exceeded its own limit.
            WorkerCrashed: The worker died while it ran this task.
            WorkerMemoryExceeded: Its worker used more than the pool's `max_memory_bytes`.
            SerializationError: The function, an argument, the result or the exception of the task cannot be
                pickled or unpickled.
            SharedMemoryExhausted: There was no room for a big result.
            InitializerFailed: The pool's initializer has failed.
            PoolBroken: Workers could not be started.
            ClosedError: This process is a fork of the pool's, and the task had not ended at the fork.
            RuntimeError: The task raised StopIteration, which is the cause. Or it has not ended, and this is
                a signal handler or a ``__del__`` that interrupts this thread's own work with the pool: it
                would wait for itself.
            Exception: Whatever else the task raised, with its remote traceback as the cause.

        Blocking: until the task has ended, `timeout` seconds at most, then for as long as unpickling takes.
        """
        if self._state is _PENDING:
            self._wait(timeout, "result()")
        value, error = self._outcome()
        if error is not None:
            try:
                raise error
            finally:
                # Break the reference cycle between the exception, its traceback and this frame.
                del self, error
        return value  # type: ignore[return-value]  # the value of a task that succeeded is an R

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task and return the exception it raised, or None.

        If the task has returned a value, it is unpickled to check that this is possible; if it is not, the
        `SerializationError` is returned. See `result`.

        Args:
            timeout: Seconds to wait for the task; None: until it has ended. Unpickling is not included.

        Raises:
            WaitTimeout: The time ran out.
            TaskCancelled: The task was cancelled, or its pool was terminated.
            ValueError: `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            ClosedError, RuntimeError: It cannot be waited for here, see `result`.

        Blocking: as `result`.
        """
        if self._state is _PENDING:
            self._wait(timeout, "exception()")
        error = self._outcome()[1]
        if self._state is _CANCELLED and error is not None:
            raise error
        return error

    def get(self, timeout: float | None = None) -> R:
        """The same as `result`, under the name that `multiprocessing.pool.AsyncResult` uses."""
        return self.result(timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task has ended or the time has run out; raises neither its error nor `WaitTimeout`.

        Args:
            timeout: Seconds to wait; None: until the task has ended.

        Raises:
            ValueError: `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            ClosedError, RuntimeError: The task cannot be waited for here, see `result`.

        Blocking: until the task has ended, `timeout` seconds at most.
        """
        if self._state is _PENDING:
            self._engine.lead.wait_for(self, check_timeout(timeout))

    @override
    def done(self) -> bool:
        """Whether the task has ended. Never blocks."""
        if self._state is _PENDING:
            self._engine.collector.look()
        return self._state is not _PENDING

    def _is_settled(self) -> bool:
        """Whether the outcome has been handed over. Unlike `done`, this does not fetch outcomes."""
        return self._state is not _PENDING

    def ready(self) -> bool:
        """The same as `done`, under the name that `multiprocessing.pool.AsyncResult` uses."""
        return self.done()

    def successful(self) -> bool:
        """Whether the task has ended without an exception. Unpickles the value: see `result`.

        Raises:
            ValueError: The task has not ended yet.

        Blocking: for as long as unpickling takes.
        """
        if not self.done():
            raise ValueError(f"task {self.task_id} has not ended yet; call wait() first")
        return self._outcome()[1] is None

    @override
    def running(self) -> bool:
        """Whether a worker is running the task at this moment. Never blocks."""
        task = self._task
        return not self.done() and task is not None and self._engine.insight.running_on(task) is not None

    @override
    def cancelled(self) -> bool:
        """Whether the task was cancelled, or ended because its pool was terminated. Never blocks."""
        return self._state is _CANCELLED

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker that is running the task now, or None. Never blocks."""
        task = self._task
        return None if task is None else self._engine.insight.running_on(task)

    @override
    def cancel(self) -> bool:
        """Cancel the task: if it has not begun, it never begins; if it is running, it is stopped.

        The handle is cancelled at once. A running task is interrupted (KeyboardInterrupt in the task), and if
        that does not end it within the pool's grace period, its worker is terminated, then killed, and
        replaced. What the task has started (programs, processes) and not ended itself ends with it.

        Never waits for the task. May be called in a signal handler or a ``__del__``; if that interrupts this
        thread's own work with the pool, the task is cancelled a little later (and False may be returned).

        Returns:
            Whether the task is cancelled; False if it had ended otherwise.

        Raises:
            ClosedError: This process is a fork of the pool's.
        """
        if self._state is _PENDING:
            task = self._task
            if task is not None:
                self._engine.submission.cancel(task)
        return self._state is _CANCELLED

    def _cancel_unless_begun(self) -> None:
        """Cancel the task if it has not begun; if it is running it goes on, as in `concurrent.futures`.

        `running` followed by `cancel` would not do: the task may begin between the two.
        """
        if self._state is _PENDING:
            task = self._task
            if task is not None:
                self._engine.submission.cancel(task, even_begun=False)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait for the task in a coroutine. Cancelling the wait cancels the task, even if it is running."""
        import asyncio  # noqa: PLC0415  importing mpkit must not load asyncio

        return asyncio.wrap_future(self).__await__()

    def _get_snapshot(self) -> tuple[bool, bool, R | None, BaseException | None]:
        # Called by asyncio, from Python 3.15 on.
        if self._state is _PENDING:
            return False, False, None, None
        if self._state is _CANCELLED:
            return True, True, None, None
        return True, False, *self._outcome()

    def __repr__(self) -> str:
        if self._state is _PENDING:
            what = "pending"
        elif self._state is _CANCELLED:
            what = "cancelled"
        else:
            kind, data = self._got
            if kind == PLAIN:
                what = f"returned {type(data).__name__}"
            elif kind == RAISED:
                what = f"raised {type(data).__name__}"
            else:
                what = "failed" if kind in (ERROR, BIG_ERROR) else "finished"
        return f"<{type(self).__name__} {self.task_id} {what}>"
