"""Fixtures for all tests: the start methods, and the check that nothing is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import pytest_timeout  # type: ignore[import-untyped]
from hypothesis import HealthCheck, find, settings
from hypothesis.strategies import booleans

from mpkit import BoundedQueue, Lock, LockedCounter
from tests.helpers import leftovers, stuck

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell, the tests would ignore Ctrl-C, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in each run, and no time limit for each: a run must depend neither on luck nor on how busy
# the machine is. To look for new examples, run with --hypothesis-profile=explore.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("steady"), derandomize=False, max_examples=1000)
settings.load_profile("steady")


pytest_timeout.dump_stacks = stuck.with_descendants(pytest_timeout.dump_stacks)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, report: pytest.CollectReport | pytest.TestReport
) -> None:
    """Limit the teardown of a failed test, too, which may wait for what the test has not done.

    At a failure, pytest-timeout stops its timer for the sake of ``--pdb``.
    """
    stuck.record(f"{node.nodeid} failed", str(report.longrepr))
    if isinstance(node, pytest.Item) and not node.config.getoption("usepdb"):
        limits = pytest_timeout._get_item_settings(node)
        if limits.timeout:
            node.ihook.pytest_timeout_set_timer(item=node, settings=limits)


def pytest_collection_finish() -> None:
    """Freeze everything imported so far: it stays until the end, so garbage collections need not look through
    it again, and a collection in a forked child does not copy its pages by writing to them.
    """
    # Not earlier: pytest must have set its own hooks first.
    stuck.record_exceptions()
    # At its first run Hypothesis searches for references to its random number generator, and would not find
    # those in frozen objects. So let it run once before the freeze.
    find(booleans(), bool)
    # From then on Hypothesis times each collection, for deadlines, which are turned off here. If a signal
    # handler raises during such a callback, Python drops the exception, and a test that waits for this one
    # signal would hang.
    gc.callbacks.clear()
    gc.collect()
    gc.freeze()


START_METHODS = [
    method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()
]


#: For tests of what the parent does with a child that is already running. They leave out spawn, because fork
#: and forkserver cover it: a spawned child is a direct child, of the same class (`_OwnChild`) as a forked
#: one, and it gets its arguments by pickling, as a child of the fork server does.
own_or_of_the_server = pytest.mark.parametrize(
    "start_method", [method for method in START_METHODS if method != "spawn"] or START_METHODS
)


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """Each start method that this platform has, by its name."""
    method: str = request.param
    return method


@pytest.fixture(scope="module")
def _short_collections() -> None:
    """For tests that collect garbage at each step: keep what exists already out of these collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def queue() -> Iterator[BoundedQueue[Any]]:
    """An unbounded queue."""
    with BoundedQueue[Any]() as queue:
        yield queue


@pytest.fixture
def small() -> Iterator[BoundedQueue[Any]]:
    """A queue for two items."""
    with BoundedQueue[Any](maxsize=2) as queue:
        yield queue


@pytest.fixture
def lock() -> Iterator[Lock]:
    """A free lock."""
    with closing(Lock()) as lock:
        yield lock


@pytest.fixture
def counter() -> Iterator[LockedCounter]:
    """A counter that stands at 0."""
    with closing(LockedCounter()) as counter:
        yield counter


#: The snapshot of the last check (at most one), which is also the one before the next test. Empty if
#: something may have been started since.
_known: list[leftovers.Snapshot] = []


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Forget the last snapshot: what a module- or session-scoped fixture starts is no leftover of a test."""
    if fixturedef.scope != "function":
        _known.clear()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind_by_the_session() -> Iterator[None]:
    """Module- and session-scoped fixtures must clean up after themselves too."""
    leftovers.adopt_orphans()
    before = leftovers.take()
    yield
    _check(before, "the session")


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, thread, shared-memory file, semaphore or temporary file behind.

    The fork server and the resource tracker of multiprocessing, and mpkit's guardian, may stay: each serves
    the whole session.
    """
    before = _known.pop() if _known else leftovers.take()
    yield
    _known.append(_check(before, request.node.nodeid))


def _check(before: leftovers.Snapshot, where: str) -> leftovers.Snapshot:
    left, now = leftovers.settle(before)
    if left:
        text = "\n  ".join(left.describe())
        left.remove()
        pytest.fail(f"{where} left behind:\n  {text}", pytrace=False)
    return now
