"""Ctrl-C at any step of making, first using and closing an object, and of opening a handle.

Nothing stays locked, and nothing is left behind.
"""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any, TypeAlias

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm.memory import names
from mpkit.errors import ClosedError
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.unit.shm.others import Call

Shared: TypeAlias = "Lock | LockedCounter | BoundedQueue[Any]"

# Only Python 3.10 runs signal handlers between any two opcodes. Off by default, because an exception that a
# trace function raises between two opcodes can corrupt the interpreter itself (see python/cpython#96864).
OPCODES = bool(os.environ.get("MPKIT_EVERY_OPCODE")) and sys.version_info < (3, 11)

pytestmark = [
    needs_a_trace_that_raises,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # files that close themselves
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    ),  # interrupts in a `__del__`
    pytest.mark.parametrize(
        "make, use",
        [
            pytest.param(Lock, lambda lock: lock.acquire(timeout=10) and lock.release(), id="lock"),
            pytest.param(LockedCounter, lambda counter: counter.add(), id="counter"),
            pytest.param(BoundedQueue, lambda queue: (queue.put(1), queue.get()), id="queue"),
        ],
    ),
]


def elsewhere(call: Callable[[], object]) -> None:
    """Check that `call` succeeds in another thread, too."""
    thread = Call(call)
    thread.join()
    if thread.error is not None:
        raise thread.error


def join(made: Shared) -> None:
    made._opened()._join(None)


def _make_into(made: list[Shared], make: Callable[[], Shared]) -> None:
    made.append(make())


def test_making(
    make: Callable[[], Shared], use: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half made is removed, and its destructor does not complain of what is missing."""
    unraisable: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append(repr(what.exc_value)))
    before = names.owned_names()
    for step in itertools.count():
        made: list[Shared] = []
        interrupted = interrupt_at(step, partial(_make_into, made, make), opcodes=OPCODES)
        for each in made:
            use(each)
            each.close()
        if not interrupted:
            break
    gc.collect()
    assert names.owned_names() == before
    assert not unraisable
    assert step > 10


def test_the_first_use(make: Callable[[], Shared], use: Callable[[Any], object]) -> None:
    for step in itertools.count():
        made = make()
        interrupted = interrupt_at(step, partial(join, made), opcodes=OPCODES)
        for _ in range(2):
            elsewhere(partial(use, made))
            use(made)
        made.close()
        if not interrupted:
            break
    assert step > 10


def test_closing(make: Callable[[], Shared], use: Callable[[Any], object]) -> None:
    for step in itertools.count():
        made = make()
        use(made)
        interrupted = interrupt_at(step, made.close, opcodes=OPCODES)
        elsewhere(made.close)
        with pytest.raises(ClosedError):
            use(made)
        if not interrupted:
            break
    assert step > 10


def test_opening_a_handle(make: Callable[[], Shared], use: Callable[[Any], object]) -> None:
    with closing(make()) as made:
        use(made)
        handle = pickle.dumps(made)
        for step in itertools.count():
            interrupted = interrupt_at(step, lambda: pickle.loads(handle), opcodes=OPCODES)
            elsewhere(lambda: use(pickle.loads(handle)))
            if not interrupted:
                break
        assert step > 5
