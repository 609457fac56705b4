"""Each log record of a worker is handled once, in the parent, however the program has configured logging."""

from __future__ import annotations

import logging
import logging.config
import logging.handlers
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpkit import TaskPool
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

NAME = "mpkit-test-logs"
METHODS = ["fork", "forkserver", "spawn"] if os.name == "posix" else ["spawn"]


class Noting(logging.Handler):
    """Writes to a file which process has handled which record."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {record.getMessage()}\n")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that is reset at the end of the test."""
    logger = logging.getLogger(NAME)
    yield logger
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("propagate", [True, False])
def test_a_handler_of_a_logger_handles_each_record_once_and_in_the_parent(
    logger: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, propagate: bool
) -> None:
    path = tmp_path / "log"
    logger.addHandler(Noting(path))
    logger.propagate = propagate
    with TaskPool(1, context=method) as pool:
        pool.apply(tasks.log, (NAME, "own"))
        pool.apply(tasks.log, (f"{NAME}.below", "below"))
        pool.close()
        assert pool.join(PATIENCE)
    assert path.read_text().splitlines() == [f"{os.getpid()} own", f"{os.getpid()} below"]
    assert [record.getMessage() for record in caplog.records] == (["own", "below"] if propagate else [])


class Unmakeable:
    """Can be unpickled only in the process that has pickled it."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Callable[..., None], tuple[int, type[BaseException]]]:
        return make, (os.getpid(), self.error)


def make(pid: int, error: type[BaseException]) -> None:
    if pid != os.getpid():
        raise error("at home only")


def log_the_unmakeable(name: str, error: type[BaseException]) -> None:
    extra = {"what": Unmakeable(error), "colour": "blue", "path": Path("there")}
    logging.getLogger(name).warning("hello", extra=extra)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_record_keeps_all_but_the_extra_that_does_not_unpickle(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    with TaskPool(1) as pool:
        pool.apply(log_the_unmakeable, (NAME, error))
        pool.close()
        assert pool.join(PATIENCE)
    (record,) = caplog.records
    assert (record.getMessage(), record.colour, record.path) == ("hello", "blue", Path("there"))  # type: ignore[attr-defined]
    # In place of that extra there is something that can be formatted, and that says why.
    assert f"{error.__name__}: at home only" in logging.Formatter("%(what)s").format(record)


def log_in_a_fork(name: str) -> int:
    child = os.fork()
    if not child:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        logging.getLogger(name).warning("child")
        os._exit(0)
    logging.getLogger(name).warning("task")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("propagate", [True, False])
def test_a_child_forked_by_a_task_forwards_no_records(
    logger: logging.Logger, tmp_path: Path, propagate: bool
) -> None:
    path = tmp_path / "log"
    logger.addHandler(Noting(path))
    logger.propagate = propagate
    with TaskPool(1, context="fork") as pool:
        assert pool.apply(log_in_a_fork, (NAME,)) == 0
        pool.close()
        assert pool.join(PATIENCE)
    assert path.read_text().splitlines() == [f"{os.getpid()} task"]


def configure_logging(path: str) -> None:
    """Configure logging, as an initializer may do.

    `dictConfig` flushes and closes every handler that the logging module knows.
    """
    file = {"class": "logging.FileHandler", "filename": path, "delay": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"file": file},
            "loggers": {NAME: {"handlers": ["file"]}},
        }
    )


@pytest.mark.skipif(os.name != "posix", reason="fork")
@pytest.mark.parametrize("initialize", [False, True])
def test_what_handlers_have_buffered_when_a_worker_is_forked_is_written_once(
    logger: logging.Logger, tmp_path: Path, initialize: bool
) -> None:
    path, half, own = tmp_path / "log", tmp_path / "half", tmp_path / "own"
    logger.propagate = False
    logger.addHandler(logging.handlers.MemoryHandler(100, target=Noting(path)))
    logger.warning("held back")
    # As if another thread were in the middle of writing. The logger alone refers to this handler.
    logger.addHandler(logging.FileHandler(half, delay=False))
    logger.handlers[-1].stream.write("half a line")  # type: ignore[attr-defined]
    with TaskPool(
        1,
        context="fork",
        initializer=configure_logging if initialize else None,
        initargs=(str(own),)[:initialize],
    ) as pool:
        pool.apply(tasks.log, (NAME, "from the worker"))
        pool.close()
        assert pool.join(PATIENCE)
    if initialize:
        assert own.read_text() == "from the worker\n"
    assert not path.exists()
    assert half.read_text() == ("" if initialize else "half a linefrom the worker\n")
    for handler in logger.handlers:
        handler.flush()
    forwarded = [] if initialize else [f"{os.getpid()} from the worker"]
    assert path.read_text().splitlines() == [f"{os.getpid()} held back", *forwarded]
    assert half.read_text().count("half a line") == 1
