"""A canary for the private names of `concurrent.futures` that the handle of a task uses.

If a test fails, `concurrent.futures` of this Python works differently, and `mpkit.pool._handle` has to be
adapted.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import functools
import inspect
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import _base as futures_base
from typing import Any

import pytest

from mpkit.errors import TaskCancelled
from mpkit.pool import TaskHandle
from mpkit.pool._handle import is_of_asyncio
from mpkit.pool._protocol.channel import PLAIN, RAISED
from tests.helpers.conditions import Alarm, InterruptedCondition
from tests.helpers.waiting import PATIENCE


class QuietCollector:
    """Replaces the collector. No outcome ever arrives by itself."""

    def __init__(self) -> None:
        self.handles: set[object] = set()
        self.called: list[Callable[[], object]] = []

    @property
    def watched(self) -> int:
        return len(self.handles)

    def watch(self, handle: object) -> None:
        self.handles.add(handle)

    def unwatch(self, handle: object) -> None:
        self.handles.discard(handle)

    def look(self) -> None:
        """Do nothing: there is nothing to fetch."""

    def call_back(self, call: Callable[[], object]) -> None:
        call()

    def do_later(self, chore: Callable[[], object]) -> None:
        chore()


class FakeEngine:
    def __init__(self) -> None:
        self.collector = QuietCollector()


def make_handle() -> tuple[TaskHandle[Any], QuietCollector]:
    engine: Any = FakeEngine()
    return TaskHandle(engine), engine.collector


def names_used_by(function: Callable[..., Any]) -> set[str]:
    """The attributes of a future that a function of the standard library reads."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr[:1] == "_"}


def test_a_future_has_no_other_private_state() -> None:
    assert set(vars(Future())) == {
        "_condition",
        "_state",
        "_result",
        "_exception",
        "_waiters",
        "_done_callbacks",
    }


def test_the_states_are_strings() -> None:
    assert futures_base.PENDING == "PENDING"
    assert futures_base.FINISHED == "FINISHED"
    assert futures_base.CANCELLED_AND_NOTIFIED == "CANCELLED_AND_NOTIFIED"


@pytest.mark.parametrize("function", [futures_base.wait, futures_base.as_completed, Future.add_done_callback])
def test_what_the_standard_library_asks_a_future_for(function: Callable[..., Any]) -> None:
    known = {"_condition", "_state", "_waiters", "_done_callbacks", "_invoke_callbacks"}
    foreign = {
        "_AcquireFutures",
        "_create_and_install_waiters",
        "_yield_finished_futures",
        "_result_or_cancel",
    }
    assert names_used_by(function) <= known | foreign


def test_every_method_that_reads_the_outcome_is_overridden() -> None:
    """`_result` and `_exception` of a handle stay empty, so no inherited method may read them."""
    for name, member in vars(Future).items():
        if inspect.isfunction(member) and name not in vars(TaskHandle):
            used = names_used_by(member)
            writers = {"__init__", "_Future__get_result"}
            assert name in writers or not used & {"_result", "_exception"}, name


def test_nobody_but_the_pool_sets_the_outcome() -> None:
    """It returned None, for what was set and for what the task returned."""
    handle, _ = make_handle()
    setters: list[Callable[[], object]] = [
        lambda: handle.set_result(5),
        lambda: handle.set_exception(KeyError(5)),
        handle.set_running_or_notify_cancel,
    ]
    for each in setters:
        with pytest.raises(concurrent.futures.InvalidStateError, match="gets its outcome from its pool"):
            each()
    assert not handle.done()
    handle._settle(None, PLAIN, 1)
    assert handle.result(0) == 1


def test_waiters_have_three_methods() -> None:
    for name in ("add_result", "add_exception", "add_cancelled"):
        assert callable(getattr(futures_base._Waiter, name))


def test_wait_and_as_completed() -> None:
    handle, collector = make_handle()
    done, pending = concurrent.futures.wait([handle], timeout=0)
    assert (done, pending) == (set(), {handle})
    assert collector.watched == 1
    seen: list[object] = []

    def consume() -> None:
        seen.extend(future.result() for future in concurrent.futures.as_completed([handle], timeout=30))

    thread = threading.Thread(target=consume)
    thread.start()
    assert handle._settle(None, PLAIN, 7)
    assert not handle._settle(None, PLAIN, 8)
    thread.join(30)
    assert seen == [7]
    assert collector.watched == 0
    assert concurrent.futures.wait([handle]).done == {handle}


@pytest.mark.parametrize("error", [ValueError("no"), TaskCancelled("no")])
def test_waiting_for_an_exception(error: BaseException) -> None:
    handle, _ = make_handle()
    other, _ = make_handle()
    waited: list[object] = []
    thread = threading.Thread(
        target=lambda: waited.append(
            concurrent.futures.wait(
                [handle, other], timeout=30, return_when=concurrent.futures.FIRST_COMPLETED
            ).done
        )
    )
    thread.start()
    handle._settle(None, RAISED, error)
    thread.join(30)
    assert waited == [{handle}]
    assert handle.cancelled() == isinstance(error, TaskCancelled)
    with pytest.raises(type(error)):
        handle.result()
    if handle.cancelled():
        with pytest.raises(TaskCancelled):
            handle.exception()
    else:
        assert handle.exception() is error


