"""When what dead workers have left in shared memory is removed: once what descends from them has ended, too.

A task may have had a pool of its own. Its workers die with the worker that ran the task, a moment later, and
until then may have open what the task had made, and make names themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.pool._engine.programs import Programs


class Remains:
    """Of the workers of one pool. In the supervisor's thread.

    Args:
        programs: Knows which processes are still to end.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._waiting: list[tuple[ProcessIdentity, bytes, list[ProcessIdentity]]] = []

    def add(self, worker: ProcessIdentity, notes: bytes, told: Iterable[ProcessIdentity]) -> None:
        """A worker is dead.

        Args:
            worker: It.
            notes: What it has noted.
            told: Those of its descendants that have been told to end.
        """
        self._waiting.append((worker, notes, list(told)))

    def look_after(self) -> None:
        """Remove what can be removed by now."""
        if not self._waiting:
            return
        from mpkit._shm.locks import remains  # noqa: PLC0415  most pools never need it

        for entry in list(self._waiting):
            worker, notes, known = entry
            if any(process in self._programs for process in known):
                continue
            # The guardian kills them; until then they may have started others. Each is waited for once.
            family = remains.family_of(worker, notes)
            more = [member for member in remains.living(family) if member not in known]
            known += more
            self._programs.follow(more)
            if not any(process in self._programs for process in more):
                # Who lived, and has ended meanwhile, may have noted, made or started more.
                remains.remove(remains.family_of(worker, notes) if more else family)
                self._waiting.remove(entry)
