"""Each error is of a type that existing code catches, says what happened, and survives pickling."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import inspect
import multiprocessing
import pickle
import queue
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool

import pytest

from mpkit import errors

NAMES = [name for name in errors.__all__ if name != "MpkitError"]

ALSO_A: dict[str, tuple[type[BaseException], ...]] = {
    "AccessDenied": (PermissionError,),
    "ClosedError": (ValueError, RuntimeError),
    "HandleLost": (FileNotFoundError,),
    "InitializerFailed": (BrokenProcessPool,),
    "PoolBroken": (BrokenProcessPool,),
    "ProcessGone": (ProcessLookupError,),
    "QueueEmpty": (queue.Empty,),
    "QueueFull": (queue.Full,),
    "QueueShutDown": (getattr(queue, "ShutDown", Exception),),
    "SerializationError": (pickle.PicklingError,),
    "SharedMemoryExhausted": (OSError,),
    "TaskCancelled": (concurrent.futures.CancelledError,),
    "TaskTimeout": (TimeoutError, multiprocessing.TimeoutError, concurrent.futures.TimeoutError),
    "WaitTimeout": (TimeoutError, multiprocessing.TimeoutError, concurrent.futures.TimeoutError),
    "WorkerCrashed": (BrokenProcessPool,),
    "WorkerMemoryExceeded": (MemoryError,),
}

# One error of each class, with every attribute that it can have.
SAMPLES: list[errors.MpkitError] = [
    errors.AccessDenied(pid=1),
    errors.ClosedError("the queue is closed"),
    errors.HandleLost("gone", name="mpkit-queue-1-abc"),
    errors.HandleLost(),
    errors.InitializerFailed("the initializer raised"),
    errors.MpkitError("base"),
    errors.PoolBroken("no workers"),
    errors.ProcessGone("no such process", pid=123),
    errors.QueueEmpty(),
    errors.QueueFull(),
    errors.QueueShutDown(),
    errors.SerializationError("cannot pickle"),
    errors.SharedMemoryExhausted(requested_bytes=1 << 30, available_bytes=4096),
    errors.TaskCancelled("cancelled"),
    errors.TaskTimeout(task_id=7, pid=123, timeout=2.5, stack="File x, line 1\n"),
    errors.WaitTimeout("no result within 0.5 s"),
    errors.WorkerCrashed(
        task_id=7, pid=123, exitcode=-11, signal="SIGSEGV", stack="Fatal", rss_bytes=5 << 20, likely_oom=True
    ),
    errors.WorkerMemoryExceeded(task_id=7, pid=123, rss_bytes=5 << 20, limit=4 << 20),
]


class Untravelled(Exception):
    """Can be pickled, but not unpickled: `args` does not contain what its constructor needs."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("only one")
        self.numbers = a, b


def same(a: errors.MpkitError, b: errors.MpkitError) -> bool:
    return type(a) is type(b) and a.args == b.args and vars(a) == vars(b) and str(a) == str(b)


def test_every_class_has_an_example_and_its_bases_here() -> None:
    assert {type(error).__name__ for error in SAMPLES} == set(errors.__all__)
    assert set(ALSO_A) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_an_mpkit_error_and_what_callers_catch_today(name: str) -> None:
    cls = getattr(errors, name)
    assert issubclass(cls, errors.MpkitError)
    for base in ALSO_A[name]:
        assert issubclass(cls, base)


@pytest.mark.parametrize("name", errors.__all__)
def test_can_be_raised_with_a_message_alone(name: str) -> None:
    cls = getattr(errors, name)
    with pytest.raises(cls, match="this is the text"):
        raise cls("this is the text")
    assert inspect.getdoc(cls)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_pickle_round_trip_keeps_message_and_attributes(error: errors.MpkitError, protocol: int) -> None:
    again = pickle.loads(pickle.dumps(error, protocol))
    assert same(error, again)
    assert again.__cause__ is None
    if isinstance(error, OSError):
        assert (again.errno, again.strerror, again.filename) == (error.errno, error.strerror, error.filename)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_pickle_round_trip_keeps_cause_and_notes(error: errors.MpkitError) -> None:
    error = copy.copy(error)
    error.__cause__ = ZeroDivisionError("the reason")
    vars(error)["__notes__"] = ["first", "second"]
    again = pickle.loads(pickle.dumps(error))
    assert same(error, again)
    assert isinstance(again.__cause__, ZeroDivisionError)
    assert again.__cause__.args == ("the reason",)
    assert again.__suppress_context__
    assert again.__notes__ == ["first", "second"]


