"""The public interface: names, parameters and defaults, docstrings, reprs, pickling.

Whoever has to change this file changes what users see: that belongs in the changelog.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pickle
from types import ModuleType
from typing import Any

import pytest

import mpkit
from mpkit import errors

MODULE_NAMES = [
    "mpkit",
    "mpkit.errors",
    "mpkit.introspect",
    "mpkit.pool",
    "mpkit.process",
    "mpkit.queue",
    "mpkit.sync",
]

NAMES = {
    "mpkit": (
        "BoundedQueue Lock LockedCounter PoolStatistics PoolView ProcessState QueueStatistics Shared "
        "TaskHandle TaskPool WorkerProcess WorkerSnapshot compat errors introspect"
    ),
    "mpkit.errors": (
        "AccessDenied ClosedError HandleLost InitializerFailed MpkitError PoolBroken ProcessGone QueueEmpty "
        "QueueFull QueueShutDown SerializationError SharedMemoryExhausted TaskCancelled TaskTimeout "
        "WaitTimeout WorkerCrashed WorkerMemoryExceeded"
    ),
}

# The signatures of everything that users call.
SIGNATURES = {
    "mpkit.WorkerProcess": (
        "(group=None, target=None, name=None, args=(), kwargs=None, *, daemon=None, start_method=None, "
        "max_memory_bytes=None, orphan=False)"
    ),
    "mpkit.WorkerProcess.call": "(fn, /, *args, **kwargs)",
    "mpkit.WorkerProcess.run": "(self)",
    "mpkit.WorkerProcess.start": "(self)",
    "mpkit.WorkerProcess.join": "(self, timeout=None)",
    "mpkit.WorkerProcess.is_alive": "(self)",
    "mpkit.WorkerProcess.terminate": "(self)",
    "mpkit.WorkerProcess.kill": "(self)",
    "mpkit.WorkerProcess.interrupt": "(self)",
    "mpkit.WorkerProcess.close": "(self)",
    "mpkit.WorkerProcess.result": "(self, timeout=None)",
    "mpkit.WorkerProcess.exception": "(self, timeout=None)",
    "mpkit.WorkerProcess.stop": "(self, grace_period=3.0)",
    "mpkit.WorkerProcess.info": "(self)",
    "mpkit.WorkerProcess.children": "(self)",
    "mpkit.BoundedQueue": "(maxsize=0, *, max_bytes=None)",
    "mpkit.BoundedQueue.put": "(self, item, block=True, timeout=None)",
    "mpkit.BoundedQueue.get": "(self, block=True, timeout=None)",
    "mpkit.BoundedQueue.put_nowait": "(self, item)",
    "mpkit.BoundedQueue.get_nowait": "(self)",
    "mpkit.BoundedQueue.qsize": "(self)",
    "mpkit.BoundedQueue.empty": "(self)",
    "mpkit.BoundedQueue.full": "(self)",
    "mpkit.BoundedQueue.put_many": "(self, items, block=True, timeout=None)",
    "mpkit.BoundedQueue.get_many": "(self, max_items=None, block=True, timeout=None)",
    "mpkit.BoundedQueue.shutdown": "(self, immediate=False)",
    "mpkit.BoundedQueue.close": "(self)",
    "mpkit.BoundedQueue.task_done": "(self)",
    "mpkit.BoundedQueue.join": "(self, timeout=None)",
    "mpkit.BoundedQueue.aput": "(self, item)",
    "mpkit.BoundedQueue.aget": "(self)",
    "mpkit.BoundedQueue.statistics": "(self)",
    "mpkit.Lock": "()",
    "mpkit.Lock.acquire": "(self, block=True, timeout=None)",
    "mpkit.Lock.release": "(self)",
    "mpkit.Lock.locked": "(self)",
    "mpkit.Lock.owner": "(self)",
    "mpkit.LockedCounter": "(initial=0)",
    "mpkit.LockedCounter.add": "(self, n=1)",
    "mpkit.LockedCounter.sub": "(self, n=1)",
    "mpkit.LockedCounter.compare_and_set": "(self, expected, new)",
    "mpkit.LockedCounter.reset": "(self, value=0)",
    "mpkit.LockedCounter.wait_for": "(self, target, timeout=None)",
    "mpkit.TaskPool": (
        "(processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None, *, "
        "max_memory_bytes=None, grace_period=1.0, max_pending=None, pickler='pickle', name=None, "
        "forward_logs=True)"
    ),
    "mpkit.TaskPool.submit": "(self, fn, /, *args, **kwargs)",
    "mpkit.TaskPool.apply": "(self, func, args=(), kwds=None)",
    "mpkit.TaskPool.apply_async": ("(self, func, args=(), kwds=None, callback=None, error_callback=None)"),
    "mpkit.TaskPool.map": "(self, func, iterable, chunksize=None, *, progress=False)",
    "mpkit.TaskPool.map_async": (
        "(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, progress=False)"
    ),
    "mpkit.TaskPool.starmap": "(self, func, iterable, chunksize=None, *, progress=False)",
    "mpkit.TaskPool.starmap_async": (
        "(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, progress=False)"
    ),
    "mpkit.TaskPool.imap": "(self, func, iterable, chunksize=1, *, buffersize=None, progress=False)",
    "mpkit.TaskPool.imap_unordered": (
        "(self, func, iterable, chunksize=1, *, buffersize=None, progress=False)"
    ),
    "mpkit.TaskPool.with_options": "(self, timeout=None, retries=0, pickler=None)",
    "mpkit.TaskPool.close": "(self)",
    "mpkit.TaskPool.terminate": "(self)",
    "mpkit.TaskPool.join": "(self, timeout=None)",
    "mpkit.TaskPool.share": "(self, obj)",
    "mpkit.TaskPool.workers": "(self)",
    "mpkit.TaskPool.statistics": "(self)",
    "mpkit.TaskPool.stacks": "(self)",
    "mpkit.TaskHandle.cancel": "(self)",
    "mpkit.TaskHandle.result": "(self, timeout=None)",
    "mpkit.TaskHandle.exception": "(self, timeout=None)",
    "mpkit.TaskHandle.get": "(self, timeout=None)",
    "mpkit.TaskHandle.wait": "(self, timeout=None)",
    "mpkit.TaskHandle.ready": "(self)",
    "mpkit.TaskHandle.successful": "(self)",
    "mpkit.Shared.close": "(self)",
    "mpkit.introspect.snapshot": "(pid=None)",
    "mpkit.introspect.tree": "(pid=None)",
    "mpkit.introspect.watch": "(pid=None, interval=1.0)",
    "mpkit.introspect.pools": "(pid=None)",
    "mpkit.introspect.queues": "(pid=None)",
}

PROPERTIES = {
    "mpkit.WorkerProcess": "authkey daemon exitcode ident name pid sentinel state",
    "mpkit.LockedCounter": "value",
    "mpkit.Lock": "abandoned_by",
    "mpkit.TaskPool": "executor",
    "mpkit.TaskHandle": "task_id worker_pid",
    "mpkit.Shared": "value",
}

FIELDS = {
    "mpkit.QueueStatistics": (
        "size bytes maxsize max_bytes puts gets waiting_putters waiting_getters recoveries"
    ),
    "mpkit.PoolStatistics": (
        "workers idle running queued submitted succeeded failed cancelled crashed retried workers_started"
    ),
    "mpkit.WorkerSnapshot": "pid state task_id function running_s tasks_done rss_bytes cpu_percent",
    "mpkit.introspect.ProcessSnapshot": (
        "pid ppid name cmdline state create_time cpu_percent cpu_user_s cpu_system_s rss_bytes uss_bytes "
        "num_threads num_fds ctx_switches nice cpu_affinity"
    ),
    "mpkit.introspect.ProcessTree": "process children",
}


def find(path: str) -> Any:
    """The object at the dotted `path`."""
    parts = path.split(".")
    found: Any = mpkit
    for part in parts[1:]:
        found = getattr(found, part)
    return found


def described(callable_: Any) -> str:
    """The signature without annotations."""
    signature = inspect.signature(callable_)
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


def public_classes(module_name: str) -> list[type]:
    module = importlib.import_module(module_name)
    return [value for name in module.__all__ if inspect.isclass(value := getattr(module, name))]


@pytest.mark.parametrize("module_name", MODULE_NAMES)
def test_all_is_sorted_and_complete(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    shown = dir(module)
    assert set(module.__all__) <= set(shown)
    assert len(shown) == len(set(shown))
    if module_name in NAMES:
        assert " ".join(module.__all__) == NAMES[module_name]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        mpkit.Nonsense  # noqa: B018


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature(path: str) -> None:
    assert described(find(path)) == SIGNATURES[path]


@pytest.mark.parametrize("path", PROPERTIES)
def test_properties(path: str) -> None:
    cls = find(path)
    for name in PROPERTIES[path].split():
        assert not callable(inspect.getattr_static(cls, name, None)), f"{path}.{name} is a method"
        assert inspect.getattr_static(cls, name, None) is not None, f"{path}.{name} is missing"


@pytest.mark.parametrize("path", FIELDS)
def test_fields(path: str) -> None:
    cls = find(path)
    assert dataclasses.is_dataclass(cls)
    assert getattr(cls, "__dataclass_params__").frozen  # noqa: B009  typeshed does not know it
    assert " ".join(field.name for field in dataclasses.fields(cls)) == FIELDS[path]


@pytest.mark.parametrize("path", FIELDS)
def test_values_pickle(path: str) -> None:
    cls = find(path)
    value = cls(**{field.name: () for field in dataclasses.fields(cls)})
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("module_name", MODULE_NAMES)
def test_public_modules_and_their_names_are_documented(module_name: str) -> None:
    module = importlib.import_module(module_name)
    assert inspect.getdoc(module)
    for name in module.__all__:
        value = getattr(module, name)
        if not isinstance(value, ModuleType):
            assert value.__doc__, f"{module_name}.{name} has no docstring"


@pytest.mark.parametrize("module_name", MODULE_NAMES)
def test_public_members_are_documented(module_name: str) -> None:
    for cls in public_classes(module_name):
        for name, member in vars(cls).items():
            if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(cls, name)), f"{cls.__qualname__}.{name} has no docstring"


@pytest.mark.parametrize("module_name", MODULE_NAMES)
def test_public_classes_have_a_repr_of_their_own(module_name: str) -> None:
    for cls in public_classes(module_name):
        assert getattr(cls, "__repr__") is not getattr(object, "__repr__"), cls  # noqa: B009


@pytest.mark.parametrize(
    "name", ["BoundedQueue", "Lock", "LockedCounter", "TaskPool", "WorkerProcess", "Shared"]
)
def test_everything_that_can_be_closed_is_a_context_manager(name: str) -> None:
    cls = getattr(mpkit, name)
    assert callable(cls.__enter__)
    assert callable(cls.__exit__)


def test_every_error_is_an_mpkit_error() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.MpkitError)
