"""The thread that looks after the workers: when it looks, and what happens when a look fails.

It sleeps until something happens: a process ends, somebody pokes it, or the next moment comes at which it has
to look (a time limit that may be over, a step of a stop, a pause between start-ups, a sample of the memory
while tasks are running). An idle pool has none of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mpkit._platform.processes.exits import MOST_EVENTS, ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import tracker
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.readiness import never_wait, read_available
from mpkit.errors import MpkitError, PoolBroken
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.limits import Limits
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.reports import attempt, report

#: After so many turns in a row that raised an exception the pool is broken, and after as many more given up.
_MOST_FAILURES = 8
#: Seconds between a turn that failed and the next one: at first, and at most. Some 4 seconds until the pool
#: is broken, because what is lacking (descriptors, memory) may be there again in a moment.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class Supervised(Protocol):
    """What the supervisor looks after: the engine, as far as the supervisor knows it."""

    options: PoolOptions
    limits: Limits
    programs: Programs
    #: When to look at the end again though nobody pokes.
    told_by: float

    def bury(self, lane: Lane) -> None:
        """A worker is dead."""

    def look_after_crew(self, now: float) -> float:
        """Replace who is missing, send home who is not needed; when to look again."""
        ...

    def is_over(self) -> bool:
        """Whether no worker is left, and none will come."""
        ...

    def break_down(self, why: MpkitError) -> None:
        """The pool cannot go on: every pending task gets the reason."""

    def give_up(self, why: MpkitError) -> None:
        """Nobody looks after the workers any more: end what is left as well as it goes."""

    def begun(self) -> None:
        """The first act of the supervisor's thread."""

    def over(self) -> None:
        """The last act of the supervisor's thread."""


