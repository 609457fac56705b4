"""Which tasks and outcomes fit into a record, and those that go through a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mpkit._shm.queues.ring import TornRingError
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError, SharedMemoryExhausted
from mpkit.pool._protocol import payload as _payload
from mpkit.pool._protocol.channel import BIG_VALUE, HEAD_SIZE, LONGEST_TASK, RAISED, Channel


def test_the_longest_task_fits_into_an_empty_inbox_wherever_its_index_is() -> None:
    channel = Channel.create()
    try:
        inbox = channel.inbox
        rooms: list[int] = []
        for _ in range(inbox.capacity):
            rooms.append(inbox.room())
            # Move the index, and empty the inbox again.
            assert inbox.try_put(b"")
            inbox.try_get_many(1)
        assert min(rooms) == LONGEST_TASK
    finally:
        channel.discard()


@pytest.mark.parametrize(
    "name", ["precious", "mpkit-parcel-", "mpkit-parcel-1\0", "xmpkit-parcel-1", "\udcff"]
)
def test_only_a_parcel_is_ever_taken_over(name: str, tmp_path: Path) -> None:
    """The name comes from shared memory, which may be corrupt: no other file may be removed because of it."""
    path = tmp_path / "precious"
    path.touch()
    record = bytes(HEAD_SIZE) + os.fsencode(f"{tmp_path}/{name}")
    with pytest.raises(TornRingError):
        _payload.adopt(BIG_VALUE, record)
    with pytest.raises(TornRingError):
        _payload.drop_outcome(BIG_VALUE, record)
    assert path.exists()


@pytest.mark.skipif(os.name != "posix", reason="files without a drive letter")
def test_a_big_outcome_for_which_there_is_no_descriptor_ends_with_the_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, name = _payload.dump_value(bytes(100_000), "pickle")

    def refused(path: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(os, "open", refused)
    kind, error = _payload.adopt(kind, bytes(HEAD_SIZE) + name)
    assert kind == RAISED
    assert isinstance(error, SharedMemoryExhausted)
    assert "ulimit -n" in str(error)
    assert not os.path.exists(name.decode()), "the file was not removed"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_named_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mpkit-parcel-1")
    with pytest.raises(PermissionError, match="not a regular file"):
        _payload.open_shared(str(tmp_path / "mpkit-parcel-1"))


@pytest.mark.parametrize(
    "dump", [_payload.dump_value, lambda value, pickler: _payload.dump_chunk([value], [], pickler)]
)
def test_outcomes_are_pickled_as_the_pool_was_told(
    dump: Callable[[object, Pickler], tuple[int, bytes]],
) -> None:
    pytest.importorskip("cloudpickle")
    kind, data = dump(lambda: 3, "cloudpickle")
    value, error = _payload.open_outcome(kind, bytes(HEAD_SIZE) + data)
    assert error is None
    function = value if callable(value) else value[0][0]
    assert function() == 3
    with pytest.raises(SerializationError):
        dump(lambda: 3, "pickle")
