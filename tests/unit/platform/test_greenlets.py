"""`mpkit._platform.threads.greenlets`: if gevent or eventlet has replaced threads, no pool can be made."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from mpkit import TaskPool
from mpkit._platform.threads.greenlets import patched_by
from mpkit.errors import PoolBroken

LIBRARIES = [
    ("gevent", "gevent.monkey", "is_module_patched", "threading"),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", "thread"),
]


def load(monkeypatch: pytest.MonkeyPatch, module: str, question: str, patched: set[str]) -> None:
    """Imitate such a library, imported, that has replaced the modules `patched`."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{question: patched.__contains__}))


def test_without_such_a_library_threads_are_real() -> None:
    assert patched_by() is None


@pytest.mark.parametrize("library, module, question, threads", LIBRARIES)
def test_a_library_that_has_not_replaced_threads_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, library: str, module: str, question: str, threads: str
) -> None:
    load(monkeypatch, module, question, {"socket", "ssl"})
    assert patched_by() is None
    load(monkeypatch, module, question, {threads})
    assert patched_by() == library
    load(monkeypatch, module, question, {"select"})
    assert patched_by() == library


def test_a_library_that_is_only_half_imported_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace())
    assert patched_by() is None


def test_a_pool_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, "gevent.monkey", "is_module_patched", {"threading", "select"})
    with pytest.raises(PoolBroken, match=r"gevent has replaced the threads .* Use the pool in a process"):
        TaskPool(1)
