"""How a child is waited for and signalled: what is mixed into the Popen classes of multiprocessing.

Those classes are private, and so is what they promise each other; `child_process` tells why they are used.
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
from mpkit._platform.stdlib.child_launch import LaunchByServer, LaunchOfOwn
from mpkit._platform.threads.deadlines import deadline_of, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.readiness import wait_readable

__all__ = ["popen_class"]

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.2

#: How long a fork server may take to tell the exit code of a process that has ended.
_TOLD_WITHIN_S = 5.0

_FIRST: Final = operator.itemgetter(0)

# As `multiprocessing.forkserver.write_signed` writes it. Its `read_signed` is Python code, between whose
# steps a signal handler may come.
_EXIT_CODE: Final = struct.Struct("q")

_CODE_LOST: Final = 255
"""The exit code of a process that has ended nobody knows how; multiprocessing uses the same."""


class _ExactWaiting:
    """Mixed into the Popen classes of multiprocessing (POSIX).

    All of this may be asked from a signal handler, which Python calls between any two steps of what the main
    thread is just doing, be it here. So a lock is never waited for by the thread that has it already, and
    what the system tells only once is taken and kept in one step: in a single call of C (`deque.extend` with
    a chain of C functions) no handler comes between.
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
        #: Why its exit code is not known, in place of which there is 255.
        self.code_lost_because: str | None = None
        super().__init__(child)  # type: ignore[call-arg]  # the other base class: starts it
        self._identity = identity.of(self.pid)

    @property
    def identity(self) -> ProcessIdentity | None:
        """Which process it is; None if it had ended before it could be looked at."""
        if self._identity is None and self.returncode is None and self._owner == os.getpid():
            # There was no descriptor to look with right after the start; perhaps there is one now.
            self._guard.run(self._identify)
        return self._identity

    def _identify(self) -> None:
        if self._identity is None and self.returncode is None:
            found = identity.of(self.pid)
            if self._pid_is_its_own():
                self._identity = found

    def _pid_is_its_own(self) -> bool:
        """Whether no other process can have its pid: nobody has waited for it yet."""
        return True

    def poll(self, flag: int = 1) -> int | None:
        # The flag is WNOHANG or 0, as of waitpid.
        if flag == 0:
            return self.wait(None)
        if self.returncode is None and self._owner == os.getpid():
            self._guard.run(self._reap_once)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        deadline = deadline_of(None if timeout is None else max(timeout, 0.0))
        pause = _FIRST_PAUSE_S
        while self.poll() is None and self._owner == os.getpid():
            left = remaining(deadline)
            ended = self._wait_for_end(left)
            if left == 0.0:
                return self.poll()
            if ended and self.poll() is None:
                # What it waits at is not there, or another file by now (the program has closed descriptors
                # that are not its own, or has none left): so it looks now and then.
                time.sleep(pause if left is None else min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        return self.returncode

    def _send_signal(self, signum: int) -> None:
        # The owner first: after a fork the lock may be held by a thread that is not here.
        if self._owner == os.getpid():
            # Not while another thread reaps it: from then on the pid can be anybody's.
            self._guard.run(self._signal_once, signum)

    def interrupt(self) -> None:
        self._send_signal(signal.SIGINT)

    def wait_for_end_and_code(self) -> None:
        """Wait for the end, and then for the exit code no longer than it may take to be told."""
        self.wait(None)

    def _reap_once(self) -> None:
        if self.returncode is None:
            self._reap()

    def _signal_once(self, signum: int) -> None:
        if self.returncode is None:
            self._signal(signum)

    def _reap(self) -> None:
        raise NotImplementedError

    def _wait_for_end(self, timeout: float | None) -> bool:
        """Wait until `_reap` has something to do; False when it has not, after this time or a day."""
        raise NotImplementedError

    def _signal(self, signum: int) -> None:
        raise NotImplementedError


class _OwnChild(_ExactWaiting, LaunchOfOwn):
    """For fork and spawn: the process is a child of ours."""

    def __init__(self, child: BaseProcess) -> None:
        # `os.wait4` looks for its result's class there, and the first time imports the module: the only step
        # of Python in it, and one at which a handler could come between.
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
            return  # no child is of this class there
        try:
            # A result that begins with pid 0 tells that it still runs.
            self._ended.extend(filter(_FIRST, map(os.wait4, (self.pid,), (os.WNOHANG,))))
        except ChildProcessError:
            if not self._ended:
                # It has ended; how, is lost.
                self.code_lost_because = (
                    "the program ignores SIGCHLD, or something else in it has waited for the process "
                    "(os.wait, os.waitpid)"
                )
                self.returncode = _CODE_LOST
                return
        if self._ended:
            _, status, usage = self._ended[0]
            self.peak_rss_bytes = self._peak(usage.ru_maxrss)
            # Last: whoever sees it looks no further.
            self.returncode = os.waitstatus_to_exitcode(status)

    def _peak(self, maxrss: int) -> int | None:
        if self.method == "spawn" and sys.platform != "win32":
            import resource  # noqa: PLC0415  POSIX only

            # Between fork and exec a spawned child shares our memory, and Linux counts that as its own.
            # So what is not above our own peak tells nothing.
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
        # Not reaped yet, and no other thread is reaping it now: the pid is still its own. A signal handler of
        # this thread may do so, between here and there; systems hand out a pid again late.
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return  # reaped by somebody else: see `_reap`

    @override
    def close(self) -> None:
        if self._close_descriptor is not None:
            self._close_descriptor()
        super().close()


class _ChildOfServer(_ExactWaiting, LaunchByServer):
    """For forkserver: the process is a child of the server, which tells us the pid and then the exit code."""

    _server_died = False

    def __init__(self, child: BaseProcess) -> None:
        self._told: deque[bytes] = deque()
        self._end: int | None = None
        self._close_end: util.Finalize | None = None
        super().__init__(child)

    def end_descriptor(self) -> int:
        """What is readable once the process has ended: not the pipe, which the death of the server ends."""
        if self._end is None and self.returncode is None and self._owner == os.getpid():
            # Between the system's answer and the note of it an interrupt would leave the descriptor open.
            with deferred_interrupts():
                self._guard.run(self._open_end)
        return self.sentinel if self._end is None else self._end

    def _open_end(self) -> None:
        if self._end is not None or not hasattr(os, "pidfd_open"):
            return
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return  # it has ended; or an old kernel, a sandbox, out of descriptors: the pipe has to do
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
                # Who has waited for the end is to find it ended. A server that is not stopped tells at once.
                if not wait_readable(self.sentinel, _TOLD_WITHIN_S):
                    self._lose_code()
                    return
            with contextlib.suppress(OSError):
                # Eight bytes that were written at once come at once. If nothing comes, the server has died;
                # or a signal handler has read them just before.
                self._told.extend(filter(None, map(os.read, (self.sentinel,), (_EXIT_CODE.size,))))
            self._server_died = not self._told
        if self._told:
            self.returncode = _EXIT_CODE.unpack(self._told[0])[0]
        elif self._server_died and (self._identity is None or not identity.is_alive(self._identity)):
            self.code_lost_because = "the fork server of multiprocessing, which waits for it, has died"
            self.returncode = _CODE_LOST

    @override
    def wait_for_end_and_code(self) -> None:
        while self.wait(_TOLD_WITHIN_S) is None and self._owner == os.getpid():
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
        # The server waits for it.
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
        # Once it has waited for it the server tells, at once.
        return not wait_readable(self.sentinel, 0)

    def _signal(self, signum: int) -> None:
        if self.identity is not None:
            signalling.send_signal(self.identity, signum)
        elif self._pid_is_its_own():
            # It could not be looked at so far: better so than not at all.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


@functools.cache
def popen_class(start_method: str) -> type[Any]:
    """What starts a child by this method, and waits for it."""
    if sys.platform == "win32":
        from multiprocessing import popen_spawn_win32  # noqa: PLC0415

        return popen_spawn_win32.Popen
    if start_method == "fork":
        from multiprocessing import popen_fork  # noqa: PLC0415

        return type("Popen", (_OwnChild, popen_fork.Popen), {})
    if start_method == "spawn":
        from multiprocessing import popen_spawn_posix  # noqa: PLC0415

        return type("Popen", (_OwnChild, popen_spawn_posix.Popen), {})
    from multiprocessing import popen_forkserver  # noqa: PLC0415

    return type("Popen", (_ChildOfServer, popen_forkserver.Popen), {})
