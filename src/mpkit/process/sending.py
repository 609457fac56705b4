"""Sends the process object to its child where it has to be pickled: under spawn and forkserver."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
import types
from typing import Final

from mpkit._platform.files.anonymous import AnonymousFile
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.stdlib import child_process
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit._platform.stdlib.passing import extra_reducers, inheriting
from mpkit._wire import codec
from mpkit.errors import SerializationError
from mpkit.process.handle import Handle
from mpkit.process.report import Report
from mpkit.process.ties import Ties

__all__ = ["Arrival", "refuse_what_cannot_be_pickled", "unpicklable"]

_REMEDY: Final = (
    "define functions at the top level of a module and send plain values, or use start_method='fork'"
)


def refuse_what_cannot_be_pickled(target: object, method: str) -> None:
    """Raise early what `start` would raise for a lambda or local function: functions are pickled by name."""
    if method == "fork" or not isinstance(target, types.FunctionType):
        return
    if types.FunctionType in extra_reducers():
        return  # another way to pickle functions has been registered with multiprocessing
    if "<lambda>" in target.__qualname__ or "<locals>" in target.__qualname__:
        raise SerializationError(
            f"target {target.__qualname__} cannot be sent to a process that is started by {method}; {_REMEDY}"
        )


def unpicklable(process: ChildProcess, method: str, error: SerializationError) -> SerializationError:
    """The error to raise when a process object cannot be pickled; it names the part that is to blame.

    Args:
        process: The process object.
        method: Its start method.
        error: The error of pickling it as a whole.
    """
    target, args, kwargs = child_process.target_of(process)
    parts: list[tuple[str, object]] = [("target", target)]
    parts += [(f"argument number {number}", value) for number, value in enumerate(args, 1)]
    parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    inner = {"_target", "_args", "_kwargs", "_mpkit"}
    parts += [(f"attribute {name!r}", value) for name, value in vars(process).items() if name not in inner]
    culprit = f"a {type(process).__name__}"
    for label, value in parts:
        try:
            codec.dumps(value)
        except SerializationError as found:
            culprit, error = f"its {label} ({codec.described(value)})", found
            break
    cause = error.__cause__ or error
    remedy = "" if codec.names_its_remedy(cause) else f"; {_REMEDY}"
    return SerializationError(
        f"cannot start {process.name!r} by {method}: {culprit} cannot be pickled: "
        f"{codec.error_line(cause)}{remedy}"
    )


class Arrival:
    """What a process object arrives as in a child of spawn or forkserver (see `WorkerProcess.__reduce_ex__`).

    It contains the ties, and the process object as a separate pickle. So the child is tied to its parent
    before foreign code runs, and an error in unpickling the process object reaches the parent.
    """

    def __init__(
        self,
        name: str,
        link: ParentLink,
        report: Report,
        stack: AnonymousFile,
        trail: str,
        above: tuple[Report, ...],
        payload: bytes,
    ) -> None:
        self._name = name
        self._parts = (link, report, stack, trail, above)
        self._payload = payload

    def _bootstrap(self, parent_sentinel: object) -> int:
        """In the child: multiprocessing calls this in place of the process's own. Returns the exit code."""
        ties = Ties(*self._parts)
        ties.enter()
        try:
            with inheriting():
                process = codec.contained(codec.loads, self._payload)
            if not isinstance(process, ChildProcess):
                raise SerializationError(
                    f"{self._name} arrived as {codec.described(process)}: the __reduce__ of its class is "
                    "unsuitable"
                )
        except KeyboardInterrupt:
            # Die of it, as an interpreter does. The fork server's children would just exit with 1.
            if sys.platform != "win32":
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                # Modules that have been imported for the arguments may have printed something.
                for stream in (sys.stdout, sys.stderr):
                    # There may be none, or it is closed, or a pipe that nobody reads.
                    with contextlib.suppress(AttributeError, ValueError, OSError):
                        stream.flush()
                signal.raise_signal(signal.SIGINT)
            raise
        except Exception as error:  # noqa: BLE001  a MemoryError, too; the parent's `result()` raises it
            ties.report_failure(error)
            sys.stderr.write(f"Process {self._name}:\n")
            traceback.print_exc()
            return 1
        vars(process)["_mpkit"] = Handle(ties=ties)
        return process._bootstrap(parent_sentinel)
