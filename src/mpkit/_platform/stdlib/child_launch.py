"""Launching a child so that it is never lost, and that no descriptor stays open if the system refuses it.

These classes are mixed into the Popen classes of multiprocessing. Those are private, and so is the way in
which they use each other's methods; `Spawning` also uses what spawn's `_launch` does (``_name``, ``_fds``,
`set_spawning_popen` and functions of the modules `spawn` and `util`).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any, Final

from mpkit._platform.hints import override
from mpkit._platform.signals.deferred_handlers import deferred_handlers
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.signals.sigpipe import discarded_sigpipe
from mpkit._platform.stdlib.passing import spawning
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.forks import in_forked_children

#: A launch takes longer than this only if it waits for a process that is stopped.
_STUCK_SECONDS: Final = 1.0

#: How many descriptors a launch by the fork server needs at most (a socket and two pipes, and some for
#: imports).
_LAUNCH_DESCRIPTORS: Final = 8

#: The launches that are under way by spawn and forkserver, in all threads.
_launches: Final[list[Launch]] = []
in_forked_children(_launches.clear)


class Launch:
    """Launching a child; mixed into the Popen classes of multiprocessing (POSIX)."""

    method: str
    pid: int
    sentinel: int
    finalizer: util.Finalize | None

    def _launch(self, child: BaseProcess) -> None:
        # Interrupts are deferred, because a child whose pid was lost, or that waits for data which is never
        # sent, would stay for ever. A forked child leaves these blocks by `end_deferral` and
        # `end_deferral_of_handlers`, just before it calls its target.
        self._interrupts = deferred_interrupts(gives_way)
        self._launch_began = CLOCK.monotonic()
        with self._interrupts:
            try:
                if self.method != "fork":
                    _launches.append(self)
                    start_tracker()
                with deferred_handlers() if self.method == "fork" else contextlib.nullcontext():
                    super()._launch(child)  # type: ignore[misc]  # the other base class has it
                self._launched()
            finally:
                with contextlib.suppress(ValueError):
                    _launches.remove(self)

    def _is_stuck(self) -> bool:
        return self._interrupts.has_arrived() and CLOCK.monotonic() - self._launch_began > _STUCK_SECONDS

    def _launched(self) -> None:
        """Called in the parent right after the launch."""

    def give_up(self) -> None:
        """After an error or interrupt half way through the start: end the child, and close what is open."""
        its = vars(self)
        if its.get("_owner", os.getpid()) != os.getpid():
            # This is the forked child, interrupted before it has come to its target: it must not go on as a
            # second copy of the program.
            os._exit(1)
        with deferred_interrupts():
            if "pid" in its:
                self._kill_at_once()
            if "finalizer" in its:
                self.close()

    def _kill_at_once(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        super().close()  # type: ignore[misc]  # the other base class has it


class LaunchOfOwn(Launch):
    """For fork and spawn: the process is a child of ours."""

    @override
    def _launch(self, child: BaseProcess) -> None:
        try:
            super()._launch(child)
        except OSError as error:
            if sys.platform != "win32" and self.method == "fork" and "pid" not in vars(self):
                from multiprocessing import popen_fork  # noqa: PLC0415  POSIX only

                pipes = ("parent_r", "child_w", "child_r", "parent_w")
                _close_what_is_forgotten(error, vars(popen_fork.Popen)["_launch"], pipes)
            raise


class Spawning:
    """Spawns a child that may die before it has read what it is sent; mixed into the Popen class of spawn.

    This replaces the method of multiprocessing, which before Python 3.15 keeps the child's end of the pipe
    open while it writes. So if the child died (because the main module cannot be imported there, say) and
    there was more than fits into the pipe, `start` never returned.
    """

    _fds: list[int]

    def _launch(self: Any, child: BaseProcess) -> None:
        from multiprocessing import reduction, resource_tracker, spawn  # noqa: PLC0415  not for fork
        from multiprocessing.context import set_spawning_popen  # noqa: PLC0415

        tracker = resource_tracker.getfd()
        self._fds.append(tracker)
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(vars(child)["_name"]), data)
            reduction.dump(child, data)
        finally:
            set_spawning_popen(None)
        ours: list[int] = []
        theirs: list[int] = []
        try:
            # The child takes this pipe's end for the end of its parent.
            read, alive = os.pipe()
            theirs.append(read)
            ours.append(alive)
            sentinel, ends = os.pipe()
            ours.append(sentinel)
            theirs.append(ends)
            self._fds.extend(theirs)
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=read)
            self.pid = util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, self._fds)
            self.sentinel = sentinel
        finally:
            self.finalizer = util.Finalize(self, _close_all, ours)
            _close_all(*theirs)
        # If it has died, its exit code says so.
        with (
            discarded_sigpipe(),
            contextlib.suppress(BrokenPipeError),
            open(alive, "wb", closefd=False) as pipe,
        ):
            pipe.write(data.getbuffer())


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class LaunchByServer(Launch):
    """For forkserver: the process is a child of the server."""

    @override
    def _launch(self, child: BaseProcess) -> None:
        # multiprocessing begins to talk to the server, and opens its last descriptor only when the server has
        # forked. If that failed, the server would end, or the forked child would wait for ever. So check
        # first.
        _require_descriptors(_LAUNCH_DESCRIPTORS)
        try:
            super()._launch(child)
        except OSError as error:
            # Another thread may have taken the descriptors meanwhile.
            from multiprocessing import forkserver, popen_forkserver  # noqa: PLC0415  POSIX only

            ask = vars(forkserver.ForkServer)["connect_to_new_process"]
            _close_what_is_forgotten(error, ask, ("parent_r", "child_w"), until="child_r")
            if sys.platform != "win32" and "sentinel" in vars(self) and self.finalizer is None:
                # The child has been forked, and waits for its instructions.
                _close_what_is_forgotten(error, vars(popen_forkserver.Popen)["_launch"], ("w",))
                os.close(self.sentinel)
            raise


def _close_what_is_forgotten(error: OSError, by: Any, names: Sequence[str], until: str = "") -> None:  # noqa: ANN401
    """Close descriptors that a function of multiprocessing has opened, and leaves open after an error.

    Args:
        error: The error that it has raised.
        by: The function.
        names: Its local variables that contain descriptors, as far as it has opened them.
        until: A local variable; from its assignment on, the descriptors are closed otherwise.
    """
    step = error.__traceback__
    while step is not None:
        its = step.tb_frame.f_locals
        if step.tb_frame.f_code is by.__code__ and until not in its:
            for name in names:
                if name in its:
                    os.close(its[name])
        step = step.tb_next


def _require_descriptors(number: int) -> None:
    """Check that this many more descriptors can be opened at this moment.

    Raises:
        OSError: If not (EMFILE, ENFILE).
    """
    taken: list[int] = []
    try:
        for _ in range(number // 2):
            taken.extend(os.pipe())
    finally:
        for descriptor in taken:
            os.close(descriptor)


def gives_way() -> bool:
    """Whether an interrupt during the start of a process takes effect at once, instead of being deferred.

    It does while arguments are pickled, which runs foreign code; and a second one does if the launch takes
    long, because it waits for a fork server or a child that is stopped.
    """
    return spawning() or any(launch._is_stuck() for launch in _launches)
