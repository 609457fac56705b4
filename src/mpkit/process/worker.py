"""`WorkerProcess`: the class that users see."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import BaseContext
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    cast,
)

from mpkit._platform.hints import Self, TypeVar, override, without_type_arguments
from mpkit._platform.processes import families
from mpkit._platform.processes.process_state import ProcessState
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.signals.names import signal_name
from mpkit._platform.stdlib import child_process, tracker
from mpkit._platform.stdlib.child_launch import gives_way
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._platform.stdlib.fork_server import start_fork_server
from mpkit._platform.stdlib.passing import spawning
from mpkit._platform.threads.deadlines import check_timeout
from mpkit._wire import codec
from mpkit.errors import ProcessGone, SerializationError, WaitTimeout
from mpkit.process import memory_watch, outcome
from mpkit.process.arguments import (
    check_group,
    check_name,
    check_target,
    checked_args,
    checked_kwargs,
    checked_limit,
)
from mpkit.process.ending import end_family
from mpkit.process.handle import Handle
from mpkit.process.report import Stage
from mpkit.process.sending import Arrival, refuse_what_cannot_be_pickled, unpicklable
from mpkit.process.ties import Ties

if TYPE_CHECKING:
    from mpkit.introspect import ProcessSnapshot

__all__ = ["WorkerProcess"]

P = ParamSpec("P")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True, default=None)

_Target: TypeAlias = "tuple[object, tuple[object, ...], dict[str, object]]"


class _Shadowable:
    """A property that an instance attribute of the same name replaces, as with a method.

    Subclasses written for `multiprocessing.Process` may use any attribute names, including ours. (Type
    checkers and the documentation see a plain property.)
    """

    def __init__(self, ask: Callable[[Any], object]) -> None:
        self._ask = ask
        self.__doc__ = ask.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> object:
        return self if instance is None else self._ask(instance)


class WorkerProcess(ChildProcess, Generic[R_co]):
    """A multiprocessing process that returns a result, dies with its parent and can be stopped.

    It is a `multiprocessing.process.BaseProcess`: it is in `multiprocessing.active_children()`, it is joined
    at exit, and a subclass may override `run`, as with `multiprocessing.Process`. In addition:

    - `result` and `exception` tell what the target returned or raised, or how the process died;
    - it dies when its parent dies, however the parent dies and whatever the child is doing, and its own
      descendants die, too;
    - `stop` ends it together with all its descendants;
    - `state`, `info` and `children` tell what it is doing;
    - several threads may start, query and join processes at the same time.

    If the target raises, the child prints the traceback, as multiprocessing does, even if the result is never
    asked for. It does not print one for the interrupt of `stop`.

    Args:
        group: Must be None; it exists for compatibility with the signature of `threading.Thread`.
        target: What to call in the child. None: `run` is overridden, or there is nothing to do.
        name: A name for people. The default consists of the class name and a number. On Linux, `ps`, `top`
            and the like show any other name, cut to 15 bytes, and `pkill python` no longer finds the process.
        args: Positional arguments for the target.
        kwargs: Keyword arguments for the target.
        daemon: Whether it is terminated when its parent exits, instead of being waited for; a daemonic
            process cannot have children. The default is that of the creating process.
        start_method: ``"fork"``, ``"spawn"`` or ``"forkserver"``. The default, chosen at `start`, is the one
            that the application has set, or has fixed by using multiprocessing itself; otherwise forkserver
            where it exists, else spawn.
        max_memory_bytes: If its resident memory exceeds this (it is checked every 50 ms), the process and its
            descendants are killed, and `result` raises `WorkerMemoryExceeded`. Pages of shared objects and
            mapped arrays that it has touched count: add their size to the limit. The default is no limit.
        orphan: Whether it lives on when its parent is killed. (At a normal exit, the parent still waits for
            it, as multiprocessing does.)

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: `group` is not None, there is no such start method, or the memory limit is not
            positive.
        SerializationError: The target is a lambda or a local function and the given `start_method` would
            have to pickle it. If no method is given, `start` raises it.

    Safe from: several threads of the process that created it. Other processes cannot use it.

    Examples:
        >>> import math
        >>> process = WorkerProcess(target=math.gcd, args=(12, 18))
        >>> process.start()
        >>> process.result()
        6
    """

    def __init__(
        self,
        group: None = None,
        target: Callable[..., R_co] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        start_method: str | BaseContext | None = None,
        max_memory_bytes: int | None = None,
        orphan: bool = False,
    ) -> None:
        check_group(group)
        check_target(target)
        check_name(name)
        method = None if start_method is None else resolve_context(start_method).get_start_method()
        if method is not None:
            refuse_what_cannot_be_pickled(target, method)
        self._mpkit = Handle(method=method, limit=checked_limit(max_memory_bytes), orphan=bool(orphan))
        super().__init__(target, name, checked_args(args), checked_kwargs(kwargs), daemon=daemon)

    @classmethod
    def call(cls, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> WorkerProcess[T]:
        """Create a process that will call ``fn(*args, **kwargs)``; type checkers check the arguments.

        It is not started yet: call `start`, or use it in a ``with`` statement.

        Args:
            fn: What to call in the child.
            *args: Its positional arguments.
            **kwargs: Its keyword arguments.

        Raises:
            TypeError: `fn` is not callable.

        Examples:
            >>> with WorkerProcess.call(divmod, 17, 5) as process:
            ...     process.result()
            (3, 2)
        """
        return cast("WorkerProcess[T]", cls(None, cast("Any", fn), None, args, kwargs))

    # -- the life of a process -------------------------------------------------------------------------------

    def run(self) -> R_co:  # type: ignore[override]  # here its return value is the result
        """What the child does: call the target. A subclass may override it; its return value is the result.

        (For type checkers, an override with a result conflicts with the `run` of `multiprocessing`, which
        returns None.)
        """
        return cast("R_co", child_process.call_target(self))

    @override
    def start(self) -> None:
        """Start the process. This works only once.

        If it fails, or is interrupted (Ctrl-C) at any step, nothing is left behind, and you may try again.
        Ctrl-C takes effect once the child exists. If that takes more than a second, because the fork server
        is stopped, a second Ctrl-C takes effect at once.

        Raises:
            SerializationError: Under spawn or forkserver, the target, an argument or an attribute of a
                subclass cannot be pickled; the message names it.
            AssertionError: It has been started before, or is being started by another thread; or the
                calling process did not create it, or is daemonic.
            ClosedError: After `close`.
            OSError: The system has no process, descriptor or memory left.
            RuntimeError: The system has no thread left to watch the memory limit with; or, under
                forkserver, this is a signal handler that has interrupted its thread while that was talking to
                the fork server.
            WorkerCrashed: The fork server of multiprocessing died in the meantime.

        Blocking: until the child process exists, not until its target begins.
        """
        self._check_closed()
        handle = self._mpkit
        interrupts = deferred_interrupts(gives_way)
        target: _Target | None = None
        try:
            if child_process.is_started(self) or not handle.claim(interrupts):
                raise AssertionError(f"cannot start a process twice: {self!r}")
            self._start_method = handle.method or self._mpkit_default_method()
            target = child_process.target_of(self)
            with interrupts:
                try:
                    self._mpkit_start_or_fail(handle, interrupts)
                except BaseException:
                    self._mpkit_take_back_start(target)
                    raise
        except (EOFError, ConnectionError) as error:
            # The fork server has died. (From 3.14 on, and in 3.13.8, it imports the main module, so an error
            # there may be the cause.)
            raise outcome.server_died(error) from error
        except BaseException:
            # An interrupt may come before or after the inner block.
            if handle.is_claimed_by(interrupts):
                self._mpkit_take_back_start(target)
            raise

    def _mpkit_default_method(self) -> str:
        """The start method if none was given; chosen at the start."""
        return resolve_context(None).get_start_method()

    def _mpkit_start_or_fail(self, handle: Handle, interrupts: deferred_interrupts) -> None:
        ties = handle.prepare()
        if self._start_method == "forkserver":
            # If multiprocessing started the server, an early Ctrl-C would kill it, and it would not preload
            # mpkit.
            start_fork_server(())
        interrupts.hand_on()
        ties.shares_tracker = os.name == "posix" and (self._start_method != "fork" or tracker.is_running())
        super().start()
        self._mpkit_look_after(handle, ties)
        # An interrupt that has come meanwhile ends the start here, where the caller can take it back safely.
        interrupts.hand_on()

    def _mpkit_take_back_start(self, target: _Target | None) -> None:
        """Undo a start after an error or interrupt at any step: no process may run that nobody knows of.

        Args:
            target: The target and its arguments, which a successful start has dropped; None: not even begun.
        """
        with deferred_interrupts():
            handle = self._mpkit
            process = child_process.identity_of(self)
            try:
                # First, so that a child that arrives from now on ends by itself.
                process = handle.abandon() or process
            finally:
                try:
                    if process is not None:
                        families.kill_families([process])
                    if target is not None and child_process.is_started(self):
                        child_process.take_back_start(self, target)
                    handle.unclaim()
                finally:
                    handle.forget_start(process)

    def _mpkit_look_after(self, handle: Handle, ties: Ties) -> None:
        """Right after the start: tell the guardian of the child, and watch its memory if it has a limit."""
        ties.link.started(child_process.identity_of(self))
        if handle.limit is not None:
            process = child_process.look_at(self)
            if process is not None:
                memory_watch.watch(process, handle.limit, handle.exceeded_memory)

    @override
    def join(self, timeout: SupportsFloat | None = None) -> None:
        """Wait until the process has ended. A large result can never cause a deadlock here.

        It returns None in any case; `exitcode` tells whether the process has ended.

        Args:
            timeout: How many seconds to wait; None: no limit; 0: do not wait.

        Raises:
            ValueError: The timeout is negative or NaN, or the process has not been started.
            TypeError: The timeout is not a number.
            ClosedError: After `close`.
            RuntimeError: Another process created it.

        Blocking: for at most `timeout`. If the process was killed, up to a second more, until those of its
        descendants that die with it have ended. If the fork server, which tells the exit code, is stopped
        (SIGSTOP), and the `sentinel` of the process has been used, the first call after its end waits for the
        exit code for up to five seconds; this also holds for `is_alive` and `exitcode`.
        """
        seconds = check_timeout(timeout)
        self._mpkit_require_started()
        self._mpkit_join(seconds)

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does: `KeyboardInterrupt` is raised in the target. On Windows, terminate it.

        It has no effect on a process that has ended. It does not wait for the process to end, and reaches no
        descendants: see `stop`.

        Raises:
            ValueError: The process has not been started.
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        self._mpkit_note_stop()
        child_process.interrupt(self)

    @override
    def terminate(self) -> None:
        """Send SIGTERM, which by default ends a Python process without cleaning up.

        It has no effect on a process that has ended. It does not wait for the process to end, and reaches no
        descendants: see `stop`.

        Raises:
            ValueError: The process has not been started.
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        self._mpkit_note_stop()
        super().terminate()

    @override
    def kill(self) -> None:
        """Send SIGKILL, which no process can catch or ignore. On Windows, terminate it.

        It has no effect on a process that has ended. It does not wait for the process to end, and reaches no
        descendants: see `stop`.

        Raises:
            ValueError: The process has not been started.
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        self._mpkit_require_started().killed = True
        super().kill()

    def stop(self, grace_period: SupportsFloat | None = 3.0) -> int:
        """End the process and all its descendants: interrupt them, then terminate, then kill what is left.

        Before each step all of them are suspended until no new one appears, and then continued. So a
        descendant that is just being started cannot escape, and one that was suspended (SIGSTOP) can clean
        up. (On Windows there is no such step.)

        If the target has not begun, the process is killed at once: there is nothing to clean up.

        Processes are identified by pid and start time, so a process to which the system has given the same
        pid is not affected. The resource tracker of multiprocessing is spared: it cleans up and ends by
        itself. If the calling process has no file descriptors left, descendants cannot be found, and only the
        process itself is ended.

        Args:
            grace_period: How many seconds to wait after the interrupt, and again after the terminate. 0: kill
                at once. None: wait without limit after the interrupt.

        Returns:
            The exit code, negative for a signal. A process that had ended before keeps its own. 255 if the
            exit code is not known (if the fork server, which tells it, is stopped, this waits a few seconds
            for it).

        Raises:
            ValueError: The grace period is negative or NaN, or the process has not been started.
            TypeError: The grace period is not a number.
            ClosedError: After `close`.
            RuntimeError: Another process created it.

        Blocking: at most twice the grace period (without limit if that is None), plus the time that the
        kernel needs to end a killed process.
        """
        return self._mpkit_stop(check_timeout(grace_period, name="grace_period"), interrupted=False)

    @override
    def close(self) -> None:
        """Release the descriptors and the result; every later use raises `ClosedError`.

        This also happens when the object is dropped. Calling it again does nothing.

        Raises:
            ValueError: The process is still running; `join` or `stop` it first.
        """
        super().close()
        handle = self._mpkit
        if child_process.is_created_here(self):
            # It may have ended without having been joined.
            self._mpkit_tidy_up()
        if handle.ties is not None:
            handle.ties.close()
        handle.forget_outcome()

    def __enter__(self) -> Self:
        """Start the process, unless it has been started."""
        self._check_closed()
        if not child_process.is_started(self):
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: types.TracebackType | None,
    ) -> None:
        """Join the process; after an exception in the block, or while joining, stop it as `stop` does.

        Another exception while it is being stopped, such as a second Ctrl-C, kills it at once.
        """
        if child_process.is_closed(self):
            return
        if exc_type is not None:
            self._mpkit_stop_for_good(exc_type)
            return
        try:
            self.join()
        except BaseException as error:
            self._mpkit_stop_for_good(type(error))
            raise

    # -- its outcome -----------------------------------------------------------------------------------------

    def result(self, timeout: SupportsFloat | None = None) -> R_co:
        """Wait until the process has ended, and return what its target returned.

        Big buffers in the result (of numpy arrays, for example) are mapped, not copied, and are private to
        this process. The result survives the process, and you may ask for it any number of times until
        `close`.

        The first call unpickles it, in the calling thread. That runs code of its classes, which no time limit
        can stop: if it hangs, this call hangs, but no others do. All calls return the same object, or raise
        the same exception.

        Args:
            timeout: How many seconds to wait for the process; None: no limit; 0: do not wait. Unpickling is
                not included.

        Returns:
            What the target, or an overridden `run`, returned.

        Raises:
            BaseException: What the target raised, `SystemExit` and `KeyboardInterrupt` included, with the
                child's traceback as its ``__cause__``.
            WorkerCrashed: The process ended in another way: killed, crashed, or by ``os._exit``.
            WorkerMemoryExceeded: It was killed for exceeding `max_memory_bytes`.
            SerializationError: The target, an argument or the result could not be pickled or unpickled.
            OSError: The system has no memory left to map the result. The result stays, and a later call
                may succeed.
            WaitTimeout: It has not ended in time. It goes on.
            ValueError: The timeout is negative or NaN, or the process has not been started.
            TypeError: The timeout is not a number.
            ClosedError: After `close`.
            RuntimeError: Another process created it.

        Blocking: as `join`, then for as long as unpickling takes.
        """
        stage, value = self._mpkit_outcome_within(timeout)
        if stage is not Stage.RETURNED:
            assert isinstance(value, BaseException)
            raise value
        return cast("R_co", value)

    def exception(self, timeout: SupportsFloat | None = None) -> BaseException | None:
        """Wait until the process has ended, and return what `result` would raise; None if it would return.

        This unpickles the result, too, to find out whether that is possible: see `result`.

        Args:
            timeout: How many seconds to wait for the process; None: no limit; 0: do not wait. Unpickling is
                not included.

        Returns:
            The exception of the target, `WorkerCrashed`, `WorkerMemoryExceeded` or `SerializationError`; or
            None.

        Raises:
            OSError: The system has no memory left to map the result. The result stays, and a later call
                may succeed.
            WaitTimeout: It has not ended in time. It goes on.
            ValueError: The timeout is negative or NaN, or the process has not been started.
            TypeError: The timeout is not a number.
            ClosedError: After `close`.
            RuntimeError: Another process created it.

        Blocking: as `join`, then for as long as unpickling takes.
        """
        stage, value = self._mpkit_outcome_within(timeout)
        return None if stage is Stage.RETURNED else cast("BaseException", value)

    # -- what it is doing ------------------------------------------------------------------------------------

    @property
    def state(self) -> ProcessState:
        """What the process is doing now, according to the operating system.

        Raises:
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        self._check_closed()
        if child_process.is_current(self):
            return ProcessState.RUNNING
        self._mpkit_require_created_here()
        if not child_process.is_started(self):
            return ProcessState.NEW
        try:
            # Not through `info`, which a subclass may use for something else.
            return self._mpkit_look().state
        except ProcessGone:
            return ProcessState.EXITED

    if not TYPE_CHECKING:
        state = _Shadowable(state.fget)

    def info(self) -> ProcessSnapshot:
        """What the operating system says about the process: memory, CPU time, threads and so on.

        Raises:
            ProcessGone: It has ended.
            AccessDenied: The system does not allow examining it.
            ValueError: It has not been started.
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        return self._mpkit_look()

    def children(self) -> list[ProcessSnapshot]:
        """The child processes of this process according to the operating system; oldest first.

        It does not matter how they were started. But under forkserver, processes that it starts through its
        fork server are children of the server. `mpkit.introspect.tree` also shows their descendants.

        Raises:
            ProcessGone: It has ended.
            AccessDenied: The system does not allow examining it.
            ValueError: It has not been started.
            ClosedError: After `close`.
            RuntimeError: Another process created it.
        """
        from mpkit.introspect import tree  # noqa: PLC0415  it imports psutil

        return [child.process for child in tree(self._mpkit_living_pid()).children]

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} {self._mpkit_described_state()}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _mpkit_described_state(self) -> str:
        if child_process.is_closed(self):
            return "closed"
        if child_process.is_current(self):
            return f"pid={self.pid} running"
        if not child_process.is_created_here(self):
            return "of another process"
        if not child_process.is_started(self):
            return "new"
        code = self.exitcode
        if code is None:
            return f"pid={self.pid} started"
        name = signal_name(code)
        return f"pid={self.pid} exited exitcode={code}{f' ({name})' if name else ''}"

    def _mpkit_require_created_here(self) -> None:
        if not child_process.is_created_here(self):
            raise RuntimeError(f"only the process that created it can do this with {self!r}")

    def _mpkit_require_started(self) -> Handle:
        self._check_closed()
        self._mpkit_require_created_here()
        if not child_process.is_started(self):
            raise ValueError(
                f"{self!r} has not been started; call start() first, or use it in a with statement"
            )
        return self._mpkit

    def _mpkit_stop(self, grace: float | None, *, interrupted: bool) -> int:
        handle = self._mpkit_note_stop()
        root = child_process.identity_of(self)
        if self.exitcode is None:
            if root is None:
                # It cannot be identified (no descriptor left), so its descendants cannot be found either.
                self.kill()
            else:
                # A target that has not begun never will after `has_begun`, so there is nothing to interrupt;
                # and under forkserver the signal would be lost.
                grace = grace if grace == 0 or handle.has_begun(interrupts=not interrupted) else 0.0
                end_family(root, grace, handle, interrupted=interrupted)
        # Waits only a few seconds for the exit code, because a fork server that is stopped does not tell it.
        child_process.wait_for_end_and_code(self)
        self._mpkit_join(None)
        return cast("int", child_process.exit_code_of(self))

    def _mpkit_stop_for_good(self, reason: type[BaseException]) -> None:
        """Stop it because of an exception of type `reason`; kill it if another one comes meanwhile."""
        try:
            # Ctrl-C reaches all processes of the terminal, so the child has been interrupted already. Another
            # interrupt would hit it while it cleans up.
            self._mpkit_stop(3.0, interrupted=issubclass(reason, KeyboardInterrupt))
        except BaseException:
            self._mpkit_stop(0.0, interrupted=True)
            raise

    def _mpkit_note_stop(self) -> Handle:
        handle = self._mpkit_require_started()
        if self.exitcode is None:
            handle.stopped = True
        return handle

    def _mpkit_join(self, seconds: float | None) -> None:
        super().join(seconds)
        self._mpkit_tidy_up()

    def _mpkit_tidy_up(self) -> None:
        # Not through the property `exitcode`, because another thread may have closed the process by now.
        code = child_process.exit_code_of(self)
        if code is not None:
            self._mpkit.tidy_up(child_process.identity_of(self), code, self.name)

    def _mpkit_look(self) -> ProcessSnapshot:
        from mpkit.introspect import snapshot  # noqa: PLC0415  it imports psutil

        return snapshot(self._mpkit_living_pid())

    def _mpkit_living_pid(self) -> int:
        self._check_closed()
        pid = cast("int", self.pid)
        if child_process.is_current(self):
            return pid
        self._mpkit_require_started()
        if self.exitcode is not None:
            # The pid may have been reused.
            raise ProcessGone(pid=pid)
        return pid

    def _mpkit_outcome_within(self, timeout: SupportsFloat | None) -> tuple[Stage, object]:
        seconds = check_timeout(timeout)
        handle = self._mpkit_require_started()
        self._mpkit_join(seconds)
        if child_process.exit_code_of(self) is None:
            raise WaitTimeout(f"{self!r} has not ended within {seconds:g} s; it goes on")
        # There is no lock around this, because unpickling runs foreign code: other threads would have to wait
        # for it, and a signal handler or that code itself would wait for its own thread. So two threads may
        # both unpickle; all callers get what the first one has kept.
        try:
            return handle.outcome or handle.keep_outcome(outcome.of(self, handle, self._mpkit_own_ties()))
        except (ValueError, OSError):
            self._check_closed()  # another thread may have closed it by now
            raise

    @override
    def _mpkit_arrived(self) -> None:
        self._mpkit_own_ties().enter()
        child_process.show_name(self)

    @override
    def _mpkit_perform(self, run: Callable[[], object]) -> None:
        self._mpkit_own_ties().perform(run)

    def _mpkit_own_ties(self) -> Ties:
        ties = self._mpkit.ties
        assert ties is not None  # the parent makes them before each start, and the child gets them
        return ties

    @override
    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        handle = self._mpkit
        if not spawning() or child_process.was_started(self):
            raise codec.UnsendableError(
                f"{self!r} belongs to the process that created it and cannot be sent to another; send "
                "its pid, or what its result() returned"
            )
        ties = handle.ties
        # Without ties, it is another process that is being started: one whose target or attributes refer to
        # this one. (A program may have both as attributes of one object.) This one may also be the current
        # process, whose ties are with its parent: it starts another with one of its own methods as target.
        if ties is None or handle.payload_under_way or not child_process.is_created_here(self):
            made = super().__reduce_ex__(protocol)
            # A subclass may return anything else from its own `__reduce_ex__` or `__reduce__`.
            if isinstance(made, tuple) and len(made) > 2 and isinstance(made[2], dict):
                state = cast("dict[str, Any]", made[2])
                made = (*made[:2], without_type_arguments(state), *made[3:])
            return made
        handle.payload_under_way = True
        try:
            payload = codec.dumps(self)
        except SerializationError as error:
            raise unpicklable(self, self._start_method, error) from (error.__cause__ or error)
        finally:
            handle.payload_under_way = False
        return Arrival, (self.name, ties.link, ties.report, ties.stack, ties.trail, ties.above, payload)
