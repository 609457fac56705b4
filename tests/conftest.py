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

# The same examples in each run, and no clock: a run must not depend on luck, nor on what else the machine
# does. New examples are looked for with --hypothesis-profile=explore.
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("steady"), derandomize=False, max_examples=1000)
settings.load_profile("steady")


pytest_timeout.dump_stacks = stuck.tell_before(pytest_timeout.dump_stacks)


def pytest_collection_finish() -> None:
    """All that has been imported stays until the end: no collection need look through it again, and a fork
    copies no page of it only because a collection has counted there.
    """
    # Only now: pytest has set its own hooks.
    stuck.listen()
    # At its first run Hypothesis looks for what refers to its random numbers, and would see nothing frozen.
    find(booleans(), bool)
    # From then on it has each collection timed, for deadlines that there are none of here. Python drops what
    # the handler of a signal raises in such a callback: the one signal that a test waits for would be lost.
    gc.callbacks.clear()
    gc.collect()
    gc.freeze()


START_METHODS = [
    method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()
]


#: For what this process does with a child that has started: a spawned one is its own as a forked one is, of
#: the same class (`_OwnChild`); and what it is given by pickling, one of the server is given so, too.
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
    """For tests that collect at each step: what is there already is not looked through each time."""
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


#: What there was when the last check was over, as long as nothing can have come since.
_known: list[leftovers.Snapshot] = []


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """What a fixture for several tests starts stays beyond the next one."""
    if fixturedef.scope != "function":
        _known.clear()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind_by_the_session() -> Iterator[None]:
    """What module- and session-scoped fixtures start must end too."""
    leftovers.adopt_orphans()
    before = leftovers.take()
    yield
    _check(before, "the session")


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no process, thread, shared-memory file, semaphore or temporary file more than before.

    The fork server and the resource tracker of multiprocessing may stay: they serve until the end.
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
