"""Kills processes that exceed their memory limit.

The parent samples their resident memory. It does not use a limit of the system (RLIMIT_AS), because that
counts address space: shared memory, mapped files and what each thread's allocator has reserved count as much
as memory in use, so a limit low enough to be of use would hit processes that use little. No system offers an
event for "resident memory above n", so this is one of the few places that poll. Between two samples a process
cannot touch more fresh pages than the kernel can clear, some 100 MB at worst.
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

_INTERVAL_SECONDS: Final = 0.05

_logger = logging.getLogger("mpkit.process")


class _Watcher:
    """The processes with a limit, and the thread that samples them; it ends when there are none left.

    A signal handler may call this in the middle of a call of its own thread, or end that call with an
    exception. So after each step the state is consistent.
    """

    def __init__(self) -> None:
        self._lock = InterruptibleLock()
        self._limits: dict[ProcessIdentity, tuple[int, Callable[[int], None]]] = {}
        #: The thread that samples. Any other thread that runs `_run` has to end.
        self._thread: threading.Thread | None = None

    def add(self, process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> None:
        self._lock.run(self._add, process, limit, exceeded)

    def _add(self, process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> None:
        self._limits[process] = (limit, exceeded)
        try:
            if self._thread is None:
                self._start()
        except BaseException:
            # If no thread can be started, nothing is watched, and the caller is told so.
            self._limits.pop(process, None)
            raise

    def _start(self) -> None:
        # A daemon thread, because at exit the interpreter joins all others before multiprocessing ends the
        # daemonic children: it would wait for this thread, and this thread for them.
        thread = threading.Thread(target=self._run, name="mpkit-memory-watch", daemon=True)
        try:
            self._thread = thread
            thread.start()
        except BaseException:
            # If the thread is running nevertheless, it sees that it is not wanted, and ends.
            self._thread = None
            if len(self._limits) > 1:
                # The signal handler that raised this has added a process before, which needs the thread.
                self._start()
            raise

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(_INTERVAL_SECONDS)
            # Limits are enforced only while this thread runs, so no error may end it.
            try:
                if not self._look():
                    return
            except Exception as error:  # noqa: BLE001  whatever it is, it is logged
                _tell(error, "the memory watch failed; it looks again")

    def _look(self) -> bool:
        """Check each process once; False when there is nothing left to do, and the thread has to end."""
        limits = self._lock.run(self._wanted)
        for process, (limit, exceeded) in limits.items():
            try:
                done = _is_done_with(process, limit, exceeded)
            except Exception as error:  # noqa: BLE001  the limits of the others are enforced nevertheless
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
        # Cleared before the check: if a `__del__` that runs in between adds a process, it starts another
        # thread.
        self._thread = None
        if self._limits:
            self._thread = me
        return self._thread is me


def _tell(error: Exception, what: str, *arguments: object) -> None:
    """Log an error. An exception of a log handler must not end the thread either."""
    try:
        _logger.error(what, *arguments, exc_info=error)
    except Exception as second:  # noqa: BLE001  whatever it is, it is shown
        sys.excepthook(type(second), second, second.__traceback__)


def _is_done_with(process: ProcessIdentity, limit: int, exceeded: Callable[[int], None]) -> bool:
    """Check one process, and kill it if it exceeds its limit.

    Returns:
        Whether it need not be checked again, because it has ended or been killed.
    """
    size = memory.rss_bytes(process.pid)
    # Asked after reading the memory: if it is still alive, it was its own memory, and not that of another
    # process with the same pid. (If a living process has no size, it cannot be read just now.)
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
    """Kill `process` and its descendants as soon as its resident memory is seen to exceed `limit`.

    Args:
        process: A child of this process; it is watched until it has ended.
        limit: The limit in bytes.
        exceeded: Called with its resident memory in bytes, just before it is killed, in the watching thread.

    Raises:
        RuntimeError: If no thread can be started. Nothing is watched then.
    """
    _watcher.add(process, limit, exceeded)
