"""How a child is launched: so that nobody loses it, and that nothing stays open where the system refuses it.

It is mixed into the Popen classes of multiprocessing, which are private, and so is what they promise each
other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any, Final

from mpkit._platform.hints import override
from mpkit._platform.signals.deferred_handlers import deferred_handlers
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.passing import spawning
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.forks import in_forked_children

__all__ = ["Launch", "LaunchByServer", "LaunchOfOwn", "gives_way"]

#: No launch takes as long as this, unless it waits for a process that is stopped.
_STUCK_S: Final = 1.0

#: What a launch by the fork server has open at most (a socket and two pipes), and some for what is imported.
_LAUNCH_DESCRIPTORS: Final = 8

#: Launches under way by spawn and forkserver, of all threads.
_launches: Final[list[Launch]] = []
in_forked_children(_launches.clear)


class Launch:
    """Mixed into the Popen classes of multiprocessing (POSIX), besides what waits for the child."""

    method: str
    pid: int
    sentinel: int
    finalizer: util.Finalize | None

    def _launch(self, child: BaseProcess) -> None:
        # A child whose pid did not arrive here, or that waits for what is not sent any more, would stay for
        # ever. A fork leaves the blocks by `end_deferral` and its like, just before it calls its target.
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
        return self._interrupts.has_arrived() and CLOCK.monotonic() - self._launch_began > _STUCK_S

    def _launched(self) -> None:
        """What is to be done at once, in the parent."""

    def give_up(self) -> None:
        """After an error (or an interrupt) half way through the start: let nothing go on that has begun."""
        its = vars(self)
        if its.get("_owner", os.getpid()) != os.getpid():
            # The fork itself, interrupted before it got to what it is for: it must not go on as a second one
            # of the program.
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


class LaunchByServer(Launch):
    """For forkserver: the process is a child of the server."""

    @override
    def _launch(self, child: BaseProcess) -> None:
        # multiprocessing begins to talk to the server, and asks for the last descriptor when that has forked.
        # Failing in between, it would leave the server dead, or the fork waiting for ever.
        _require_descriptors(_LAUNCH_DESCRIPTORS)
        try:
            super()._launch(child)
        except OSError as error:
            # Another thread may have taken them meanwhile.
            from multiprocessing import forkserver, popen_forkserver  # noqa: PLC0415  POSIX only

            ask = vars(forkserver.ForkServer)["connect_to_new_process"]
            _close_what_is_forgotten(error, ask, ("parent_r", "child_w"), until="child_r")
            if sys.platform != "win32" and "sentinel" in vars(self) and self.finalizer is None:
                # It has been forked, and waits for what it is to do.
                _close_what_is_forgotten(error, vars(popen_forkserver.Popen)["_launch"], ("w",))
                os.close(self.sentinel)
            raise


def _close_what_is_forgotten(error: OSError, by: Any, names: Sequence[str], until: str = "") -> None:  # noqa: ANN401
    """Close what a function of multiprocessing had opened for a child when the system refused it the rest.

    Args:
        error: What it has raised.
        by: The function, which forgets it.
        names: Its variables that are descriptors, as far as it has come to them.
        until: A variable that it has once it, or somebody else, closes them.
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
    """See that so many more can be had at this moment.

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
    """Whether the start of a process, which keeps interrupts away, gives way to one.

    To the first while arguments are pickled, which is foreign code; to a further one once a launch has taken
    long: a server or a child that is stopped makes it wait.
    """
    return spawning() or any(launch._is_stuck() for launch in _launches)
