"""The outcome of a process that has ended: what its target returned or raised, or how it died."""

from __future__ import annotations

from typing import Final

from mpkit._platform.signals.names import signal_name
from mpkit._platform.stdlib import child_process
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit.errors import SerializationError, WorkerCrashed, WorkerMemoryExceeded
from mpkit.process.handle import Handle
from mpkit.process.report import Stage
from mpkit.process.ties import Ties

__all__ = ["of", "server_died"]

_GUARD: Final = "a program that starts processes needs the line: if __name__ == '__main__':"


def of(process: ChildProcess, handle: Handle, ties: Ties) -> tuple[Stage, object]:
    """The outcome of a process that has ended.

    This unpickles the process's report, which runs foreign code.

    Returns:
        How far it came, and what its target returned; if it did not return, the exception that tells why.

    Raises:
        OSError: If the system has no memory left to map the report.
        ValueError: If `process` or the file with its report is closed.
    """
    try:
        stage, value = ties.report.read()
    except SerializationError as error:
        return Stage.RAISED, error
    if stage < Stage.RETURNED:
        value = _death(process, stage, handle, ties)
    return stage, value


def _death(process: ChildProcess, stage: Stage, handle: Handle, ties: Ties) -> BaseException:
    """The error for a process that ended before its target had returned or raised."""
    pid, code = process.pid, process.exitcode
    if handle.memory_exceeded is not None:
        return WorkerMemoryExceeded(pid=pid, rss_bytes=handle.memory_exceeded, limit=handle.limit)
    message = None
    if lost := child_process.code_lost_because(process):
        message = f"process {pid} ended before its target had returned; how is not known: {lost}"
        code = None
    elif code is not None and code >= 0:
        message = f"process {pid} ended with exit code {code} before its target had returned"
        if handle.stopped:
            message += ": it was stopped (stop, interrupt or terminate)"
        elif stage is Stage.ARRIVED:
            message += " (os._exit, or C code that exits)"
        else:
            message += (
                "; it did not get as far as calling it: the main module of the program could not be "
                "imported in the child, as its error output tells (one that is read from standard input "
                f"never can); {_GUARD}"
            )
    return WorkerCrashed(
        message,
        pid=pid,
        exitcode=code,
        signal=signal_name(code),
        stack=ties.last_words(),
        rss_bytes=child_process.peak_rss_bytes_of(process),
        likely_oom=handle.likely_oom(code),
    )


def server_died(error: Exception) -> WorkerCrashed:
    """The error to raise when talking to the fork server of multiprocessing has failed with `error`."""
    return WorkerCrashed(
        "the fork server of multiprocessing has died, or the system has no process left for it "
        f"({type(error).__name__}: {error}); if its error output says that the main module of the "
        f"program could not be imported: {_GUARD}; one that is read from standard input can never be "
        "imported again, so save it to a file"
    )
