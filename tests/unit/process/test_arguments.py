"""`WorkerProcess` checks its arguments in the constructor."""

from __future__ import annotations

import multiprocessing
import types
from typing import Any

import pytest

from mpkit import WorkerProcess
from mpkit._wire import codec
from mpkit.errors import SerializationError


def function(number: int) -> int:
    return number


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"group": 1}, ValueError, "group must be None; got 1"),
        ({"target": 5}, TypeError, "target must be callable, or None; got 5"),
        ({"target": "print"}, TypeError, "got 'print'"),
        ({"name": 5}, TypeError, "name must be a string, or None; got 5"),
        ({"args": 5}, TypeError, r"args must be a tuple of arguments, such as args=\(1,\); got 5"),
        ({"args": None}, TypeError, "got None"),
        ({"kwargs": [1]}, TypeError, r"kwargs must map names to arguments, or be None; got \[1\]"),
        ({"kwargs": 5}, TypeError, "got 5"),
        ({"kwargs": {1: 2}}, TypeError, "kwargs must have strings as keys; got 1"),
        ({"start_method": "x"}, ValueError, "start_method must be one of .*; got 'x'"),
        ({"start_method": 1}, TypeError, "start_method must be the name of a start method"),
        ({"max_memory_bytes": "1"}, TypeError, "max_memory_bytes must be a whole number of bytes"),
        ({"max_memory_bytes": 1.5}, TypeError, "got 1.5"),
        (
            {"max_memory_bytes": 0},
            ValueError,
            "max_memory_bytes must be positive, or None for no limit; got 0",
        ),
        ({"max_memory_bytes": -1}, ValueError, "got -1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        WorkerProcess(**options)


def test_a_function_that_is_called_instead_of_passed() -> None:
    with pytest.raises(TypeError, match=r"Pass the function itself.*WorkerProcess\.call\(f, 1, 2\)"):
        WorkerProcess(target=function(1))  # type: ignore[call-overload, arg-type, unused-ignore]
    with pytest.raises(TypeError, match="target must be callable"):
        WorkerProcess.call(5)  # type: ignore[arg-type]


def test_any_iterable_will_do_for_args() -> None:
    process = WorkerProcess(target=function, args=iter([1]), kwargs=None)
    assert repr(process).startswith("<WorkerProcess name='WorkerProcess-")


def test_a_context_will_do_for_the_start_method() -> None:
    WorkerProcess(target=function, args=(1,), start_method=multiprocessing.get_context("spawn"))


def test_arguments_and_attributes_of_multiprocessing() -> None:
    process = WorkerProcess(None, function, "name", (1,), {}, daemon=True)
    assert (process.name, process.daemon) == ("name", True)
    assert (process.pid, process.ident, process.exitcode) == (None, None, None)
    assert process.authkey == multiprocessing.current_process().authkey
    process.name = "other"
    process.daemon = False
    assert (process.name, process.daemon) == ("other", False)
    assert WorkerProcess().daemon is multiprocessing.current_process().daemon
    with pytest.raises(ValueError, match="not started"):
        _ = process.sentinel


def test_call_makes_one_that_is_not_started() -> None:
    process = WorkerProcess.call(function, 1)
    assert process.pid is None
    assert repr(process).endswith(" new>")


def test_run_can_be_called_here() -> None:
    assert WorkerProcess.call(function, 5).run() == 5
    assert WorkerProcess().run() is None


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_a_lambda_is_refused_unless_somebody_has_taught_how_to_pickle_it(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SerializationError, match="<lambda> cannot be sent"):
        WorkerProcess(target=lambda: None, start_method=method)
    monkeypatch.setitem(codec._extra_reducers, types.FunctionType, lambda _: "function")
    WorkerProcess(target=lambda: None, start_method=method)
