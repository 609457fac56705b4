"""`mpkit._platform.stdlib.contexts`: which start method is used."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.spawn
import sys
import threading
from multiprocessing.reduction import AbstractReducer

import pytest

from mpkit._platform.stdlib import contexts, preparation
from mpkit._platform.stdlib.contexts import resolve_context


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_by_name_and_as_a_context(method: str) -> None:
    context = resolve_context(method)
    assert context.get_start_method() == method
    assert resolve_context(context) is context


@pytest.mark.usefixtures("nothing_set")
def test_the_default_is_forkserver_and_asking_does_not_fix_it() -> None:
    expected = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    assert resolve_context(None).get_start_method() == expected
    assert multiprocessing.get_start_method(allow_none=True) is None


@pytest.mark.usefixtures("nothing_set")
def test_where_there_is_no_forkserver_the_default_is_spawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "start_methods", lambda: ["spawn"])
    assert resolve_context(None).get_start_method() == "spawn"


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork server in any case")
def test_a_program_that_has_set_the_reducer_of_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reducer(AbstractReducer):
        def __init__(self) -> None:
            """The base class would register functions that do not fit."""

    monkeypatch.setattr(multiprocessing.context, "reduction", Reducer())
    assert sorted(contexts.start_methods()) == ["fork", "spawn"]
    assert resolve_context(None).get_start_method() == "spawn"
    assert resolve_context("fork").get_start_method() == "fork"
    with pytest.raises(ValueError, match="got 'forkserver'"):
        resolve_context("forkserver")


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_what_the_application_has_set_is_followed(method: str) -> None:
    multiprocessing.set_start_method(method)
    assert resolve_context(None).get_start_method() == method
    assert resolve_context(multiprocessing.context._default_context).get_start_method() == method


@pytest.mark.usefixtures("nothing_set")
def test_a_child_is_told_its_own_method_and_that_does_not_fix_the_default() -> None:
    with preparation.starting_by("spawn"):
        assert multiprocessing.spawn.get_preparation_data("x")["start_method"] == "spawn"
        with preparation.starting_by("forkserver"):
            assert multiprocessing.spawn.get_preparation_data("x")["start_method"] == "forkserver"
        assert multiprocessing.spawn.get_preparation_data("x")["start_method"] == "spawn"
        assert multiprocessing.get_start_method(allow_none=True) is None
    assert multiprocessing.get_start_method(allow_none=True) is None


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_child_is_told_what_the_application_sets(method: str) -> None:
    with preparation.starting_by("spawn"):
        multiprocessing.set_start_method(method)
        assert multiprocessing.spawn.get_preparation_data("x")["start_method"] == method
    assert multiprocessing.get_start_method(allow_none=True) == method


@pytest.mark.usefixtures("nothing_set")
def test_other_threads_do_not_see_the_method_of_a_child() -> None:
    seen: list[object] = []

    def look() -> None:
        seen.append(multiprocessing.get_start_method(allow_none=True))
        seen.append(resolve_context(None).get_start_method())
        # The method that the standard library passes to its own processes.
        seen.append(multiprocessing.spawn.get_preparation_data("x")["start_method"])

    with preparation.starting_by("spawn"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    default = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    # From Python 3.14 on it passes none until one has been fixed.
    assert seen == [None, default, multiprocessing.get_start_method(allow_none=True)]


@pytest.mark.parametrize("given", ["x", "", "Fork"])
def test_an_unknown_name(given: str) -> None:
    with pytest.raises(ValueError, match=r"context must be one of .*'spawn'") as caught:
        resolve_context(given, name="context")
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [1, object(), multiprocessing.Process])
def test_an_object_that_is_no_context(given: object) -> None:
    with pytest.raises(TypeError, match="start_method must be the name of a start method"):
        resolve_context(given)  # type: ignore[arg-type]
