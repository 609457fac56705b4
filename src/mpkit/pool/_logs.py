"""Log records of the workers reach the handlers of the parent.

In the worker, one handler sends each record through the outbox: it is on the root logger, and on those that
do not propagate to it. In the parent the collector's thread hands it to the logger of the same name, so
levels, filters and handlers configured there decide. The records of one worker stay in order, but a result
may be there sooner than the records of its task; all have been handed on when the pool's `join` returns.
Records carry ``process`` (the worker's pid) and ``mpkit_task_id`` (None outside a task).
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable

from mpkit.pool._channel import HEAD_SIZE

_MOST_BYTES = 12 << 10
_PLAIN = (str, int, float, bool, type(None))


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


def _dump(record: logging.LogRecord, task: int | None) -> bytes:
    message = record.getMessage()
    fields = {
        key: value
        for key, value in record.__dict__.items()
        if key not in ("args", "msg", "exc_info", "message", "asctime")
    }
    if record.exc_info and not record.exc_text:
        # A traceback does not travel; its text does.
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["msg"] = message
    fields["mpkit_task_id"] = task
    try:
        data = pickle.dumps(fields, 5)
    except Exception:  # noqa: BLE001  whatever an `extra=` brought along
        data = pickle.dumps(
            {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in fields.items()}, 5
        )
    if len(data) > _MOST_BYTES:
        short: dict[str, object] = {
            key: value if isinstance(value, int | float) else str(value)[:1000]
            for key, value in fields.items()
            if value is not None
        }
        short["msg"] = message[: _MOST_BYTES // 8] + "... (cut off)"
        short["exc_text"] = fields.get("exc_text") and str(fields["exc_text"])[: _MOST_BYTES // 8]
        short = {key: short[key] for key in (*_STANDARD, "mpkit_task_id") if key in short}
        data = pickle.dumps(short, 5)
    return data


_STANDARD = tuple(logging.makeLogRecord({}).__dict__)


def handle(record: bytes) -> None:
    """In the parent: hand a record to the logger of the same name."""
    fields = pickle.loads(record[HEAD_SIZE:])
    log_record = logging.makeLogRecord({"args": None, "exc_info": None, **fields})
    logger = logging.getLogger(log_record.name)
    if logger.isEnabledFor(log_record.levelno):
        logger.handle(log_record)
