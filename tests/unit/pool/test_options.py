"""`mpkit.pool._engine.options`: what a pool is told is checked where it is told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mpkit.pool import TaskPool
from mpkit.pool._engine.options import TaskOptions


@pytest.mark.parametrize(
    "options, kind, text",
    [
        ({"processes": 0}, ValueError, "processes must be at least 1; got 0"),
        ({"processes": 2.0}, TypeError, "processes must be an int; got 2.0 (float)"),
        ({"initializer": 5}, TypeError, "initializer must be callable or None; got 5"),
        ({"initargs": "text"}, TypeError, "for a single one write ('text',)"),
        ({"initargs": 5}, TypeError, "initargs must be a tuple of arguments; got 5"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild must be at least 1; got 0"),
        ({"context": "threads"}, ValueError, "context must be one of"),
        ({"context": threading}, TypeError, "context must be the name of a start method"),
        ({"max_pending": True}, TypeError, "max_pending must be an int; got True (bool)"),
        ({"grace_period": -1}, ValueError, "grace_period"),
        ({"pickler": "dill"}, ValueError, "pickler must be 'pickle' or 'cloudpickle'; got 'dill'"),
        ({"name": 5}, TypeError, "name must be a string or None; got 5"),
    ],
    ids=str,
)
def test_of_a_pool(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        TaskPool(**options)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "options, kind, text",
    [
        ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"retries": -1}, ValueError, "retries must be at least 0; got -1"),
        ({"pickler": "dill"}, ValueError, "pickler must be"),
    ],
    ids=str,
)
def test_of_tasks(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        TaskOptions(**options)
    assert text in str(caught.value)