def test_a_second_round_trip_changes_nothing() -> None:
    error = errors.TaskTimeout(task_id=1, stack="somewhere")
    once = pickle.loads(pickle.dumps(error))
    assert same(once, pickle.loads(pickle.dumps(once)))


@pytest.mark.parametrize(
    "cause", [Untravelled(1, 2), ValueError(lambda: None)], ids=["unpickling", "pickling"]
)
def test_a_cause_that_cannot_travel_becomes_a_note(cause: Exception) -> None:
    error = errors.InitializerFailed("the initializer raised")
    error.__cause__ = cause
    vars(error)["__notes__"] = ["kept"]
    again = pickle.loads(pickle.dumps(error))
    assert again.__cause__ is None
    kept, added = again.__notes__
    assert kept == "kept"
    assert type(cause).__name__ in added
    assert vars(error)["__notes__"] == ["kept"], "pickling must not change the error itself"


def test_a_long_chain_of_causes_is_pickled_in_linear_time() -> None:
    error: errors.MpkitError = errors.MpkitError("root")
    for n in range(60):  # checking each link anew would take 2**60 steps
        outer = errors.PoolBroken(str(n))
        outer.__cause__ = error
        error = outer
    again = pickle.loads(pickle.dumps(error))
    depth = 0
    while again.__cause__ is not None:
        again, depth = again.__cause__, depth + 1
    assert depth == 60
    assert again.args == ("root",)


def test_system_errors_carry_their_errno() -> None:
    assert errors.SharedMemoryExhausted("full").errno == errno.ENOSPC
    assert errors.HandleLost("gone").errno == errno.ENOENT
    assert errors.ProcessGone(pid=5).errno == errno.ESRCH
    assert errors.AccessDenied(pid=5).errno == errno.EACCES
    assert errors.HandleLost("gone", name="mpkit-x").filename == "mpkit-x"
    assert "None" not in str(errors.HandleLost("gone"))


def test_default_messages_contain_the_facts() -> None:
    crash = str(SAMPLES[-2])
    for fact in ("123", "task 7", "SIGSEGV", "5.0 MiB", "ran out of memory"):
        assert fact in crash
    assert str(errors.WorkerCrashed(pid=9, exitcode=3)) == "process 9 ended with exit code 3"
    assert str(errors.WorkerCrashed()) == "the process died"
    assert str(errors.TaskTimeout(task_id=7, pid=1, timeout=2.5)) == (
        "task 7 exceeded its time limit of 2.5 s and was stopped (process 1)"
    )
    assert str(errors.TaskTimeout()) == "the task exceeded its time limit and was stopped"
    assert str(errors.WorkerMemoryExceeded(pid=12, rss_bytes=5 << 20, limit=4 << 20)) == (
        "process 12 used 5.0 MiB of memory (4.0 MiB allowed) and was stopped"
    )
    assert str(errors.WorkerMemoryExceeded(rss_bytes=3 << 40, limit=1000)) == (
        "the task used 3.0 TiB of memory (1000 bytes allowed) and was stopped"
    )
    assert "1.0 GiB, 4.0 KiB left" in str(SAMPLES[-6])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks show notes from Python 3.11 on")
def test_a_printed_timeout_shows_where_the_task_was() -> None:
    error = errors.TaskTimeout("too long", stack='File "work.py", line 12 in crunch')
    assert 'File "work.py", line 12 in crunch' in "".join(traceback.format_exception_only(error))
