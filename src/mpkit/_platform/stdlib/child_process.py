"""A process of multiprocessing whose start method is chosen per instance, and functions that inspect one.

Private are ``BaseProcess._bootstrap``, ``_Popen``, ``_after_fork`` and the attributes of a process,
``process._children`` and the Popen classes. They are used because multiprocessing has a process class for
each start method, from which a class that chooses it per instance cannot inherit, and these have races (see
`ChildProcess`).

The functions of this module are no methods of `ChildProcess`, because subclasses of users choose method names
freely.
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

# How long to wait until a killed process is reported to have ended.
_PATIENCE_SECONDS = 5.0


@in_forked_children
def _forget_children_of_parent() -> None:
    """After a plain `os.fork`, remove the parent's children from the list of this process's children.

    Otherwise multiprocessing would try to join them at exit, which raises an error, and so would not join the
    others: this process's own children would die with it. (A child of multiprocessing empties the list
    itself.)
    """
    children = _children()
    children.difference_update([child for child in children if isinstance(child, ChildProcess)])


def _children() -> set[object]:
    """The children that multiprocessing has started in this process, and joins at exit."""
    return cast("set[object]", vars(process)["_children"])


class ChildProcess(process.BaseProcess):
    """A process of multiprocessing whose start method is chosen per instance, and that is waited for exactly.

    It corrects these errors of multiprocessing's own classes:

    - if two threads ask for the exit code at the same time (starting a process asks all others), one of them
      sees None, or under forkserver 255;
    - with fork, the sentinel does not become ready while a grandchild lives (here it does, on Linux 5.3 and
      later);
    - under forkserver, a child whose server has been killed counts as dead while it is alive;
    - a signal may be sent to a pid that has been reused.

    Args:
        target: What to call in the child.
        name: A name for people; None: a default.
        args: Positional arguments for the target.
        kwargs: Keyword arguments for the target.
        daemon: As for `multiprocessing.Process`.
        start_method: The name of a start method that this system has; it may be set later, but before the
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
        """Release the descriptors of this handle. A second call does nothing.

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
            # With a default, because another thread may be closing it, too.
            its.pop("_sentinel", None)
        # Unlike in the base class, `_popen` is kept. Another thread that is inside `active_children` (which
        # every start calls) may have seen this process before it was discarded, and Python 3.10 asks it for
        # its exit code without checking whether it is closed. A process that has ended answers from memory.
        its["_closed"] = True

    @staticmethod
    def _Popen(child: ChildProcess) -> object:  # noqa: N802  multiprocessing calls it so
        method = child._start_method
        cls: Any = popen_class(method)
        popen = cls.__new__(cls)
        try:
            # Not for a fork, which needs no preparation data, and whose child would never leave the block.
            with contextlib.nullcontext() if method == "fork" else starting_by(method):
                cls.__init__(popen, child)
            # The caller does the same. But if an interrupt came between the return and its assignment, the
            # process would be lost.
            vars(child)["_popen"] = popen
        except BaseException:
            if sys.platform != "win32":
                popen.give_up()
            raise
        return cast("object", popen)

    @property
    @override
    def sentinel(self) -> int:
        pipe = super().sentinel  # this also raises the error if there is no process
        ask = getattr(vars(self).get("_popen"), "end_descriptor", None)
        return pipe if ask is None else cast("int", ask())

    def _after_fork(self) -> None:
        # Not in a spawned child, which has not forked: it has registered its functions itself.
        if self._start_method != "spawn":
            super()._after_fork()  # type: ignore[misc]

    def _bootstrap(self, parent_sentinel: object = None) -> int:
        try:
            # A forked child has inherited this descriptor from its parent, whose event loop would take
            # signals to the child for its own. (From 3.12 on asyncio takes care of this.)
            signal.set_wakeup_fd(-1)
            self._mpkit_arrived()
        except BaseException as error:  # noqa: BLE001  the process ends here
            # By `os._exit`, because a forked child that went on would call its parent's exit functions
            # (`popen_fork`, from 3.13 on), which end the parent's other children.
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        # The base class calls `run` and drops its result. So replace it, by an instance attribute, which
        # takes precedence over the method.
        vars(self)["run"] = functools.partial(self._mpkit_perform, functools.partial(_run, self.run))
        return cast("int", super()._bootstrap(parent_sentinel))  # type: ignore[misc]

    # For subclasses of mpkit. Users derive from those in turn, with method names of their own (`_stop`,
    # `_join`). So names that are private to mpkit begin with `_mpkit`.

    def _mpkit_arrived(self) -> None:
        """Called first in the child."""

    def _mpkit_perform(self, run: Callable[[], object]) -> None:
        """Called in the child in place of `run`; has to call it."""
        run()


def _run(run: Callable[[], object]) -> object:
    # A forked child gets here from inside blocks that defer signals (`child_launch`). They may take effect
    # only now: earlier, they would not concern the target, and the process would be only half set up.
    try:
        end_deferral_of_handlers()
    finally:
        end_deferral()
    return run()


def is_started(child: ChildProcess) -> bool:
    """Whether this process has started it, and has not closed it."""
    return was_started(child) and not is_closed(child)


def was_started(child: ChildProcess) -> bool:
    """Whether this process has started it; it may have closed it since."""
    return vars(child).get("_popen") is not None


def is_closed(child: ChildProcess) -> bool:
    """Whether `close` was called."""
    its = vars(child)
    if "_closed" not in its:
        raise AssertionError(f"call super().__init__() in {type(child).__name__}.__init__")
    return bool(its["_closed"])


def is_current(child: ChildProcess) -> bool:
    """Whether the calling process is this child."""
    return child is process.current_process()


def is_created_here(child: ChildProcess) -> bool:
    """Whether the calling process created it: only its creator may start it and wait for it."""
    return bool(vars(child)["_parent_pid"] == os.getpid())


def identity_of(child: ChildProcess) -> ProcessIdentity | None:
    """The identity of the process; None before the start, or if it ended before it could be identified."""
    popen = vars(child).get("_popen")
    if sys.platform == "win32":
        # On Windows this is multiprocessing's own Popen. It has the process open, so the pid is not reused.
        return None if popen is None or is_closed(child) else identity.of(popen.pid)
    return getattr(popen, "identity", None)


def exit_code_of(child: ChildProcess) -> int | None:
    """The exit code of a process that was started here; None while it runs. Works after `close`, too."""
    popen = vars(child).get("_popen")
    return None if popen is None else popen.poll()


def wait_for_end_and_code(child: ChildProcess) -> None:
    """Wait for the end of a process, and then a few seconds for its exit code, after which that is lost.

    Blocking: until it has ended, and a few seconds more if the fork server, which tells the exit code, is
    stopped.
    """
    popen = vars(child).get("_popen")
    if popen is not None and sys.platform != "win32":
        popen.wait_for_end_and_code()


def look_at(child: ChildProcess) -> ProcessIdentity | None:
    """The identity of the process, right after the start; None if it has ended already.

    Raises:
        OSError: If it cannot be found out, because no descriptor is left, say.
    """
    return identity_of(child) or identity.look(cast("int", child.pid))


def peak_rss_bytes_of(child: ChildProcess) -> int | None:
    """The largest resident memory that it had, in bytes, once it has ended; None if that is not known."""
    return getattr(vars(child).get("_popen"), "peak_rss_bytes", None)


def code_lost_because(child: ChildProcess) -> str | None:
    """Why its exit code is not known, and given as 255, once it has ended; None if it is known."""
    return getattr(vars(child).get("_popen"), "code_lost_because", None)


def target_of(child: ChildProcess) -> tuple[object, tuple[object, ...], dict[str, object]]:
    """The target, its positional and its keyword arguments. Only before the start, which drops them."""
    its = vars(child)
    return its["_target"], its["_args"], its["_kwargs"]


def take_back_start(
    child: ChildProcess, target: tuple[object, tuple[object, ...], dict[str, object]]
) -> None:
    """Kill a child that has just been started, and reset it to the state before the start.

    Args:
        child: The process.
        target: What `target_of` returned before the start.

    Blocking: until it has ended, but for a few seconds at most (a fork server that is stopped does not tell).
    """
    its = vars(child)
    popen = its["_popen"]
    popen.kill()
    popen.wait(_PATIENCE_SECONDS)
    popen.close()
    _children().discard(child)
    its["_target"], its["_args"], its["_kwargs"] = target
    its.pop("_sentinel", None)
    its["_popen"] = None


def show_name(child: ChildProcess) -> None:
    """In the child: have the system list this process under its name (on Linux, the first 15 bytes).

    Only if the name was chosen: of default names, which end in numbers, the first 15 bytes would be the same.
    """
    its = vars(child)
    name, number = its["_name"], ":".join(map(str, its["_identity"]))
    if sys.platform == "linux" and name != f"{type(child).__name__}-{number}":
        # OSError: no descriptor is left, or /proc is hidden. The name is only for people, so this does not
        # matter.
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode(errors="replace"))


def call_target(child: ChildProcess) -> object:
    """In the child: call the target, if there is one, and return what it returns."""
    target, args, kwargs = vars(child)["_target"], vars(child)["_args"], vars(child)["_kwargs"]
    return target(*args, **kwargs) if target else None


def interrupt(child: ChildProcess) -> None:
    """Send SIGINT to a child that has been started; before Python 3.14 there is no method for this."""
    popen = vars(child)["_popen"]
    # On Windows it is not possible to interrupt a single process.
    (popen.terminate if sys.platform == "win32" else popen.interrupt)()
