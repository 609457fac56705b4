"""When what dead workers have left in shared memory is removed: once what descends from them has ended, too.

A task may have had a pool of its own. Its workers die with the worker that ran the task, a moment later, and
until then may have open what the task had made, and make names themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpkit._platform.identity import ProcessIdentity
from mpkit._shm import remains
from mpkit.pool._programs import Programs


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
        family = [member for member, _ in remains.family_of(worker)]
        # The guardian kills them.
        self._programs.follow(family)
        self._waiting.append((worker, notes, [*told, *family]))

    def look_after(self) -> None:
        """Remove what can be removed by now."""
        for entry in list(self._waiting):
            worker, notes, family = entry
            if not any(process in self._programs for process in family):
                remains.remove(worker, notes)
                self._waiting.remove(entry)
