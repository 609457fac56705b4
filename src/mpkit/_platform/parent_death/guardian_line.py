"""The line to the guardian: how a process tells it who dies with whom, and whether anybody listens.

Each process of an application has one, that of `parent_watch`; the lines are those of `guardian`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from mpkit._platform.files.descriptors import file_behind, is_still
from mpkit._platform.parent_death import guardian_process
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.passing import PassedDescriptor, PlainSocket, pass_descriptor, python_executable
from mpkit._platform.threads.interruptible_lock import InterruptibleLock

__all__ = ["GuardianLine"]

_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


class GuardianLine:
    """This process's end of the line to the guardian of its application."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        #: What the descriptor was, as of `file_behind`.
        self._socket = (0, 0)
        self.guardian_pid: int | None = None
        self._lock = InterruptibleLock()

    def after_fork(self) -> None:
        # The line is shared with the parent; the guardian is not our child, and the lock may have been held.
        self.guardian_pid = None
        self._lock = InterruptibleLock()

    def ensure_guardian(self) -> None:
        """Start a guardian unless one is listening. Does nothing where there can be none."""
        executable = python_executable()
        if executable is None or not guardian_process.IS_POSSIBLE:
            return
        if self._lock.is_owned():
            # This thread is just starting one, and a signal handler or a `__del__` has come in between, which
            # starts a process. It cannot wait for itself: that process watches from a thread of its own.
            return
        # A guardian whose pid did not arrive here would never be reaped.
        with deferred_interrupts():
            self._lock.run(self._start_unless_heard, executable)

    def _start_unless_heard(self, executable: str) -> None:
        if sys.platform == "win32" or self._is_heard():
            return
        ours, pid = guardian_process.start(executable)
        gone, self.guardian_pid = self.guardian_pid, pid
        if gone is not None:
            # Somebody who waits for any child may have reaped it.
            with suppress(ChildProcessError):
                os.waitpid(gone, os.WNOHANG)
        self.adopt(ours.detach())

    def send(self, line: bytes) -> bool:
        """Write one line, or some; False when nobody is listening. Never waits."""
        # It is a single write, far below what the kernel would split. No SIGPIPE: the application may
        # have restored its default.
        try:
            return self._on_the_line(lambda line_socket: line_socket.send(line + b"\n", _AT_ONCE)) is not None
        except OSError:
            # The guardian is gone, or has been stopped for so long that the buffer is full: it cannot be
            # relied upon.
            return False

    def _is_heard(self) -> bool:
        """Whether the guardian lives; without waking it up."""
        try:
            # It never writes: there is something to read once it has closed its end.
            self._on_the_line(lambda line_socket: line_socket.recv(1, _AT_ONCE))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _on_the_line(self, use: Callable[[PlainSocket], object]) -> object | None:
        """Do this with the line, and return what it returns; None if there is no line."""
        descriptor = self._descriptor
        if sys.platform == "win32" or descriptor is None or not self._is_ours(descriptor):
            return None
        # Interrupted before it has let go of the line, the socket would close it.
        with deferred_interrupts():
            line_socket = PlainSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
            try:
                # With the time limit that a program sets for its own sockets (`socket.setdefaulttimeout`)
                # each call would wait that long, whatever its flags say, and the guardian count as gone.
                line_socket.settimeout(None)
                return use(line_socket)
            finally:
                line_socket.detach()

    def for_child(self) -> PassedDescriptor | None:
        """What to send to a child that is being started by spawn or forkserver."""
        descriptor = self._descriptor
        if descriptor is None or not self._is_ours(descriptor):
            return None
        return pass_descriptor(descriptor)

    def adopt(self, descriptor: int) -> None:
        """Use this end from now on."""
        if (
            self._descriptor is not None
            and self._descriptor != descriptor
            and self._is_ours(self._descriptor)
        ):
            os.close(self._descriptor)
        os.set_inheritable(descriptor, False)
        self._descriptor, self._socket = descriptor, file_behind(descriptor)

    def _is_ours(self, descriptor: int) -> bool:
        return is_still(descriptor, self._socket)
