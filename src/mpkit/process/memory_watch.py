"""Ends processes that outgrow their memory limit.

A sampler in the parent, not a limit of the system (RLIMIT_AS): that one counts address space, in which shared
memory, the reserves of every thread's allocator and mapped files weigh as much as memory in use, so a limit
low enough to protect anything hits innocents. No system has an event for "resident memory above n", so this
is one of the few places that look at intervals. Between two looks a process can touch no more fresh pages
than the kernel can clear, some 100 MB at the worst.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Final

from mpkit._platform.processes import families, identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.resources import memory
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock

__all__ = ["watch"]

INTERVAL_S: Final = 0.05

_logger = logging.getLogger("mpkit.process")


class _Watcher:
    """The processes with a limit, and the thread that looks at them; it ends when there are none left.

    A signal handler may call this, too, in the middle of a call of its own thread, or end one with an
    exception: so each step leaves things as the next one needs them.
    """

    def __init__(self) -> None:
        self._lock = InterruptibleLock()
        self._limits: dict[ProcessIdentity, tuple[int, Callable[[int], None]]] = {}
        #: The thread that looks; any other one ends.
        self._thread: threading.Thread | None = None

    def add(self, process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> None:
        self._lock.run(self._add, process, limit, exceeded)

    def _add(self, process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> None:
        self._limits[process] = (limit, exceeded)
        try:
            if self._thread is None:
                self._start()
        except BaseException:
            # Should there be no thread left, nothing is to be watched.
            self._limits.pop(process, None)
            raise

    def _start(self) -> None:
        # A daemon: at the end of the interpreter it must not be waited for, since multiprocessing ends the
        # daemonic children only after the threads.
        thread = threading.Thread(target=self._run, name="mpkit-memory-watch", daemon=True)
        try:
            self._thread = thread
            thread.start()
        except BaseException:
            # It may run all the same: then it sees that it is not wanted.
            self._thread = None
            if len(self._limits) > 1:
                # The handler that has raised this has added one before.
                self._start()
            raise

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(INTERVAL_S)
            # The limits hold for as long as this thread runs: nothing may end it but the end of its work.
            try:
                if not self._look():
                    return
            except Exception as error:  # noqa: BLE001  whatever it is, it is told
                _tell(error, "the memory watch failed; it looks again")

    def _look(self) -> bool:
        """Look at each process once; False when there is nothing left to do, and the thread has to end."""
        limits = self._lock.run(self._wanted)
        for process, (limit, exceeded) in limits.items():
            try:
                done = _is_done_with(process, limit, exceeded)
            except Exception as error:  # noqa: BLE001  one that cannot be dealt with leaves the others theirs
                _tell(error, "the memory of process %d could not be limited; it is tried again", process.pid)
                continue
            if done:
                self._limits.pop(process, None)
        return self._lock.run(self._goes_on)

    def _wanted(self) -> dict[ProcessIdentity, tuple[int, Callable[[int], None]]]:
        return dict(self._limits) if self._thread is threading.current_thread() else {}

    def _goes_on(self) -> bool:
        me = threading.current_thread()
        if self._thread is not me:
            return False
        # In this order: a `__del__` that comes in between and adds one starts another thread.
        self._thread = None
        if self._limits:
            self._thread = me
        return self._thread is me


def _tell(error: Exception, what: str, *arguments: object) -> None:
    """Log an error. What a log handler raises must not end the thread either."""
    try:
        _logger.error(what, *arguments, exc_info=error)
    except Exception as second:  # noqa: BLE001  whatever it is, it is shown
        sys.excepthook(type(second), second, second.__traceback__)


def _is_done_with(process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> bool:
    """Whether the process need not be looked at again: it has ended, or was over its limit and is killed."""
    size = memory.rss_bytes(process.pid)
    # Asked afterwards: so it was the memory of this process, not of another that has got its pid. It also
    # tells why there may be none to see: one that lives cannot be read just now (no descriptor left, say).
    if not identity.is_alive(process):
        return True
    if size is None or size <= limit:
        return False
    exceeded(size)
    families.kill_families([process])
    return True


_watcher = _Watcher()


@in_forked_children
def _forget() -> None:
    global _watcher
    _watcher = _Watcher()


def watch(process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> None:
    """Kill `process` and its descendants as soon as its resident memory is seen to be above `limit`.

    Args:
        process: A child of this process; when it has ended it is forgotten.
        limit: In bytes.
        exceeded: Called with the memory it had, just before it is killed.

    Raises:
        RuntimeError: If no thread can be started. Nothing is watched then.
    """
    _watcher.add(process, limit, exceeded)
