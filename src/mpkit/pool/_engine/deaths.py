"""Everything that follows from the death of a worker (for its tasks see `mpkit.pool._engine.losses`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.resources import memory
from mpkit._platform.signals.names import signal_name
from mpkit._shm.memory import trail
from mpkit.errors import MpkitError
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.crew import Crew, exit_code
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Death
from mpkit.pool._engine.losses import settle_loss
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.remains import Remains
from mpkit.pool._engine.stacks import last_words
from mpkit.pool._protocol.channel import LEAVING, PARCELS, STATE

_logger = logging.getLogger("mpkit.pool")


class Deaths:
    """Buries the dead workers of one pool (in the supervisor's thread)."""

    def __init__(
        self,
        options: PoolOptions,
        dispatcher: Dispatcher,
        collector: Collector,
        crew: Crew,
        programs: Programs,
        numbers: Iterator[int],
    ) -> None:
        self._name = options.name
        self._method = options.context.get_start_method()
        self._dispatcher = dispatcher
        self._collector = collector
        self._crew = crew
        self._programs = programs
        self._numbers = numbers
        self.remains: Remains = Remains(programs)

    def bury(self, lane: Lane) -> MpkitError | None:
        """Settle the tasks of a dead worker, and give back what belonged to it.

        After an exception it has to be called again.

        Returns:
            The error for the pool if it cannot go on: the initializer has raised,
                or too many start-ups failed.
        """
        exitcode = exit_code(lane)
        words = last_words(lane)
        self._settle(lane, exitcode, words)
        told = self._programs.terminate(self._left_by(lane))
        if lane.identity is not None and self._may_have_left_names(lane, exitcode):
            self.remains.add(lane.identity, trail.notes_in(lane.channel.segment), told)
            self.remains.look_after()
        broken = self._crew.note_death_of(lane, exitcode, words)
        failed = self._crew.initializer_error(lane)
        self._crew.dispose(lane)
        return failed or broken

    def _settle(self, lane: Lane, exitcode: int | None, words: str) -> None:
        """Queue its tasks again, or end them."""
        died = signal_name(exitcode)
        likely_oom = died == "SIGKILL" and not lane.doomed and memory.oom_killed_since(lane.oom_kills)
        death = Death(lane.pid, exitcode, died, words or None, lane.rss_bytes, likely_oom)
        dispatcher = self._dispatcher
        # After an exception in the block (no memory), what was taken before it is told nevertheless, and the
        # rest when this is called again.
        with self._collector.under_lock() as settlements:
            # Unless this is called again, because something after it has failed.
            if lane.key in dispatcher.ledger.sent:
                settle_loss(dispatcher, lane, death, self._numbers, settlements)
            dispatcher.fill()
        if lane.is_torn:
            problem = (
                "%s: worker %d was killed: something in it has written into the memory that it shares with "
                "the pool"
            )
            self._collector.log(_logger.error, problem, self._name, lane.pid)

    def _may_have_left_names(self, lane: Lane, exitcode: int | None) -> bool:
        state = lane.words[STATE]
        if not state and self._method == "fork":
            # It was killed while it was starting, because the pool was closed, and has not run any code but
            # mpkit's. (With other start methods it may have imported the main module.)
            return False
        # A worker that has left in order has removed its own names; but it may have made parcels.
        return exitcode != 0 or state != LEAVING or lane.words[PARCELS] > 0

    def _left_by(self, lane: Lane) -> list[ProcessIdentity]:
        """The living processes that the last task of a dead worker had started, as far as they are known."""
        known = [] if lane.stop is None else lane.stop.programs
        since = lane.task_since()
        if since is not None:
            known = known + [child for child in lane.children if child.started >= since]
        return [program for program in known if identity.is_alive(program)]
