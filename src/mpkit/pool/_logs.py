"""Log records of the workers reach the handlers of the parent.

In the worker, one handler on the root logger sends each record through the outbox. In the parent the thread
for callbacks (`_caller`) hands it to the logger of the same name, so levels, filters and handlers configured
there decide. The records of one worker stay in order, but a result may be there sooner than the records of
its task; all have been handed on when the pool's `join` returns. Records carry ``process`` (the worker's pid)
and ``mpkit_task_id`` (None outside a task).
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
    # A forked worker has the parent's handlers, which would write everything a second time.
    for handler in list(root.handlers):
        root.removeHandler(handler)
    forward = _Forward(put, current_task)
    root.addHandler(forward)
    root.setLevel(level)

    def stop() -> None:
        # It may hang elsewhere, or behind another handler.
        forward.drop_all()
        root.removeHandler(forward)

    return stop


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
