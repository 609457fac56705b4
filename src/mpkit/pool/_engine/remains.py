"""Removes what dead workers have left in shared memory, once their descendants have ended, too.

A task may have created a pool of its own. The workers of that pool end a moment after the worker that ran the
task. Until then they may use what the task has created, and create names themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.pool._engine.programs import Programs


class Remains:
    """What the dead workers of one pool have left in shared memory (in the supervisor's thread).

    Args:
        programs: Knows which processes have been told to end and have not ended.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        # Dead workers whose names have not been removed: the worker, its notes,
        # its descendants that are known.
        self._waiting: list[tuple[ProcessIdentity, bytes, list[ProcessIdentity]]] = []

    def add(self, worker: ProcessIdentity, notes: bytes, told: Iterable[ProcessIdentity]) -> None:
        """Add a dead worker.

        Args:
            worker: The worker.
            notes: What it has noted about names and children (see `mpkit._shm.memory.trail`).
            told: Those of its descendants that have been told to end.
        """
        self._waiting.append((worker, notes, list(told)))

    def look_after(self) -> None:
        """Remove what dead workers have left whose descendants have all ended."""
        if not self._waiting:
            return
        from mpkit._shm.locks import remains  # noqa: PLC0415  most pools never need it

        for entry in list(self._waiting):
            worker, notes, known = entry
            if any(process in self._programs for process in known):
                continue
            # Further descendants, which the guardian kills; until then they may start
            # others. Each is waited for once.
            family = remains.family_of(worker, notes)
            more = [member for member in remains.living(family) if member not in known]
            known += more
            self._programs.follow(more)
            if not any(process in self._programs for process in more):
                # Descendants that were alive and have ended just now may have noted, created or started more.
                remains.remove(remains.family_of(worker, notes) if more else family)
                self._waiting.remove(entry)