def test_a_thread_that_sleeps_until_the_task_ends_is_notified() -> None:
    handle, _ = make_handle()
    condition = handle._ensure_condition()
    waiting = threading.Event()
    notified: list[bool] = []

    def wait() -> None:
        with condition:
            waiting.set()
            notified.append(condition.wait(PATIENCE))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(PATIENCE)
    # It holds the condition until it sleeps.
    with condition:
        pass
    handle._settle(None, PLAIN, 1)
    thread.join(PATIENCE)
    assert notified == [True]


@pytest.mark.parametrize(
    "kind, data, ends",
    [(PLAIN, 1, False), (RAISED, TaskCancelled("no"), False), (RAISED, ValueError("no"), True)],
    ids=["a value", "a cancelled task", "an exception"],
)
def test_only_an_exception_ends_a_wait_for_the_first_exception(kind: int, data: object, ends: bool) -> None:
    """As with other futures: there, a cancelled one does not count as an exception."""
    handle, _ = make_handle()
    waiter = futures_base._AllCompletedWaiter(2, stop_on_exception=True)
    handle._ensure_condition()
    handle._waiters.append(waiter)
    handle._settle(None, kind, data)
    assert waiter.finished_futures == [handle]
    assert waiter.event.is_set() == ends


def test_an_interrupt_while_a_callback_is_added_leaves_the_condition_free() -> None:
    """Otherwise the outcome would wait for the condition for ever."""
    handle, _ = make_handle()
    handle._ensure_condition()
    condition = handle.__dict__["_condition"] = handle._made_condition = InterruptedCondition()
    with pytest.raises(Alarm):
        handle._call_back(print)
    assert condition.is_free()


def test_callbacks_run_once_before_or_after() -> None:
    handle, _ = make_handle()
    seen: list[object] = []
    handle.add_done_callback(seen.append)
    assert seen == []
    handle._settle(None, PLAIN, None)
    assert seen == [handle]
    handle.add_done_callback(seen.append)
    assert seen == [handle, handle]


def test_a_handle_that_ended_before_anybody_asked_behaves_like_a_future() -> None:
    handle, _ = make_handle()
    handle._settle(None, PLAIN, 3)
    assert list(concurrent.futures.as_completed([handle], timeout=30)) == [handle]
    assert (handle.done(), handle.running(), handle.cancelled()) == (True, False, False)
    assert handle.exception() is None


def test_asking_whether_a_task_has_ended_fetches_its_outcome() -> None:
    """A program that only asks, and never waits, must see the end, too."""
    handle, collector = make_handle()
    assert not handle.ready()
    outcomes = [(PLAIN, 3)]
    collector.look = lambda: handle._settle(None, *outcomes.pop())  # type: ignore[method-assign, assignment]
    assert handle.ready()
    assert handle.successful()
    assert not outcomes


def test_a_waiter_is_told_once_even_if_telling_the_next_one_was_interrupted() -> None:
    """Otherwise `as_completed` would count the handle twice."""

    class Interrupted(futures_base._Waiter):
        def add_result(self, future: Future[Any]) -> None:
            if not raised:
                raised.append(Alarm())
                raise raised[0]
            super().add_result(future)

    raised: list[Alarm] = []
    handle, _ = make_handle()
    waiters = [futures_base._Waiter(), Interrupted(), futures_base._Waiter()]
    handle._ensure_condition()
    handle._waiters.extend(waiters)
    with pytest.raises(Alarm):
        handle._settle(None, PLAIN, 1)
    assert [waiter.finished_futures for waiter in waiters] == [[handle]] * 3


def test_asyncio_wraps_a_handle() -> None:
    async def main() -> list[object]:
        early, _ = make_handle()
        early._settle(None, PLAIN, 1)
        late, _ = make_handle()
        failing, _ = make_handle()

        def settle() -> None:
            late._settle(None, PLAIN, 2)
            failing._settle(None, RAISED, ValueError("no"))

        futures = [asyncio.wrap_future(handle) for handle in (early, late, failing)]
        thread = threading.Thread(target=settle)
        thread.start()
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        thread.join(30)
        return list(outcomes)

    first, second, third = asyncio.run(main())
    assert (first, second) == (1, 2)
    assert isinstance(third, ValueError)


def test_a_callback_that_raises_when_it_is_looked_at_does_not_keep_the_task_from_ending() -> None:
    handle, _ = make_handle()
    seen: list[object] = []
    gone: Callable[[object], object] = functools.partial(print)
    handle.add_done_callback(weakref.proxy(gone))
    handle.add_done_callback(seen.append)
    del gone
    handle._settle(None, PLAIN, 1)
    assert handle.done()
    assert handle.result(0) == 1
    assert seen == [handle]


def test_the_callback_of_asyncio_is_told_from_others() -> None:
    """Otherwise coroutines would have to wait for callbacks of the program."""
    handle, _ = make_handle()

    async def wrap() -> None:
        asyncio.wrap_future(handle)
        handle.add_done_callback(print)
        handle.add_done_callback(lambda _: None)
        assert [is_of_asyncio(callback) for callback in handle._done_callbacks] == [True, False, False]
        handle._settle(None, PLAIN, 1)

    asyncio.run(wrap())
