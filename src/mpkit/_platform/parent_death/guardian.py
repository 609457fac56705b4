"""The guardian: a small process of its own that ends the children of a process that has died.

Why a process, and not the child itself: a child that is inside C code which never lets go of the interpreter
lock cannot look after itself, one that is stopped cannot either, and a thread in every child would make each
later fork there unsafe. The kernel's parent-death signal is tied to the thread that started the child, knows
nothing of grandchildren, and under forkserver watches the wrong process.

One guardian serves one application, whatever the number of its processes. `parent_watch` starts it when the
first process is started that is to die with its parent, and passes it one end of a socket pair. Every process
of the application has the other end and writes lines:

- ``W <parent pid> <parent start> <child pid> <child start>``: when the parent dies, kill the child and its
  descendants. (Child is also what it has told to end, see `parent_watch.take_along`, whoever started that);
- ``F <pid> <start>``: this one is free; it is spared together with its descendants when a family is killed.

It ends by itself once every process of the application has, and everything it was to kill is dead. It holds
on to nothing of the application: no terminal, no standard stream, no working directory.
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

__all__ = ["IGNORED", "Guardian", "main"]

#: Sent to a whole group, or by a "kill" of the program's name, they mean the application, which we outlive.
#: (By name: not every system has them.)
IGNORED: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2")

#: The most descriptors of a process that macOS lets anybody ask for (sys/syslimits.h).
_OPEN_MAX: Final = 10_240


class Watcher(Protocol):
    """What the guardian needs of an `ExitWatcher`."""

    def add(self, process: ProcessIdentity) -> bool:
        """Watch a process; False when it has ended already.

        The end of one that is watched is reported all the same: others may have been registered with it.
        """
        ...


class Guardian:
    """Who is to die with whom. Knows nothing of sockets; a test can replace the watcher and the killing.

    Args:
        watcher: What tells that a process has ended.
        kill: What ends families: called with their roots and with the processes to spare.
    """

    def __init__(self, watcher: Watcher, kill: Callable[..., object] = families.kill_families) -> None:
        self._watcher = watcher
        self._kill = kill
        self._children: dict[ProcessIdentity, set[ProcessIdentity]] = {}
        self._parents: dict[ProcessIdentity, ProcessIdentity] = {}
        self._free: set[ProcessIdentity] = set()
        #: Parents that had ended when a child of theirs was registered.
        self._found_ended: set[ProcessIdentity] = set()

    @property
    def idle(self) -> bool:
        """Whether there is nobody left to kill."""
        return not self._parents

    @property
    def is_in_a_hurry(self) -> bool:
        """Whether `take_found_ended` has something to return."""
        return bool(self._found_ended)

    def take_found_ended(self) -> set[ProcessIdentity]:
        """Those that were found to have ended when a line was obeyed, for `ended`.

        To be called before the next lines are read: these may say that somebody is to be spared.
        """
        found, self._found_ended = self._found_ended, set()
        return found

    def obey(self, line: bytes) -> None:
        """Take note of one line. What is not understood is passed over: a guardian must not fall."""
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
        """These processes have ended: kill their children, and forget them.

        Nobody is killed before this. It is called after all lines have been read and obeyed that were there
        when the end was seen.
        """
        doomed = set[ProcessIdentity]()
        for process in processes:
            self._free.discard(process)
            doomed |= self._children.pop(process, set())
            self._forget_child(process)
        for child in doomed:
            self._forget_child(child)
        # Children of the doomed that were registered with us die when their parents are seen to have ended.
        if doomed:
            self._kill(doomed, spared=self._free)

    def _watch(self, parent: ProcessIdentity, child: ProcessIdentity) -> None:
        # Both of them say it, and the second one wakes us at a moment when the processors are needed: nothing
        # is examined twice. Who is noted is watched.
        if self._parents.get(child) != parent and not self._watcher.add(child):
            return
        if parent not in self._children and not self._watcher.add(parent):
            self._found_ended.add(parent)
        # An orphan that has been told to end is none any more.
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
        descriptor: Our end of the socket pair.
    """
    if sys.platform == "win32":
        return  # nobody starts one there
    import resource  # noqa: PLC0415  POSIX only, as all of this function is

    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # They were blocked by the one who started us, lest one come before it is ignored.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    _let_go_of_standard_streams()
    # One descriptor per process that is watched. macOS says that there is no limit, and takes none above
    # OPEN_MAX.
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
            # All that there is: the system holds no more than some hundred lines.
            data = os.read(descriptor, 65536)
            connected = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                guardian.obey(line)
        # After the lines: who was started in the last moment of a dying parent is known by now, and who is to
        # be spared.
        guardian.ended(ended)


def _let_go_of_standard_streams() -> None:
    """Whoever reads the application's output to its end must not have to wait for us as well."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
