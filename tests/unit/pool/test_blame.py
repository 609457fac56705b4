"""An error of pickling names the argument, the item or the result that it is about."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mpkit import TaskPool
from mpkit.errors import SerializationError
from mpkit.pool._blame import blame
from tests.contract import pool_tasks as tasks


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pool: pool.submit(divmod, 1, threading.Lock()), "argument 2 of divmod: cannot pickle"),
        (lambda pool: pool.submit(dict, a=1, b=threading.Lock()), "argument 'b' of dict: cannot pickle"),
        (lambda pool: pool.submit(dict, [threading.Lock()]), "argument 1 of dict: cannot pickle"),
        (lambda pool: pool.map(abs, [1, threading.Lock()]), "an item for abs: cannot pickle"),
        (lambda pool: next(pool.imap(abs, [threading.Lock()])), "of abs: cannot pickle"),
        (lambda pool: pool.apply(threading.Lock), "the result: cannot pickle"),
    ],
)
def test_it_is_named(call: Callable[[TaskPool], object], text: str) -> None:
    with TaskPool(1) as pool:
        with pytest.raises(SerializationError, match=text) as caught:
            call(pool)
        assert "_thread.lock" in str(caught.value)
        assert pool.apply(tasks.square, (3,)) == 9


def test_where_no_single_one_is_to_blame_the_error_is_as_it_was() -> None:
    error = SerializationError("all of them together")
    assert blame(error, "abs", (1, 2), 0, "pickle") is error
