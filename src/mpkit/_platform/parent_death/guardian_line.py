"""A process's connection to the guardian: it sends lines, and tells whether a guardian is listening.

Each process of an application has one, in `parent_watch`. The format of the lines is described in `guardian`.
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

_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)


class GuardianLine:
    """This process's connection to the guardian of its application.

    Attributes:
        guardian_pid: the pid of the guardian, if this process has started it.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        #: Which socket the descriptor refers to, as `file_behind` tells: the program may close the
        #: descriptor.
        self._socket = (0, 0)
        self.guardian_pid: int | None = None
        self._lock = InterruptibleLock()

    def after_fork(self) -> None:
        """In a forked child: the connection is shared with the parent, but the guardian is not our child."""
        # A thread of the parent may have held the lock.
        self.guardian_pid = None
        self._lock = InterruptibleLock()

    def ensure_guardian(self) -> None:
        """Start a guardian unless one is listening. Do nothing where there can be none.

        Raises:
            OSError: If the system has no process or descriptor left.
        """
        executable = python_executable()
        if executable is None or not guardian_process.IS_POSSIBLE:
            return
        if self._lock.is_owned():
            # A signal handler or a `__del__` starts a process while this thread is starting a guardian. It
            # cannot wait for itself, so that process will watch its parent from a thread.
            return
        # Deferred, because a guardian whose pid was lost to an interrupt would never be reaped.
        with deferred_interrupts():
            self._lock.run(self._start_unless_heard, executable)

    def _start_unless_heard(self, executable: str) -> None:
        if sys.platform == "win32" or self._is_heard():
            return
        ours, pid = guardian_process.start(executable)
        gone, self.guardian_pid = self.guardian_pid, pid
        if gone is not None:
            # Other code that waits for any child may have reaped it.
            with suppress(ChildProcessError):
                os.waitpid(gone, os.WNOHANG)
        self.adopt(ours.detach())

    def send(self, line: bytes) -> bool:
        """Write one line, or several with newlines in between. False if no guardian listens. Never blocks."""
        # It is a single write, far shorter than what the kernel would split. The flags suppress SIGPIPE, for
        # which the application may have restored the default.
        try:
            return self._on_the_line(lambda line_socket: line_socket.send(line + b"\n", _AT_ONCE)) is not None
        except OSError:
            # The guardian is gone, or has been stopped for so long that the buffer is full; in neither case
            # can it be relied upon.
            return False

    def _is_heard(self) -> bool:
        """Whether the guardian is alive; found out without waking it up."""
        try:
            # It never writes, so there is something to read (the end) only after it has closed its end.
            self._on_the_line(lambda line_socket: line_socket.recv(1, _AT_ONCE))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _on_the_line(self, use: Callable[[PlainSocket], object]) -> object | None:
        """Call `use` with the socket, and return its result; None if there is no connection."""
        descriptor = self._open_descriptor()
        if sys.platform == "win32" or descriptor is None:
            return None
        # Deferred: if an interrupt came before `detach`, the socket object would close the descriptor.
        with deferred_interrupts():
            line_socket = PlainSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
            try:
                # If the program has set a default timeout for its sockets (`socket.setdefaulttimeout`), each
                # call would wait that long in spite of its flags, and the guardian would count as gone.
                line_socket.settimeout(None)
                return use(line_socket)
            finally:
                line_socket.detach()

    def for_child(self) -> PassedDescriptor | None:
        """The descriptor, in a form that can be pickled for a child that is being started."""
        descriptor = self._open_descriptor()
        return None if descriptor is None else pass_descriptor(descriptor)

    def adopt(self, descriptor: int) -> None:
        """Use the socket with this descriptor from now on."""
        before = self._open_descriptor()
        if before is not None and before != descriptor:
            os.close(before)
        os.set_inheritable(descriptor, False)
        self._descriptor, self._socket = descriptor, file_behind(descriptor)

    def _open_descriptor(self) -> int | None:
        """The descriptor, if there is one and it still refers to our socket."""
        descriptor = self._descriptor
        return descriptor if descriptor is not None and is_still(descriptor, self._socket) else None
