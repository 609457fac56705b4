"""Log records of the workers reach the handlers of the parent.

In the worker, one handler sends each record through the outbox: it is on the root logger, and on those that
do not propagate to it. In the parent the thread for callbacks (`mpkit.pool._engine.caller`) hands it to the
logger of the same name, so levels, filters and handlers configured there decide. The records of one worker
stay in order, but a result may be there sooner than the records of its task; all have been handed on when the
pool's `join` returns. Records carry ``process`` (the worker's pid) and ``mpkit_task_id`` (None outside a
task).
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable
from typing import cast

from mpkit._wire import codec
from mpkit.pool._protocol.channel import HEAD_SIZE

#: A record takes so many bytes at most.
_MOST_BYTES = 12 << 10
#: If it has to be cut, so many are left of each field but the following ones.
_SHORT = 500
_TEXTS = ("msg", "exc_text", "stack_info")
_CUT_OFF = "... (cut off)"
#: What pickle writes before long texts, and not before empty ones.
_ROOM_FOR_LENGTHS = 64
_PLAIN = frozenset({str, int, float, bool, type(None)})
_LEFT_OUT = frozenset({"args", "msg", "exc_info", "message", "asctime"})
_STANDARD = frozenset({*logging.makeLogRecord({}).__dict__, "mpkit_task_id"})


class _Forward(logging.Handler):
    def __init__(self, put: Callable[[bytes], None], current_task: Callable[[], int]) -> None:
        super().__init__()
        self._put = put
        self._current_task = current_task

    def drop_all(self) -> None:
        """Send nothing from now on."""
        self._put = _drop

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(_dump(record, self._current_task() or None))
        except Exception:  # noqa: BLE001  as every logging handler does
            self.handleError(record)


def _drop(_record: bytes) -> None:
    """Where there is nobody to send it to."""


def forward_to(
    put: Callable[[bytes], None], current_task: Callable[[], int], level: int
) -> Callable[[], None]:
    """In a worker: send every log record to the parent.

    Args:
        put: sends one record.
        current_task: the number of the task that runs, or 0.
        level: the level of the parent's root logger, below which nothing needs to travel unless a logger says
            otherwise.

    Returns:
        What ends it, in a fork of the worker: what is logged there is no business of the parent's. With no
        handler of its own, warnings and worse go to standard error, as in any program.
    """
    root = logging.getLogger()
    named = list(root.manager.loggerDict.values())
    loggers = [root, *(logger for logger in named if isinstance(logger, logging.Logger))]
    _take_handlers(loggers)
    forward = _Forward(put, current_task)
    carriers = [logger for logger in loggers if logger is root or not logger.propagate]
    for logger in carriers:
        logger.addHandler(forward)
    root.setLevel(level)

    def stop() -> None:
        # It may hang elsewhere, or behind another handler.
        forward.drop_all()
        for logger in carriers:
            logger.removeHandler(forward)

    return stop


#: Handlers that this worker had when it began.
_taken: list[logging.Handler] = []


def _take_handlers(loggers: list[logging.Logger]) -> None:
    """Take all handlers from loggers.

    A forked worker has the parent's, which would write everything a second time. Even what they hold back is
    the parent's to write. So nobody may flush or close them here: not the garbage collector (they are kept),
    and not `logging.config`, which does it to all that are in the list of the logging module.
    """
    for logger in loggers:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            _taken.append(handler)
    listed: list[Callable[[], logging.Handler | None]] = getattr(logging, "_handlerList", [])
    listed[:] = [reference for reference in listed if reference() not in _taken]


# -- records as bytes ----------------------------------------------------------------------------------------


def _dump(record: logging.LogRecord, task: int | None) -> bytes:
    """Fields that always unpickle, and beside them the objects of an `extra=`, each pickled by itself.

    So one that cannot be unpickled takes neither the record nor another one with it.
    """
    fields: dict[str, object] = {}
    extras: dict[str, bytes] = {}
    for key, value in record.__dict__.items():
        if key in _LEFT_OUT:
            continue
        if type(value) in _PLAIN:
            fields[key] = value
        elif key in _STANDARD:
            fields[key] = _made_plain(value)
        else:
            try:
                extras[key] = codec.dumps(value)
            except Exception:  # noqa: BLE001  whatever its pickling raises
                fields[key] = _text_of(value)
    fields["msg"] = _made_plain(record.getMessage())
    message: object = record.msg
    if type(message) is dict and not record.args:
        # What formatters of structured logs look for; the text stands in for one that cannot travel.
        with contextlib.suppress(Exception):
            extras["msg"] = codec.dumps(cast("object", message))
    if record.exc_info and not record.exc_text:
        # A traceback does not travel; its text does.
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["mpkit_task_id"] = task
    data = pickle.dumps((fields, extras), 5)
    return data if len(data) <= _MOST_BYTES else _dump_cut(fields, extras)


def _dump_cut(fields: dict[str, object], extras: dict[str, bytes]) -> bytes:
    """The same of a record that is too long: what is short stays, long texts share the room that is left."""
    texts = {key: value for key in _TEXTS if isinstance(value := fields.get(key), str)}
    short = {key: _cut(value, _SHORT) if isinstance(value, str) else value for key, value in fields.items()}
    short.update(dict.fromkeys(texts, ""))
    short.update((key, "(cut off)") for key, data in extras.items() if len(data) > _SHORT)
    extras = {key: data for key, data in extras.items() if len(data) <= _SHORT}
    if len(pickle.dumps((short, extras), 5)) > _MOST_BYTES // 2:
        short, extras = {key: value for key, value in short.items() if key in _STANDARD}, {}
    room = _MOST_BYTES - len(pickle.dumps((short, extras), 5)) - _ROOM_FOR_LENGTHS
    for number, key in enumerate(sorted(texts, key=lambda key: len(texts[key]))):
        text = _cut(texts[key], room // (len(texts) - number))
        room -= len(_encoded(text))
        short[key] = text
    return pickle.dumps((short, extras), 5)


def _cut(text: str, most: int) -> str:
    """The text if it takes `most` bytes at most, or its beginning."""
    encoded = _encoded(text)
    if len(encoded) <= most:
        return text
    return encoded[: most - len(_CUT_OFF)].decode("utf-8", "ignore") + _CUT_OFF


def _encoded(text: str) -> bytes:
    # As pickle does it.
    return text.encode("utf-8", "surrogatepass")


def _made_plain(value: object) -> object:
    """The same whole number or text, if its class may be unknown to the parent (an enumeration, say)."""
    if isinstance(value, int):
        return int(value)
    return str.__str__(value) if isinstance(value, str) else _text_of(value)


def _text_of(value: object) -> str:
    try:
        return str.__str__(repr(value))
    except Exception:  # noqa: BLE001  foreign code
        return f"(an object of type {type(value).__qualname__}, whose repr() fails)"


def handle(record: bytes) -> None:
    """In the parent: hand a record to the logger of the same name."""
    fields, extras = pickle.loads(record[HEAD_SIZE:])
    for key, data in extras.items():
        try:
            fields[key] = codec.contained(codec.loads, data)
        except Exception as error:  # noqa: BLE001  a formatter may ask for it, so there is something in its place
            fields.setdefault(key, f"({error})")
    log_record = logging.makeLogRecord({"args": None, "exc_info": None, **fields})
    logger = logging.getLogger(log_record.name)
    if logger.isEnabledFor(log_record.levelno):
        logger.handle(log_record)
