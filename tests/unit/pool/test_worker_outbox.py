"""A worker's outbox stays usable if a put is interrupted at any step."""

from __future__ import annotations

import itertools
from typing import Any, cast

from mpkit.pool._worker.outbox import Outbox
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.unit.shm.others import Call


class _Ring:
    """A ring that always has room."""

    def __init__(self) -> None:
        self.records: list[bytes] = []

    def try_put(self, record: bytes) -> bool:
        self.records.append(record)
        return True


class _Channel:
    def __init__(self) -> None:
        self.outbox = _Ring()
        self.words = [0] * 100


def make() -> tuple[Outbox, list[bytes]]:
    """An outbox, and the list of the records that are put into it."""
    channel = _Channel()
    return Outbox(cast("Any", channel), cast("Any", None)), channel.outbox.records


@needs_a_trace_that_raises
def test_an_exception_at_any_step_of_a_put_leaves_the_lock_free() -> None:
    """A task's signal handler may raise, from Python 3.14 on even between acquiring a lock and the block."""
    outbox, records = make()
    for step in itertools.count():
        interrupted = interrupt_at(step, lambda: outbox.put(b"first"))
        assert not outbox.busy_here()
        call = Call(lambda: outbox.put(b"second"))
        call.join()
        assert call.error is None
        assert records[-1] == b"second"
        if not interrupted:
            break
    assert step > 5


def test_a_record_that_is_put_during_another_put_comes_after_it() -> None:
    outbox, records = make()
    real = outbox._ring.try_put

    def try_put(record: bytes) -> bool:
        if record == b"outer":
            assert outbox.busy_here()
            outbox.put(b"inner")
        return real(record)

    outbox._ring.try_put = try_put  # type: ignore[assignment]
    outbox.put(b"outer")
    assert records == [b"outer", b"inner"]
    assert not outbox.busy_here()
