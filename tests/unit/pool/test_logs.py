"""Log records as bytes: they arrive whatever they contain, and none is too long for an outbox."""

from __future__ import annotations

import enum
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpkit.pool._protocol import logs as _logs
from mpkit.pool._protocol.channel import HEAD_SIZE

NAME = "mpkit-test-logs"
MOST = 12 << 10
HERE = Path(__file__).parent
long_texts = st.text(max_size=3).flatmap(lambda text: st.integers(0, 9000).map(lambda times: text * times))


def record_of(message: object, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord(NAME, logging.WARNING, __file__, 1, message, (), None)
    record.__dict__.update(fields)
    return record


def arrived(record: logging.LogRecord, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    caplog.clear()
    data = _logs._dump(record, 7)
    assert len(data) <= MOST
    _logs.handle(bytes(HEAD_SIZE) + data)
    return caplog.records[0]


@given(
    texts=st.fixed_dictionaries({key: st.none() | long_texts for key in ("exc_text", "stack_info")}),
    message=long_texts,
    names=st.fixed_dictionaries(dict.fromkeys(("pathname", "funcName", "processName"), long_texts)),
    extras=st.dictionaries(
        st.text("abc", min_size=1, max_size=300).map("extra_".__add__),
        st.none() | st.binary(max_size=20_000) | long_texts | st.integers().map(lambda base: base**99),
        max_size=20,
    ),
)
def test_no_record_is_too_long(
    texts: dict[str, Any], message: str, names: dict[str, str], extras: dict[str, object]
) -> None:
    assert len(_logs._dump(record_of(message, **texts, **names, **extras), 7)) <= MOST


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
def test_a_long_message_is_cut_at_the_limit(caplog: pytest.LogCaptureFixture, character: str) -> None:
    record = arrived(record_of(character * 20_000, colour="blue"), caplog)
    text = record.getMessage().removesuffix("... (cut off)")
    assert set(text) == {character}
    assert 11 << 10 < len(text.encode()) < MOST
    assert (record.levelno, record.mpkit_task_id, record.colour) == (logging.WARNING, 7, "blue")  # type: ignore[attr-defined]


def test_a_short_field_is_not_cut_because_another_one_is_long(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("x" * 50_000)
    except ValueError:
        raised = sys.exc_info()
    record = arrived(record_of("it failed", exc_info=raised, array=b"x" * 50_000, path=HERE), caplog)
    assert record.getMessage() == "it failed"
    assert record.exc_text is not None
    assert record.exc_text.startswith("Traceback")
    assert len(record.exc_text) > 11 << 10
    assert (record.array, record.path) == ("(cut off)", HERE)  # type: ignore[attr-defined]


class Level(enum.IntEnum):
    HIGH = 45


class Text(str):
    __slots__ = ()

    def __reduce__(self) -> Any:
        raise OSError("not this one")


class WithoutRepr:
    def __repr__(self) -> str:
        raise OSError("not this one")

    def __reduce__(self) -> Any:
        raise OSError("nor this one")


def test_nothing_in_a_record_can_keep_it_from_arriving(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"levelno": Level.HIGH, "threadName": Text("main"), "funcName": WithoutRepr()}
    record = arrived(record_of(Text("hello"), **fields, what=WithoutRepr(), callback=lambda: 1), caplog)
    assert (record.getMessage(), record.threadName) == ("hello", "main")
    assert type(record.levelno) is int
    assert record.levelno == 45
    assert "WithoutRepr" in record.what  # type: ignore[attr-defined]
    assert "lambda" in record.callback  # type: ignore[attr-defined]


def test_of_many_fields_those_of_every_record_arrive(caplog: pytest.LogCaptureFixture) -> None:
    fields = {f"extra_{number}": f"{number:400}" for number in range(100)}
    record = arrived(record_of("y" * 20_000, threadName="main", **fields), caplog)
    assert record.getMessage().startswith("y" * 10_000)
    assert record.threadName == "main"
    assert not hasattr(record, "extra_0")


def test_a_record_that_cannot_be_sent_does_not_fail_whoever_logs(capsys: pytest.CaptureFixture[str]) -> None:
    def put(_record: bytes) -> None:
        raise OSError("no room")

    _logs._Forward(put, lambda: 0).handle(record_of("hello"))
    assert "OSError: no room" in capsys.readouterr().err


class Fragile:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_dictionary_stays_one_for_formatters_of_structured_logs(caplog: pytest.LogCaptureFixture) -> None:
    assert arrived(record_of({"event": "hello", "n": 1}), caplog).msg == {"event": "hello", "n": 1}
    for value in (lambda: 1, Fragile(), "x" * 20_000):
        # If it cannot be sent, its text is.
        assert arrived(record_of({"event": "hello", "n": value}), caplog).getMessage().startswith("{'event'")
