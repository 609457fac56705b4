"""Which objects are accepted as the function of a task, when they are used for the first time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpkit import TaskPool
from mpkit.errors import SerializationError
from mpkit.pool._engine import function_table
from mpkit.pool._engine.function_table import FunctionTable
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE


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
def test_the_error_about_a_coroutine_function_says_how_to_wrap_it(
    function: Callable[..., object], pickler: Any
) -> None:
    table = FunctionTable()
    for _ in range(2):
        with pytest.raises(TypeError, match=r"is a coroutine function.*asyncio\.run\(.*fetch\(\.\.\.\)"):
            table.look_up(function, pickler)


@pytest.mark.parametrize("function", [abs, dict, tasks.square, functools.partial(tasks.square, 1), [].append])
def test_any_callable_is_accepted(function: Callable[..., object]) -> None:
    FunctionTable().look_up(function, "pickle")


class Proxy:
    """Like a proxy of an object that does not exist: access to most attributes raises."""

    def __call__(self, number: int) -> int:
        return -number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise RuntimeError("working outside of a context")
        return []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Proxy, ()


def test_a_callable_whose_attributes_raise() -> None:
    with TaskPool(1) as pool:
        assert pool.submit(Proxy(), 1).result(PATIENCE) == -1
        assert pool.map(Proxy(), [2]) == [-2]


class Named:
    """Has no qualified name, like functions of older versions of numpy."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "functions",
    [
        {"abs": abs, "sleep": time.sleep, "dict": dict, "str": str},
        {"str.join": "".join, "str.lower": "".lower, "dict.get": {}.get},
        {"square": functools.partial(tasks.square, 1), "total": functools.partial(tasks.total)},
        {"add": Named("add"), "sin": Named("sin"), "abs": functools.partial(abs)},
    ],
)
@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_functions_without_code_are_told_apart_by_their_names(
    functions: dict[str, Callable[..., object]], pickler: Any
) -> None:
    table = FunctionTable()
    for name, function in functions.items():
        known, *_ = table.look_up(function, pickler)
        assert known.name == name
        # What is known about it is kept, even if it is another object the next time.
        assert table.look_up(function, pickler)[0] is known


def test_of_very_many_functions_only_the_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_table, "_MOST_FUNCTIONS", 2)
    table = FunctionTable()
    functions = [tasks.square, tasks.add, tasks.total]
    before = [table.look_up(function, "pickle") for function in functions]
    assert list(table._known) == [tasks.total]
    assert [table.look_up(function, "pickle")[1:] for function in functions] == [
        found[1:] for found in before
    ]


def test_what_an_error_calls_a_function_is_its_own_name() -> None:
    get: Callable[..., object] = {}.get
    with TaskPool(1) as pool:
        assert pool.submit("a".join, ["b"]).result(PATIENCE) == "b"
        with pytest.raises(SerializationError, match=r"argument 1 of dict\.get: "):
            pool.submit(get, lambda: 1)
