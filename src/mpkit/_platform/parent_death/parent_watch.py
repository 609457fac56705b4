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

__all__ = ["ParentLink", "guardian_pid", "signal_to_end", "take_along"]

# So many lines in one write stay far below what the kernel would split.
_LINES_AT_ONCE = 20


class ParentLink:
    """What a child needs to die with its parent. Make one with `create`, just before it is started; several
    that are started together may have the same.

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


def _arrive(parent: ProcessIdentity, orphan: bool, passed: PassedDescriptor | None) -> ParentLink:
    if passed is not None:
        _line.adopt(passed.detach())
    return ParentLink(parent, orphan=orphan)


def guardian_pid() -> int | None:
    """The pid of the guardian that this very process has started, if it has."""
    return _line.guardian_pid


_line = GuardianLine()
in_forked_children(_line.after_fork)


def _watch_from_a_thread(parent: ProcessIdentity) -> None:
    threading.Thread(target=_await_the_end_of, args=(parent,), name="mpkit-parent-watch", daemon=True).start()


def _await_the_end_of(parent: ProcessIdentity) -> None:
    watcher = ExitWatcher()
    if watcher.add(parent):
        watcher.wait(None)
    families.kill_families([identity.current()])
