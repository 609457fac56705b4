"""Makes a child die with its parent, however the parent dies, and whatever the child is doing at that moment.

It is used for `WorkerProcess` and for the workers of a pool::

    link = ParentLink.create()              # in the parent, before the child is started
    process = context.Process(target=main, args=(link, ...))   # the link is sent to the child
    process.start()
    link.started(identity.of(process.pid))  # in the parent, right after

    def main(link, ...):                    # in the child, before anything else
        link.die_with_parent()

From then on the child and all its descendants are killed (SIGKILL) as soon as the parent has ended: at its
normal exit (after multiprocessing has joined its children), after an `os._exit`, a crash or a SIGKILL. It
does not matter whether the child is idle, busy, stopped or inside C code that holds the interpreter lock,
which thread started it, or by which start method.

A small separate process does this, the `guardian`. Where there is none (on Windows, in a frozen executable,
or if it was killed), a thread in the child does it instead, for which it needs the interpreter lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mpkit._platform.hints import override
from mpkit._platform.parent_death.guardian_line import GuardianLine
from mpkit._platform.processes import families, identity
from mpkit._platform.processes.exits import ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib.passing import PassedDescriptor
from mpkit._platform.threads.forks import in_forked_children

# This many lines in one write are far shorter than what the kernel would split.
_LINES_AT_ONCE = 20


class ParentLink:
    """What a child needs to die with its parent.

    `create` makes one just before a child is started. Several children that are started together may share
    one. It can be pickled only while a child is being started.
    """

    __slots__ = ("_orphan", "_parent")

    def __init__(self, parent: ProcessIdentity, *, orphan: bool) -> None:
        self._parent = parent
        self._orphan = orphan

    @classmethod
    def create(cls, *, orphan: bool = False) -> ParentLink:
        """In the parent: create a link to this process, for a child that is about to be started.

        Args:
            orphan: Whether the child is to live on when its parent dies.

        Raises:
            OSError: If the system has no process or descriptor left, for a guardian.
        """
        if not orphan:
            _line.ensure_guardian()
        return cls(identity.current(), orphan=orphan)

    def started(self, child: ProcessIdentity | None) -> None:
        """In the parent, right after the start: register the child, which may still be starting up.

        This is also needed after a fork: hooks of other code (`os.register_at_fork`) run before
        `die_with_parent`, and may hang.
        """
        if child is not None:
            self._register(child)

    def die_with_parent(self) -> None:
        """In the child, before anything else: die with the parent from now on, unless it is an orphan."""
        if not self._register(identity.current()) and not self._orphan:
            threading.Thread(
                target=_die_after, args=(self._parent,), name="mpkit-parent-watch", daemon=True
            ).start()

    def is_parent_alive(self) -> bool:
        """Whether the parent has not ended yet."""
        return identity.is_alive(self._parent)

    def _register(self, child: ProcessIdentity) -> bool:
        if self._orphan:
            return _line.send(b"F %d %d" % child)
        return _line.send(b"W %d %d %d %d" % (*self._parent, *child))

    @override
    def __reduce__(self) -> tuple[Callable[..., ParentLink], tuple[Any, ...]]:
        return _arrive, (self._parent, self._orphan, _line.for_child())


def take_along(processes: Sequence[ProcessIdentity]) -> None:
    """Make processes and their descendants die with this process, whatever their parents are. Never blocks.

    For processes that are being ended, because their own parents may end before they do.
    """
    me = identity.current()
    for k in range(0, len(processes), _LINES_AT_ONCE):
        some = processes[k : k + _LINES_AT_ONCE]
        _line.send(b"\n".join(b"W %d %d %d %d" % (*me, *process) for process in some))


def signal_to_end(roots: Iterable[ProcessIdentity], signum: int, *, since: int = 0) -> list[ProcessIdentity]:
    """Call `families.signal_families` for families that have to end.

    Members that survive the signal die with this process at the latest, even if their own parents have ended.
    """
    return families.signal_families(roots, signum, since=since, announce=take_along)


def _arrive(parent: ProcessIdentity, orphan: bool, passed: PassedDescriptor | None) -> ParentLink:
    if passed is not None:
        _line.adopt(passed.detach())
    return ParentLink(parent, orphan=orphan)


def guardian_pid() -> int | None:
    """The pid of the guardian, if this process has started it."""
    return _line.guardian_pid


_line = GuardianLine()
in_forked_children(_line.after_fork)


def _die_after(parent: ProcessIdentity) -> None:
    watcher = ExitWatcher()
    if watcher.add(parent):
        watcher.wait(None)
    families.kill_families([identity.current()])
