"""An error of pickling names the argument, the item or the result that caused it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from mpkit import TaskPool
from mpkit.errors import SerializationError
from mpkit.pool._engine.blame import blame
from mpkit.pool._engine.options import TaskOptions
from tests.contract import pool_tasks as tasks


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pool: pool.submit(divmod, 1, threading.Lock()), "argument 2 of divmod: cannot pickle"),
        (lambda pool: pool.submit(dict, a=1, b=threading.Lock()), "argument 'b' of dict: cannot pickle"),
        (lambda pool: pool.submit(dict, [threading.Lock()]), "argument 1 of dict: cannot pickle"),
        (lambda pool: pool.map(abs, [1, threading.Lock()]), "the item at index 1 for abs: cannot pickle"),
        (
            lambda pool: pool.map(abs, [*range(10), threading.Lock()], 4),
            "the item at index 10 for abs: cannot",
        ),
        (
            lambda pool: pool.starmap(divmod, [(1, 2), (threading.Lock(), 1)]),
            "the item at index 1 for divmod",
        ),
        (lambda pool: list(pool.imap(abs, [threading.Lock()])), "the item at index 0 for abs: cannot pickle"),
        (lambda pool: list(pool.imap(abs, [1, threading.Lock()])), "the item at index 1 for abs: cannot"),
        (
            lambda pool: list(pool.imap(abs, (n or threading.Lock() for n in (1, 2, 0)))),
            "the item at index 2",
        ),
        (
            lambda pool: list(pool.imap(abs, [*range(10), threading.Lock()], 4)),
            "the item at index 10 for abs",
        ),
        (lambda pool: pool.apply(threading.Lock), "the result: cannot pickle"),
    ],
)
def test_the_argument_or_item_is_named(call: Callable[[TaskPool], object], text: str) -> None:
    with TaskPool(1) as pool:
        with pytest.raises(SerializationError, match=text) as caught:
            call(pool)
        assert "_thread.lock" in str(caught.value)
        assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.parametrize(
    "initializer, arguments, text",
    [
        (lambda: None, (), "the initializer: cannot pickle .*<lambda>"),
        (tasks.initialize, (1, threading.Lock()), "argument 2 of the initializer initialize: cannot pickle"),
    ],
)
def test_the_argument_of_an_initializer_is_named(
    initializer: Callable[..., object], arguments: tuple[object, ...], text: str
) -> None:
    with pytest.raises(SerializationError, match=text):
        TaskPool(1, initializer, arguments, context="spawn")


def test_the_error_about_several_iterables_recommends_starmap() -> None:
    with TaskPool(1) as pool:
        calls: list[Callable[..., object]] = [pool.map, pool.map_async, pool.imap]
        for call in calls:
            with pytest.raises(TypeError, match=r"chunksize .* got \[3, 4\].* starmap\(func, zip"):
                call(divmod, [1, 2], [3, 4])
            with pytest.raises(TypeError, match=r"chunksize must be an int; got 1\.5 \(float\)$"):
                call(divmod, [1, 2], 1.5)


def test_what_only_seems_to_be_an_integer_is_named() -> None:
    with pytest.raises(TypeError, match=r"retries must be an int; got array\(\[1, 2\]\) \(ndarray\)$"):
        TaskOptions(retries=np.array([1, 2]))  # type: ignore[arg-type]
    assert TaskOptions(retries=np.int64(3)).retries == 3


def test_where_no_single_one_is_to_blame_the_error_is_as_it_was() -> None:
    error = SerializationError("all of them together")
    assert blame(error, [("argument 1", 1), ("argument 2", 2)], "pickle") is error