class Supervisor:
    """See the top of this file."""

    def __init__(self, engine: Supervised, name: str) -> None:
        self._engine = engine
        self._watcher = ExitWatcher()
        self._by_identity: dict[ProcessIdentity, Lane] = {}
        self._poke_reader, self._poke_writer = os.pipe()
        # Whoever takes them out of here closes them.
        self._pipe = [(self._poke_reader, self._poke_writer)]
        # Who is just writing into it, and whether it may be written into.
        self._poking: list[None] = []
        self._pokable = True
        never_wait(self._poke_reader)
        never_wait(self._poke_writer)
        self._requests: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._run, name=f"{name}-supervisor", daemon=True)
        #: When it looks at running tasks next without being poked (monotonic); `NEVER` where there are none,
        #: whatever else it looks after.
        self.looks_at: float = 0.0
        self._gone: list[Lane] = []
        # Whether the thread looks after all this, or it was discarded before. Who comes first decides, in one
        # step.
        self._claims: dict[None, str] = {}

    # -- from other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        # Daemon: the interpreter joins other threads before any exit handler of ours could stop this one. The
        # pool's end joins it.
        self._thread.start()

    def discard(self) -> bool:
        """Give back what the system lent, for there is to be no thread; False when it runs already."""
        discarded = self._claims.setdefault(None, "discarded") == "discarded"
        if discarded:
            self._watcher.close()
            self._close_pipe()
        return discarded

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread; True when it has ended (or this is it)."""
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def poke(self) -> None:
        """Have the thread look now."""
        # No lock, because a `__del__` may call this at any moment, in the middle of another poke, too. In a
        # reference cycle that is just being collected, the pipe may be gone before whoever pokes.
        self._poking.append(None)
        try:
            if self._pokable:
                os.write(self._poke_writer, b"!")
        except BlockingIOError:
            # Full of pokes: it is going to look.
            return
        finally:
            self._poking.pop()
            if not self._pokable:
                self._close_pipe_unless_poked()

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: there is no thread to poke, and the pipe is the parent's, too."""
        self._pokable = False
        self._close_pipe()

    def request(self, what: Callable[[], None]) -> None:
        """Have the thread do something."""
        self._requests.append(what)
        self.poke()

    def add(self, lane: Lane) -> None:
        """Watch a worker that has been started (before the thread runs, or in it)."""
        try:
            if lane.identity is not None and self._watcher.add(lane.identity):
                self._by_identity[lane.identity] = lane
        finally:
            if lane.identity not in self._by_identity:
                # It had ended before anybody could look at it, or it cannot be watched (no descriptor or no
                # memory left). Then nobody would see its end, and it must not stay when it is buried.
                self._gone.append(lane)
                if lane.process is not None:
                    lane.process.kill()

    def watch(self, program: ProcessIdentity) -> bool:
        """Watch something that a task has started (in the thread); false when it has ended."""
        few = len(self._watcher) - len(self._by_identity) < MOST_EVENTS
        return self._watcher.add(program, by_event=few)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._claims.setdefault(None, "looked after") == "discarded":
            return
        attempt(self._engine.begun)
        failures = 0
        over = False
        while not over:
            try:
                over = self._take_turn()
                failures = 0
            except BaseException as error:  # noqa: BLE001  whatever it is, everybody depends on this thread
                failures += 1
                if failures == 1:
                    report()
                over = self._bear(error, failures)
        attempt(self._watcher.close)
        attempt(self._engine.over)
        self._pokable = False
        self._close_pipe_unless_poked()

    def _take_turn(self) -> bool:
        """Do what there is to do, then sleep; True when all is over."""
        engine = self._engine
        with tracker.in_one_message():
            while self._gone:
                # It stays there until all is done: after an exception that is tried again.
                engine.bury(self._gone[0])
                del self._gone[0]
        while self._requests:
            self._requests.popleft()()
        if self._gone:
            return False
        now = CLOCK.monotonic()
        looks = [
            engine.look_after_crew(now),
            engine.limits.look_at_running(now),
            engine.limits.look_at_stops(now),
            # The last: those that have just been told to end.
            engine.programs.look_after(now),
        ]
        if engine.is_over():
            return True
        if self._gone or self._requests:
            return False
        self.looks_at = looks[1]
        # Whoever gave a task a nearer limit before the line above took effect has been overlooked: look once
        # more, cheaply.
        wait = self._next_wait(now, min(*looks, engine.told_by))
        ended, poked = self._watcher.wait(wait, also=self._poke_reader)
        # First: nobody tells of them again.
        for process in ended:
            lane_or_none = self._by_identity.pop(process, None)
            if lane_or_none is not None:
                self._gone.append(lane_or_none)
            else:
                engine.programs.ended(process)
        if poked:
            read_available(self._poke_reader)
        return False

    def _bear(self, error: BaseException, failures: int) -> bool:
        """A turn has failed, the last one of so many in a row; True when there is no use in another one."""
        engine = self._engine
        if failures >= _MOST_FAILURES:
            broken = PoolBroken(
                f"the thread that looks after the workers of {engine.options.name} failed {failures} times "
                f"in a row, lastly with {type(error).__name__}: {error}"
            )
            broken.__cause__ = error
            if failures >= 2 * _MOST_FAILURES:
                attempt(lambda: engine.give_up(broken))
                return True
            # Again each time, should that be what fails.
            attempt(lambda: engine.break_down(broken))
        time.sleep(min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE))
        return False

    def _next_wait(self, now: float, next_look: float) -> float | None:
        self.looks_at = min(self.looks_at, self._engine.limits.look_at_running(now))
        next_look = min(next_look, self.looks_at)
        if next_look == NEVER:
            return None
        return max(next_look - CLOCK.monotonic(), 0.0)

    def _close_pipe_unless_poked(self) -> None:
        # Whoever has found it pokable is noted, and may be about to write: its number must not be another
        # file's meanwhile. The last one of them closes it.
        if not self._poking:
            self._close_pipe()

    def _close_pipe(self) -> None:
        try:
            pipe = self._pipe.pop()
        except IndexError:
            return
        for end in pipe:
            os.close(end)

    def __del__(self) -> None:
        if hasattr(self, "_pipe"):
            self._close_pipe()
