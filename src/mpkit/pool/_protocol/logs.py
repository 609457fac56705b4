"""How log records of the workers get to the log handlers of the parent.

In the worker, a handler sends each record through the outbox. It is attached to the root logger, and to
loggers that do not propagate. In the parent, the thread for callbacks (`mpkit.pool._engine.caller`) passes
the record to the logger of the same name, so levels, filters and handlers configured there apply. The records
of one worker stay in order. A result may arrive before the log records of its task; all of them have been
handled when the pool's `join` returns. Records have the attributes ``process`` (the worker's pid) and
``mpkit_task_id`` (None outside a task).
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Callable
from typing import cast

from mpkit._wire import codec
from mpkit.pool._protocol.channel import HEAD_SIZE

#: The most bytes of a record.
_MOST_BYTES = 12 << 10
#: If a record has to be cut, so many bytes are left of each field, ...
_SHORT = 500
#: ... except for these fields, which share the room that is left.
_TEXTS = ("msg", "exc_text", "stack_info")
#: Marks a text that has been cut.
_CUT_OFF = "... (cut off)"
#: What the pickle of a record grows by, besides the texts, when long texts are filled in for empty ones.
_ROOM_FOR_LENGTHS = 64
#: Types of values that always unpickle.
_PLAIN = frozenset({str, int, float, bool, type(None)})
#: Attributes of a record that are not sent as they are.
_LEFT_OUT = frozenset({"args", "msg", "exc_info", "message", "asctime"})
#: The attributes of every record; others come from an `extra=`.
_STANDARD = frozenset({*logging.makeLogRecord({}).__dict__, "mpkit_task_id"})


class _Forward(logging.Handler):
    """Sends log records to the parent."""

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
    """Do nothing, in a fork of the worker: nothing may be sent to the parent."""


def forward_to(
    put: Callable[[bytes], None], current_task: Callable[[], int], level: int
) -> Callable[[], None]:
    """In a worker: send every log record to the parent.

    Args:
        put: sends one record.
        current_task: returns the number of the task that is running, or 0.
        level: the level of the parent's root logger; it becomes that of the worker's root logger.

    Returns:
        A function that ends this, for a fork of the worker: the parent does not handle what is logged there.
        Unless the fork configures handlers, warnings and errors then go to standard error, as in any program.
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
        # First, in case the program has attached the handler elsewhere, or wrapped it in another handler.
        forward.drop_all()
        for logger in carriers:
            logger.removeHandler(forward)

    return stop


#: Handlers that the loggers of this worker had at its start. They are kept for ever: see `_take_handlers`.
_taken: list[logging.Handler] = []


def _take_handlers(loggers: list[logging.Logger]) -> None:
    """Remove all handlers from loggers.

    A forked worker has inherited the handlers of its parent, which would write everything twice. Even records
    that they have buffered are for the parent to write. So nothing may flush or close them here: not the
    garbage collector (so they are kept), and not `logging.config`, which closes all handlers in the list of
    the logging module (so they are removed from it).
    """
    for logger in loggers:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            _taken.append(handler)
    listed: list[Callable[[], logging.Handler | None]] = getattr(logging, "_handlerList", [])
    listed[:] = [reference for reference in listed if reference() not in _taken]


# -- records as bytes ----------------------------------------------------------------------------------------


def _dump(record: logging.LogRecord, task: int | None) -> bytes:
    """Pickle a record: fields that always unpickle, and the objects of an `extra=`, each pickled separately.

    So if one of these objects cannot be unpickled, the record and the other objects are still there.
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
        # Formatters for structured logs use the dictionary itself. If it cannot be pickled, the text is sent.
        with contextlib.suppress(Exception):
            extras["msg"] = codec.dumps(cast("object", message))
    if record.exc_info and not record.exc_text:
        # A traceback cannot be pickled; its text can.
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["mpkit_task_id"] = task
    data = pickle.dumps((fields, extras), 5)
    return data if len(data) <= _MOST_BYTES else _dump_cut(fields, extras)


def _dump_cut(fields: dict[str, object], extras: dict[str, bytes]) -> bytes:
    """The same for a record that is too long: short fields are sent whole, long texts share the room left."""
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
    """The text, or its beginning if it takes more than `most` bytes."""
    encoded = _encoded(text)
    if len(encoded) <= most:
        return text
    return encoded[: most - len(_CUT_OFF)].decode("utf-8", "ignore") + _CUT_OFF


def _encoded(text: str) -> bytes:
    # As pickle encodes it.
    return text.encode("utf-8", "surrogatepass")


def _made_plain(value: object) -> object:
    """A number or text of a built-in type: the parent may not know the class of the value (an enum, say)."""
    if isinstance(value, int):
        return int(value)
    return str.__str__(value) if isinstance(value, str) else _text_of(value)


def _text_of(value: object) -> str:
    try:
        return str.__str__(repr(value))
    except Exception:  # noqa: BLE001  foreign code
        return f"(an object of type {type(value).__qualname__}, whose repr() fails)"


def handle(record: bytes) -> None:
    """In the parent: pass a record on to the logger of the same name."""
    fields, extras = pickle.loads(record[HEAD_SIZE:])
    for key, data in extras.items():
        try:
            fields[key] = codec.contained(codec.loads, data)
        except Exception as error:  # noqa: BLE001  a formatter may use it, so something must be in its place
            fields.setdefault(key, f"({error})")
    log_record = logging.makeLogRecord({"args": None, "exc_info": None, **fields})
    logger = logging.getLogger(log_record.name)
    if logger.isEnabledFor(log_record.levelno):
        logger.handle(log_record)
