"""Waiting for a child and signalling it: classes that are mixed into the Popen classes of multiprocessing.

Those are private, and so is the way in which they use each other's methods; `child_process` tells why they
are used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import os
import signal
import struct
import sys
import time
from collections import deque
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any, Final

from mpkit._platform.hints import override
from mpkit._platform.processes import exits, identity, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.signals.names import KILL
from mpkit._platform.stdlib.child_launch import LaunchByServer, LaunchOfOwn, Spawning
from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.readiness import wait_readable

_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.2

#: How long to wait until the fork server tells the exit code of a process that has ended.
_TOLD_WITHIN_SECONDS = 5.0

_FIRST: Final = operator.itemgetter(0)

# The format in which `multiprocessing.forkserver.write_signed` writes an exit code. `read_signed` is not
# used, because it is Python code, in the middle of which a signal handler may run.
_EXIT_CODE: Final = struct.Struct("q")

_CODE_LOST: Final = 255
"""Stands for an exit code that is not known; multiprocessing uses the same number."""


class _ExactWaiting:
    """Waits for a child so that its exit code is not lost; mixed into the Popen classes of multiprocessing.

    A signal handler may call all of this, and Python may run it between any two steps of the main thread,
    even inside these methods. So no thread waits for a lock that it has already. And what the system tells
    only once is received and stored in one step, a single call of C code (`deque.extend` with a chain of C
    functions), so that no handler can run in between.

    Attributes:
        peak_rss_bytes: the largest resident memory of the process, in bytes, once it has ended; None if not
            known.
        code_lost_because: why the exit code is not known (and is given as 255); None if it is.
    """

    method: str
    pid: int
    sentinel: int
    returncode: int | None

    def __init__(self, child: BaseProcess) -> None:
        self._guard = InterruptibleLock()
        self._owner = os.getpid()
        self._identity: ProcessIdentity | None = None
        self.peak_rss_bytes: int | None = None
        self.code_lost_because: str | None = None
        super().__init__(child)  # type: ignore[call-arg]  # the other base class: starts it
        self._identity = identity.of(self.pid)

    @property
    def identity(self) -> ProcessIdentity | None:
        """The identity of the process; None if it had ended before that could be found out."""
        if self._identity is None and self.returncode is None and self._owner == os.getpid():
            # It could not be found out right after the start, because there was no descriptor left. Try
            # again.
            self._guard.run(self._identify)
        return self._identity

    def _identify(self) -> None:
        if self._identity is None and self.returncode is None:
            found = identity.of(self.pid)
            if self._pid_is_its_own():
                self._identity = found

    def _pid_is_its_own(self) -> bool:
        """Whether no other process can have its pid, because the process has not been reaped yet."""
        return True

    def poll(self, flag: int = 1) -> int | None:
        # The flag is WNOHANG or 0, as for `os.waitpid`.
        if flag == 0:
            return self.wait(None)
        if self.returncode is None and self._owner == os.getpid():
            self._guard.run(self._reap_once)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        deadline = deadline_of(None if timeout is None else max(timeout, 0.0))
        pause = _FIRST_PAUSE_SECONDS
        while self.poll() is None and self._owner == os.getpid():
            left = remaining(deadline)
            ended = self._wait_for_end(left)
            if left == 0.0:
                return self.poll()
            if ended and self.poll() is None:
                # There is no descriptor to wait for, or it refers to another file by now (the program has
                # closed descriptors that it does not own, or has none left). So poll.
                time.sleep(pause if left is None else min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return self.returncode

    def _send_signal(self, signum: int) -> None:
        # Checked before the lock is used: in a forked child, a thread that does not exist here may have it.
        if self._owner == os.getpid():
            # Under the lock, so that no other thread reaps it meanwhile: from then on the pid may be reused.
            self._guard.run(self._signal_once, signum)

    def interrupt(self) -> None:
        self._send_signal(signal.SIGINT)

    def wait_for_end_and_code(self) -> None:
        """Wait for the end, and then for a limited time for the exit code."""
        self.wait(None)

    def _reap_once(self) -> None:
        if self.returncode is None:
            self._reap()

    def _signal_once(self, signum: int) -> None:
        if self.returncode is None:
            self._signal(signum)

    def _reap(self) -> None:
        """Set `returncode` if the process has ended. Called under the lock."""
        raise NotImplementedError

    def _wait_for_end(self, timeout: float | None) -> bool:
        """Wait until `_reap` has something to do (True), or for this time, at most a day (False)."""
        raise NotImplementedError

    def _signal(self, signum: int) -> None:
        """Send a signal. Called under the lock, before the process has been reaped."""
        raise NotImplementedError


class _OwnChild(_ExactWaiting, LaunchOfOwn):
    """For fork and spawn: the process is a child of this process."""

    def __init__(self, child: BaseProcess) -> None:
        # `os.wait4` needs a class from this module, and imports it the first time. That would be the only
        # Python code in that call, during which a signal handler could run.
        importlib.import_module("resource")
        self._ended: deque[tuple[int, int, Any]] = deque()
        self._close_descriptor: util.Finalize | None = None
        super().__init__(child)

    @override
    def _launched(self) -> None:
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:
                return  # an old kernel, a sandbox, out of descriptors: the sentinel of multiprocessing stays
            self._close_descriptor = util.Finalize(self, os.close, (descriptor,))
            self.sentinel = descriptor

    def _reap(self) -> None:
        if sys.platform == "win32":
            return  # this class is not used on Windows
        try:
            # Results that begin with the pid 0, which mean that the process is still running, are dropped.
            self._ended.extend(filter(_FIRST, map(os.wait4, (self.pid,), (os.WNOHANG,))))
        except ChildProcessError:
            if not self._ended:
                # It has ended, but the exit code is lost.
                self.code_lost_because = (
                    "the program ignores SIGCHLD, or something else in it has waited for the process "
                    "(os.wait, os.waitpid)"
                )
                self.returncode = _CODE_LOST
                return
        if self._ended:
            _, status, usage = self._ended[0]
            self.peak_rss_bytes = self._peak(usage.ru_maxrss)
            # Last, because once this is set, the other attributes are expected to be set, too.
            self.returncode = os.waitstatus_to_exitcode(status)

    def _peak(self, maxrss: int) -> int | None:
        if self.method == "spawn" and sys.platform != "win32":
            import resource  # noqa: PLC0415  POSIX only

            # Between fork and exec a spawned child shares our memory, which Linux counts as the child's. So a
            # peak that is not above our own says nothing.
            if maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
                return None
        return maxrss * (1 if sys.platform == "darwin" else 1024)

    @override
    def _kill_at_once(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, KILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _wait_for_end(self, timeout: float | None) -> bool:
        if self._close_descriptor is not None:
            return wait_readable(self.sentinel, timeout)
        if self.identity is None:
            return True
        return self.identity not in exits.wait_gone([self.identity], timeout)

    def _signal(self, signum: int) -> None:
        # It has not been reaped, and no other thread is reaping it now, so the pid is still its own. (A
        # signal handler in this thread may reap it just before the next call, but systems do not reuse a pid
        # so soon.)
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return  # other code has reaped it: see `_reap`

    @override
    def close(self) -> None:
        if self._close_descriptor is not None:
            self._close_descriptor()
        super().close()


class _ChildOfServer(_ExactWaiting, LaunchByServer):
    """For forkserver: the process is a child of the server, which tells its pid and later its exit code."""

    _server_died = False

    def __init__(self, child: BaseProcess) -> None:
        self._told: deque[bytes] = deque()
        self._end: int | None = None
        self._close_end: util.Finalize | None = None
        super().__init__(child)

    def end_descriptor(self) -> int:
        """A descriptor that is readable once the process has ended.

        It is the pipe only if there is no other: that is also readable when the server has died.
        """
        if self._end is None and self.returncode is None and self._owner == os.getpid():
            # Deferred, so that no interrupt comes between opening the descriptor and storing it.
            with deferred_interrupts():
                self._guard.run(self._open_end)
        return self.sentinel if self._end is None else self._end

    def _open_end(self) -> None:
        if self._end is not None or not hasattr(os, "pidfd_open"):
            return
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return  # it has ended; or an old kernel, a sandbox, out of descriptors: then the pipe is used
        if self._pid_is_its_own() or (self._identity is not None and identity.is_alive(self._identity)):
            self._close_end = util.Finalize(self, os.close, (descriptor,))
            self._end = descriptor
        else:
            os.close(descriptor)

    def _reap(self) -> None:
        if not self._told and not self._server_died:
            if not wait_readable(self.sentinel, 0):
                if self._end is None or not wait_readable(self._end, 0):
                    return
                # The process has ended, and a caller that has waited for this must not see it running. The
                # server tells the exit code at once, unless it is stopped.
                if not wait_readable(self.sentinel, _TOLD_WITHIN_SECONDS):
                    self._lose_code()
                    return
            with contextlib.suppress(OSError):
                # Eight bytes that were written at once are also read at once. If there are none, the server
                # has died, or a signal handler has just read them.
                self._told.extend(filter(None, map(os.read, (self.sentinel,), (_EXIT_CODE.size,))))
            self._server_died = not self._told
        if self._told:
            self.returncode = _EXIT_CODE.unpack(self._told[0])[0]
        elif self._server_died and (self._identity is None or not identity.is_alive(self._identity)):
            self.code_lost_because = "the fork server of multiprocessing, which waits for it, has died"
            self.returncode = _CODE_LOST

    @override
    def wait_for_end_and_code(self) -> None:
        while self.wait(_TOLD_WITHIN_SECONDS) is None and self._owner == os.getpid():
            process = self.identity
            if process is not None and not identity.is_alive(process):
                self._guard.run(self._lose_code)

    def _lose_code(self) -> None:
        if self.returncode is None:
            self.code_lost_because = (
                "the fork server of multiprocessing, which waits for it, has not told; it may be stopped"
            )
            self.returncode = _CODE_LOST

    @override
    def _kill_at_once(self) -> None:
        # (The server reaps it.)
        self._signal(KILL)

    @override
    def close(self) -> None:
        if self._close_end is not None:
            self._close_end()
        super().close()

    def _wait_for_end(self, timeout: float | None) -> bool:
        if self._server_died and self._identity is not None:
            return self._identity not in exits.wait_gone([self._identity], timeout)
        return wait_readable(self.sentinel, timeout)

    @override
    def _pid_is_its_own(self) -> bool:
        # As soon as the server has reaped it, it writes to the pipe.
        return not wait_readable(self.sentinel, 0)

    def _signal(self, signum: int) -> None:
        if self.identity is not None:
            signalling.send_signal(self.identity, signum)
        elif self._pid_is_its_own():
            # It could not be identified so far; this is less safe, but better than no signal at all.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


@functools.cache
def popen_class(start_method: str) -> type[Any]:
    """The Popen class of multiprocessing for a start method, with the classes above mixed in."""
    if sys.platform == "win32":
        from multiprocessing import popen_spawn_win32  # noqa: PLC0415

        return popen_spawn_win32.Popen
    if start_method == "fork":
        from multiprocessing import popen_fork  # noqa: PLC0415

        return type("Popen", (_OwnChild, popen_fork.Popen), {})
    if start_method == "spawn":
        from multiprocessing import popen_spawn_posix  # noqa: PLC0415

        return type("Popen", (_OwnChild, Spawning, popen_spawn_posix.Popen), {})
    from multiprocessing import popen_forkserver  # noqa: PLC0415

    return type("Popen", (_ChildOfServer, popen_forkserver.Popen), {})
