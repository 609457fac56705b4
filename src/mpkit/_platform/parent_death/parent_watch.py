"""How a child dies with its parent, however the parent dies, whatever the child is doing at that moment.

For `WorkerProcess` and for the workers of a pool alike::

    link = ParentLink.create()              # in the parent, before the child is started
    process = context.Process(target=main, args=(link, ...))   # the link travels to the child
    process.start()
    link.started(identity.of(process.pid))  # in the parent, right after

    def main(link, ...):                    # in the child, before anything else
        link.die_with_parent()

From then on the child, its own descendants and theirs are killed (SIGKILL) as soon as the parent has ended:
at its normal exit (after multiprocessing has joined its children), after an `os._exit`, a crash, a SIGKILL.
It does not matter whether the child is idle, busy, stopped or inside C code that holds the interpreter lock,
nor which thread started it, nor by which start method.

A small process of its own, the `guardian`, does it. Where there can be none (Windows, a frozen executable, a
guardian that somebody has killed) a thread in the child does; it needs the interpreter lock.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any

from mpkit._platform.files.descriptors import file_behind, is_still
from mpkit._platform.hints import override
from mpkit._platform.parent_death import guardian
from mpkit._platform.processes import families, identity
from mpkit._platform.processes.exits import ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.forks import in_forked_children

__all__ = ["ParentLink", "guardian_pid", "signal_to_end", "take_along"]

# So many lines in one write stay far below what the kernel would split.
_LINES_AT_ONCE = 20


class ParentLink:
    """What a child needs to die with its parent. Make one per child with `create`.

    Can be pickled while a child is being started, and only then.
    """

    __slots__ = ("_orphan", "_parent")

    def __init__(self, parent: ProcessIdentity, *, orphan: bool) -> None:
        self._parent = parent
        self._orphan = orphan

    @classmethod
    def create(cls, *, orphan: bool = False) -> ParentLink:
        """The link to this process, for one child that is about to be started.

        Args:
            orphan: The child is to live on when its parent dies.
        """
        if not orphan:
            _line.ensure_guardian()
        return cls(identity.current(), orphan=orphan)

    def started(self, child: ProcessIdentity | None) -> None:
        """In the parent, right after the start: guards the child while it is still coming up.

        After a fork, too: what others have registered for it (`os.register_at_fork`) comes before
        `die_with_parent`, and may hang.
        """
        if child is not None:
            self._register(child)

    def die_with_parent(self) -> None:
        """In the child, before anything else: from here on it dies with its parent, orphans excepted."""
        if not self._register(identity.current()) and not self._orphan:
            _watch_from_a_thread(self._parent)

    def is_parent_alive(self) -> bool:
        """Whether that has not ended."""
        return identity.is_alive(self._parent)

    def _register(self, child: ProcessIdentity) -> bool:
        if self._orphan:
            return _line.send(b"F %d %d" % child)
        return _line.send(b"W %d %d %d %d" % (*self._parent, *child))

    @override
    def __reduce__(self) -> tuple[Callable[..., ParentLink], tuple[Any, ...]]:
        return _arrive, (self._parent, self._orphan, _line.for_child())


def take_along(processes: Sequence[ProcessIdentity]) -> None:
    """Have these die with this process, whoever their parents are; each with its descendants.

    For what is being ended, and may lose its parent before it ends itself. Never waits.
    """
    me = identity.current()
    for k in range(0, len(processes), _LINES_AT_ONCE):
        some = processes[k : k + _LINES_AT_ONCE]
        _line.send(b"\n".join(b"W %d %d %d %d" % (*me, *process) for process in some))


def signal_to_end(roots: Iterable[ProcessIdentity], signum: int, *, since: int = 0) -> list[ProcessIdentity]:
    """As `families.signal_families`, for families that have to end.

    Who outlives the signal dies with this process, also when its parent has not outlived it.
    """
    return families.signal_families(roots, signum, since=since, announce=take_along)


def _arrive(parent: ProcessIdentity, orphan: bool, passed: seam.PassedDescriptor | None) -> ParentLink:
    if passed is not None:
        _line.adopt(passed.detach())
    return ParentLink(parent, orphan=orphan)


def guardian_pid() -> int | None:
    """The pid of the guardian that this very process has started, if it has."""
    return _line.guardian_pid


class _Line:
    """This process's end of the line to the guardian of its application."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        #: What the descriptor was, as of `file_behind`.
        self._socket = (0, 0)
        self.guardian_pid: int | None = None
        self._lock = seam.InterruptibleLock()

    def after_fork(self) -> None:
        # The line is shared with the parent; the guardian is not our child, and the lock may have been held.
        self.guardian_pid = None
        self._lock = seam.InterruptibleLock()

    def ensure_guardian(self) -> None:
        """Start a guardian unless one is listening. Does nothing where there can be none."""
        executable = seam.python_executable()
        if executable is None or not _GUARDIAN_POSSIBLE:
            return
        if self._lock.is_owned():
            # This thread is just starting one, and a signal handler or a `__del__` has come in between, which
            # starts a process. It cannot wait for itself: that process watches from a thread of its own.
            return
        # A guardian whose pid did not arrive here would never be reaped.
        with deferred_interrupts():
            self._lock.run(self._start_unless_heard, executable)

    def _start_unless_heard(self, executable: str) -> None:
        if not self._is_heard():
            self._start(executable)

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

    def _on_the_line(self, use: Callable[[seam.PlainSocket], object]) -> object | None:
        """Do this with the line, and return what it returns; None if there is no line."""
        descriptor = self._descriptor
        if sys.platform == "win32" or descriptor is None or not self._is_ours(descriptor):
            return None
        # Interrupted before it has let go of the line, the socket would close it.
        with deferred_interrupts():
            line_socket = seam.PlainSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptor)
            try:
                # With the time limit that a program sets for its own sockets (`socket.setdefaulttimeout`)
                # each call would wait that long, whatever its flags say, and the guardian count as gone.
                line_socket.settimeout(None)
                return use(line_socket)
            finally:
                line_socket.detach()

    def for_child(self) -> seam.PassedDescriptor | None:
        """What to send to a child that is being started by spawn or forkserver."""
        descriptor = self._descriptor
        if descriptor is None or not self._is_ours(descriptor):
            return None
        return seam.pass_descriptor(descriptor)

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

    def _start(self, executable: str) -> None:
        if sys.platform == "win32":
            return
        ours, theirs = seam.plain_socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with closing(theirs):
            for end in (ours, theirs):
                # Where the program has set a time limit for its own sockets, these would not block; the
                # guardian, which inherits one, is to read from a plain one.
                end.settimeout(None)
            if sys.platform == "darwin":
                # There no flag of a call keeps SIGPIPE away.
                ours.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_NOSIGPIPE", 0x1022), 1)
            # Isolated, and without `site` where psutil is not needed (its start takes longer than all the
            # rest).
            options = ["-I", "-S"] if sys.platform == "linux" else ["-I"]
            # Not the file as a script: that would be compiled anew each time. Its name stands there for those
            # who look at the list of processes.
            arguments = [_GUARDIAN, str(theirs.fileno())]
            command = [executable, *options, "-c", _START_GUARDIAN, *arguments]
            # Blocked until the guardian ignores them.
            ignored = {getattr(signal, name) for name in guardian.IGNORED}
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
            try:
                pid = seam.spawn_passing(command, [theirs.fileno()])
            except BaseException:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        gone, self.guardian_pid = self.guardian_pid, pid
        if gone is not None:
            # Somebody who waits for any child may have reaped it.
            with suppress(ChildProcessError):
                os.waitpid(gone, os.WNOHANG)
        self.adopt(ours.detach())


_GUARDIAN = os.path.abspath(guardian.__file__)
_START_GUARDIAN = (
    # Isolated from the environment and without `site`, it has to be told where its package is.
    "import sys, os.path as p; sys.path.append(p.dirname(p.dirname(p.dirname(p.dirname(sys.argv[1]))))); "
    "from mpkit._platform.parent_death.guardian import main; main(int(sys.argv[2]))"
)
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
_GUARDIAN_POSSIBLE = os.name == "posix" and not getattr(sys, "frozen", False) and os.path.isfile(_GUARDIAN)

_line = _Line()
in_forked_children(_line.after_fork)


def _watch_from_a_thread(parent: ProcessIdentity) -> None:
    threading.Thread(target=_await_the_end_of, args=(parent,), name="mpkit-parent-watch", daemon=True).start()


def _await_the_end_of(parent: ProcessIdentity) -> None:
    watcher = ExitWatcher()
    if watcher.add(parent):
        watcher.wait(None)
    families.kill_families([identity.current()])
