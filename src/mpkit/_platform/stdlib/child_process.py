"""A process of multiprocessing with a start method of its own, and what the handle of one tells.

Private are ``BaseProcess._bootstrap``, ``_Popen``, ``_after_fork`` and the attributes of a process,
``process._children`` and the Popen classes: each start method has a process class of its own there, which a
class with a start method per instance cannot inherit from, and they race (see `ChildProcess`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import process
from typing import Any, cast

from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.deferred_handlers import end_deferral_of_handlers
from mpkit._platform.signals.interrupts import end_deferral
from mpkit._platform.stdlib.child_popen import popen_class
from mpkit._platform.stdlib.preparation import starting_by
from mpkit._platform.threads.forks import in_forked_children
from mpkit.errors import ClosedError

__all__ = [
    "ChildProcess",
    "call_target",
    "code_lost_because",
    "exit_code_of",
    "identity_of",
    "interrupt",
    "is_closed",
    "is_created_here",
    "is_current",
    "is_started",
    "look_at",
    "peak_rss_bytes_of",
    "show_name",
    "take_back_start",
    "target_of",
    "wait_for_end_and_code",
]


# How long it may take to be told that a killed process has ended.
_PATIENCE_S = 5.0


@in_forked_children
def _forget_children_of_parent() -> None:
    """A plain `os.fork` leaves the child with its parent's children among its own.

    At its end multiprocessing would join them, which is an error, and so join no others: the child's own
    would die with it. (A child of multiprocessing forgets all of them by itself.)
    """
    children = _children()
    children.difference_update([child for child in children if isinstance(child, ChildProcess)])


def _children() -> set[object]:
    """The children of this process that multiprocessing has started, and joins at the end."""
    return cast("set[object]", vars(process)["_children"])


class ChildProcess(process.BaseProcess):
    """A process of multiprocessing with a start method of its own, that is waited for exactly.

    What multiprocessing's own classes get wrong, and this one does not:

    - two threads that ask for the exit code at the same time (starting a process asks every other one) take
      it away from each other: one of them sees None, or under forkserver 255;
    - with fork, the sentinel does not become ready while a grandchild lives (here it does, on Linux 5.3 and
      later);
    - under forkserver, a child whose server has been killed counts as dead while it lives;
    - a signal may be sent to a pid that is another process's by now.

    Args:
        start_method: The name of a start method that this system has; at the latest it is set before the
            start.
    """

    def __init__(
        self,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        start_method: str = "",
    ) -> None:
        super().__init__(None, target, name, args, kwargs or {}, daemon=daemon)
        self._start_method = start_method

    def _check_closed(self) -> None:
        # Called by nearly every method of the base class.
        if is_closed(self):
            raise ClosedError("this process handle is closed; keep it open for as long as you use it")

    @override
    def close(self) -> None:
        """Let go of what this handle holds in the system. Twice does no harm.

        Raises:
            ValueError: If the process is still running.
        """
        its = vars(self)
        popen = its["_popen"]
        if popen is not None and not is_closed(self):
            if popen.poll() is None:
                raise ValueError(f"cannot close {self!r} while it is still running; join or stop it first")
            _children().discard(self)
            popen.close()
            # Another thread may be closing it as well.
            its.pop("_sentinel", None)
        # `_popen` stays, unlike in the base class: another thread that is inside `active_children` (whoever
        # starts a process goes through it) may have seen this process before it was discarded, and older
        # Pythons (3.10) ask it for its exit code without looking. An ended one answers from memory.
        its["_closed"] = True

    @staticmethod
    def _Popen(child: ChildProcess) -> object:  # noqa: N802  multiprocessing calls it so
        method = child._start_method
        cls: Any = popen_class(method)
        popen = cls.__new__(cls)
        try:
            # A fork is told nothing, and would not come back from the block.
            with contextlib.nullcontext() if method == "fork" else starting_by(method):
                cls.__init__(popen, child)
            # The caller does it as well. But between a return and an assignment an interrupt may come, and
            # nobody would have the process any more.
            vars(child)["_popen"] = popen
        except BaseException:
            if sys.platform != "win32":
                popen.give_up()
            raise
        return cast("object", popen)

    @property
    @override
    def sentinel(self) -> int:
        pipe = super().sentinel  # also where there is no process
        ask = getattr(vars(self).get("_popen"), "end_descriptor", None)
        return pipe if ask is None else cast("int", ask())

    def _after_fork(self) -> None:
        # A spawned child has not forked: what is registered there has been registered by itself.
        if self._start_method != "spawn":
            super()._after_fork()  # type: ignore[misc]

    def _bootstrap(self, parent_sentinel: object = None) -> int:
        try:
            # A fork has that of its parent, whose event loop would take what is sent to the fork for a signal
            # of its own. (From 3.12 on asyncio sees to that itself.)
            signal.set_wakeup_fd(-1)
            self._mpkit_arrived()
        except BaseException as error:  # noqa: BLE001  it goes no further
            # On the way out a fork would do what its parent has to do at exit (`popen_fork`, from 3.13 on):
            # end the parent's other children.
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        # `run` is called by what follows, its return value dropped; an attribute of this object comes before
        # its class.
        vars(self)["run"] = functools.partial(self._mpkit_perform, functools.partial(_run, self.run))
        return cast("int", super()._bootstrap(parent_sentinel))  # type: ignore[misc]

    # For subclasses. Users derive from those, too, and choose names of their own (`_stop`, `_join`): so what
    # is private to mpkit begins with its name.

    def _mpkit_arrived(self) -> None:
        """In the child: called first."""

    def _mpkit_perform(self, run: Callable[[], object]) -> None:
        """In the child: called in place of `run`, which it has to call."""
        run()


def _run(run: Callable[[], object]) -> object:
    # A fork comes here from inside blocks that keep signals away (`child_launch`). Only now may one come:
    # before, it would not be the target's, and would find the process half made.
    try:
        end_deferral_of_handlers()
    finally:
        end_deferral()
    return run()


def is_started(child: ChildProcess) -> bool:
    """Whether it has been started, and neither closed nor brought here from the process that did."""
    return vars(child).get("_popen") is not None and not is_closed(child)


def is_closed(child: ChildProcess) -> bool:
    """Whether `close` was called."""
    its = vars(child)
    if "_closed" not in its:
        raise AssertionError(f"call super().__init__() in {type(child).__name__}.__init__")
    return bool(its["_closed"])


def is_current(child: ChildProcess) -> bool:
    """Whether this very process is it."""
    return child is process.current_process()


def is_created_here(child: ChildProcess) -> bool:
    """Whether this process created it: only its creator may start it and wait for it."""
    return bool(vars(child)["_parent_pid"] == os.getpid())


def identity_of(child: ChildProcess) -> ProcessIdentity | None:
    """Which process it is; None before the start, and if it had ended before it could be looked at."""
    popen = vars(child).get("_popen")
    if sys.platform == "win32":
        # It is multiprocessing's own there. It has the process open, so the pid is nobody else's meanwhile.
        return None if popen is None or is_closed(child) else identity.of(popen.pid)
    return getattr(popen, "identity", None)


def exit_code_of(child: ChildProcess) -> int | None:
    """The exit code of a process that was started here; None while it runs. Also after `close`."""
    popen = vars(child).get("_popen")
    return None if popen is None else popen.poll()


def wait_for_end_and_code(child: ChildProcess) -> None:
    """Wait for the end of a process; if its exit code is not told within seconds after it, it is lost.

    Blocking: until it has ended, and a few seconds more if a fork server that is stopped would have to tell.
    """
    popen = vars(child).get("_popen")
    if popen is not None and sys.platform != "win32":
        popen.wait_for_end_and_code()


def look_at(child: ChildProcess) -> ProcessIdentity | None:
    """Which process it is, right after the start; None if it has ended already.

    Raises:
        OSError: If that cannot be told, for want of a descriptor, say.
    """
    return identity_of(child) or identity.look(cast("int", child.pid))


def peak_rss_bytes_of(child: ChildProcess) -> int | None:
    """The largest resident memory it had, once it has ended, as far as the system tells; else None."""
    return getattr(vars(child).get("_popen"), "peak_rss_bytes", None)


def code_lost_because(child: ChildProcess) -> str | None:
    """Why its exit code is not known and stands as 255, once it has ended; None if it is known."""
    return getattr(vars(child).get("_popen"), "code_lost_because", None)


def target_of(child: ChildProcess) -> tuple[object, tuple[object, ...], dict[str, object]]:
    """What it is to call, with which arguments; only before the start."""
    its = vars(child)
    return its["_target"], its["_args"], its["_kwargs"]


def take_back_start(
    child: ChildProcess, target: tuple[object, tuple[object, ...], dict[str, object]]
) -> None:
    """Kill a child that has just been started, and forget that it was.

    Args:
        child: The process.
        target: What `target_of` told before the start, which has dropped it.

    Blocking: until it has ended, for a few seconds at most (a fork server that is stopped does not tell).
    """
    its = vars(child)
    popen = its["_popen"]
    popen.kill()
    popen.wait(_PATIENCE_S)
    popen.close()
    _children().discard(child)
    its["_target"], its["_args"], its["_kwargs"] = target
    its.pop("_sentinel", None)
    its["_popen"] = None


def show_name(child: ChildProcess) -> None:
    """In the child: have the system list this process under its name (Linux: 15 bytes of it).

    Only if somebody has chosen it: of many that are numbered, as many bytes would be the same.
    """
    its = vars(child)
    name, number = its["_name"], ":".join(map(str, its["_identity"]))
    if sys.platform == "linux" and name != f"{type(child).__name__}-{number}":
        # It is for people: who has no descriptor left, or is not shown /proc, goes without.
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode(errors="replace"))


def call_target(child: ChildProcess) -> object:
    """In the child: call the target, if there is one, and return what it returns."""
    target, args, kwargs = vars(child)["_target"], vars(child)["_args"], vars(child)["_kwargs"]
    return target(*args, **kwargs) if target else None


def interrupt(child: ChildProcess) -> None:
    """Send SIGINT to a child that has been started (before Python 3.14 there is no method for it)."""
    popen = vars(child)["_popen"]
    # On Windows there is no way to interrupt one process alone.
    (popen.terminate if sys.platform == "win32" else popen.interrupt)()
