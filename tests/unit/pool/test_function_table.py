"""What is refused as the function of a task, when it is seen for the first time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from mpkit import TaskPool
from mpkit.pool._function_table import FunctionTable
from tests.contract import pool_tasks as tasks


async def fetch(_number: int = 0) -> int:
    return 1


class Client:
    async def fetch(self) -> int:
        return 1


@pytest.mark.parametrize("wrong", [3, None, "f", [1] * 1000])
def test_what_cannot_be_called_is_refused_at_the_call(wrong: Any) -> None:
    calls: list[Callable[[TaskPool], object]] = [
        lambda pool: pool.submit(wrong),
        lambda pool: pool.apply_async(wrong),
        lambda pool: pool.map(wrong, [1]),
        lambda pool: pool.starmap(wrong, [(1,)]),
        lambda pool: pool.imap(wrong, [1]),
        lambda pool: pool.executor.submit(wrong),
    ]
    with TaskPool(1) as pool:
        for call in [*calls, *calls]:
            with pytest.raises(
                TypeError, match=r"needs something to call; got .* Pass the function"
            ) as caught:
                call(pool)
            assert repr(wrong)[:100] in str(caught.value)
            assert len(str(caught.value)) < 500
        assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
@pytest.mark.parametrize("function", [fetch, Client().fetch, functools.partial(functools.partial(fetch), 1)])
def test_a_coroutine_function_is_told_to_be_wrapped(function: Callable[..., object], pickler: Any) -> None:
    table = FunctionTable()
    for _ in range(2):
        with pytest.raises(TypeError, match=r"is a coroutine function.*asyncio\.run\(.*fetch\(\.\.\.\)"):
            table.look_up(function, pickler)


@pytest.mark.parametrize("function", [abs, dict, tasks.square, functools.partial(tasks.square, 1), [].append])
def test_what_can_be_called_is_taken(function: Callable[..., object]) -> None:
    FunctionTable().look_up(function, "pickle")
