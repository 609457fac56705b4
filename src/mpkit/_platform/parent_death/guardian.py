"""The guardian: a small separate process that kills the children of processes that have died.

Why this is a separate process: a child cannot watch its parent itself while it is stopped, or inside C code
that never releases the interpreter lock; and a thread in every child would make each later fork there unsafe.
The kernel's parent-death signal is tied to the thread that started the child, does not cover grandchildren,
and under forkserver watches the wrong process.

There is one guardian for an application, however many processes that has. `parent_watch` starts it together
with the first process that has to die with its parent, and passes it one end of a socket pair. All processes
of the application have the other end, and write lines:

- ``W <parent pid> <parent start> <child pid> <child start>``: when the parent dies, kill the child and its
  descendants. (The "child" may also be any process that the "parent" has told to end: see
  `parent_watch.take_along`.)
- ``F <pid> <start>``: this process is *free*: it is spared, together with its descendants, when a family is
  killed.

The guardian ends by itself when all processes of the application have ended and everything that it had to
kill is dead. It keeps nothing of the application open: no terminal, no standard stream, no working directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, Protocol

from mpkit._platform.processes import families
from mpkit._platform.processes.exits import ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity

#: Signals that are meant for the application if they are sent to a whole process group, or to all processes
#: with the program's name. (By name, because not every system has all of them.)
IGNORED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2")

#: How many bytes to read, for all lines that are there. This is more than the socket buffer holds (on Linux
#: 212,992 bytes, unless the administrator has set net.core.wmem_default).
_ALL_LINES: Final = 1 << 18

#: The largest limit of descriptors that macOS accepts (sys/syslimits.h).
_OPEN_MAX: Final = 10_240


class Watcher(Protocol):
    """What the guardian needs of an `ExitWatcher`."""

    def add(self, process: ProcessIdentity) -> bool:
        """Watch a process; False if it has ended already.

        The end of a process that was being watched already is reported even if this call has noticed it,
        because other pairs may refer to that process.
        """
        ...


class Guardian:
    """Keeps the pairs of parent and child, and decides who is killed.

    (It knows nothing of sockets, and tests replace the watcher and the killing.)

    Args:
        watcher: Notices the end of processes.
        kill: Kills families: called with their roots, and with the processes to spare.
    """

    def __init__(self, watcher: Watcher, kill: Callable[..., object] = families.kill_families) -> None:
        self._watcher = watcher
        self._kill = kill
        self._children: dict[ProcessIdentity, set[ProcessIdentity]] = {}
        self._parents: dict[ProcessIdentity, ProcessIdentity] = {}
        self._free: set[ProcessIdentity] = set()
        #: Parents that had already ended when a child of theirs was registered.
        self._found_ended: set[ProcessIdentity] = set()

    @property
    def idle(self) -> bool:
        """Whether there are no pairs."""
        return not self._parents

    @property
    def is_in_a_hurry(self) -> bool:
        """Whether `take_found_ended` has something to return."""
        return bool(self._found_ended)

    def take_found_ended(self) -> set[ProcessIdentity]:
        """Parents that had already ended when a line about them was obeyed: an argument for `ended`.

        To be called before the next lines are read and obeyed, because these may say that a process is to be
        spared.
        """
        found, self._found_ended = self._found_ended, set()
        return found

    def obey(self, line: bytes) -> None:
        """Take note of one line. An invalid line is ignored, because a guardian must not crash."""
        try:
            kind, numbers = line[:1], [int(number) for number in line[1:].split()]
        except ValueError:
            return
        if kind == b"W" and len(numbers) == 4:
            self._watch(ProcessIdentity(*numbers[:2]), ProcessIdentity(*numbers[2:]))
        elif kind == b"F" and len(numbers) == 2:
            process = ProcessIdentity(*numbers)
            if self._watcher.add(process):
                self._free.add(process)

    def ended(self, processes: set[ProcessIdentity]) -> None:
        """These processes have ended: kill their children, and forget all of them.

        Only this kills. It must be called after all lines have been obeyed that were there when the end was
        seen.
        """
        doomed = set[ProcessIdentity]()
        for process in processes:
            self._free.discard(process)
            doomed |= self._children.pop(process, set())
            self._forget_child(process)
        for child in doomed:
            self._forget_child(child)
        # Processes whose registered parent is among the doomed are killed when the end of that is seen.
        if doomed:
            self._kill(doomed, spared=self._free)

    def _watch(self, parent: ProcessIdentity, child: ProcessIdentity) -> None:
        # Both parent and child send this line. The second one comes while both are starting up and need the
        # processors, so it must cost little: processes that are noted are watched already.
        if self._parents.get(child) != parent and not self._watcher.add(child):
            return
        if parent not in self._children and not self._watcher.add(parent):
            self._found_ended.add(parent)
        # A free process that has been told to end is no longer spared.
        self._free.discard(child)
        self._parents[child] = parent
        self._children.setdefault(parent, set()).add(child)

    def _forget_child(self, child: ProcessIdentity) -> None:
        parent = self._parents.pop(child, None)
        if parent is not None and parent in self._children:
            self._children[parent].discard(child)
            if not self._children[parent]:
                del self._children[parent]


def main(descriptor: int) -> None:
    """Serve until every process of the application has ended.

    Args:
        descriptor: The guardian's end of the socket pair.
    """
    if sys.platform == "win32":
        return  # there are no guardians on Windows
    import resource  # noqa: PLC0415  POSIX only, as all of this function is

    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The process that started the guardian has blocked these signals, so that none comes before it is
    # ignored.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    _let_go_of_standard_streams()
    # Each watched process takes a descriptor. (macOS reports that there is no limit, but accepts none above
    # OPEN_MAX.)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (most, _OPEN_MAX):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            break
    watcher = ExitWatcher()
    guardian = Guardian(watcher)
    rest, connected = b"", True
    while connected or not guardian.idle:
        ended, readable = watcher.wait(
            0.0 if guardian.is_in_a_hurry else None, also=descriptor if connected else None
        )
        ended |= guardian.take_found_ended()
        if readable:
            data = os.read(descriptor, _ALL_LINES)
            connected = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                guardian.obey(line)
        # After the lines, which tell of children that a dying parent started at the last moment, and of
        # processes to be spared.
        guardian.ended(ended)


def _let_go_of_standard_streams() -> None:
    """Redirect the standard streams: a reader of the application's output must not wait for our end."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
