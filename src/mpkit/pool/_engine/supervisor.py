"""The supervisor: the pool's thread that looks after the workers. When it wakes up,
and what happens if it fails.

It sleeps until something happens: a process ends, another thread pokes it, or a moment comes at which
something has to be checked (a time limit may be over, the next step of a stop is due, a pause between
start-ups is over, the memory has to be measured while tasks are running). In an
idle pool none of these happens.
"""

from __future__ import annotations

import os
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
from mpkit.pool._engine.threads import attempt, join_thread, new_thread, report

#: After so many failed turns in a row (an exception in each) the pool is broken; after twice as many, the
#: thread gives up.
_MOST_FAILURES = 8
#: Seconds between a failed turn and the next one: each pause is twice as long as the one before. In all, it
#: takes some 4 seconds until the pool is broken, because a lack of descriptors or
#: memory may be over in a moment.
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class Supervised(Protocol):
    """What the supervisor uses of the engine."""

    options: PoolOptions
    limits: Limits
    programs: Programs
    #: When to call `is_over` again even if nothing happens (monotonic).
    tell_deadline: float

    def bury(self, lane: Lane) -> None:
        """Do all that follows from the death of a worker. After an exception it is called again."""

    def look_after_crew(self, now: float) -> float:
        """Replace missing workers, send home those that are not needed; returns when to look again."""
        ...

    def is_over(self) -> bool:
        """Whether the pool has ended."""
        ...

    def break_down(self, why: MpkitError) -> None:
        """End a pool that cannot go on: every pending task fails with `why`."""

    def give_up(self, why: MpkitError) -> None:
        """End what is left, as far as possible: the supervisor's thread is about to end."""

    def begun(self) -> None:
        """Called once, when the supervisor's thread begins."""

    def over(self) -> None:
        """Called once, when the supervisor's thread ends."""


class Supervisor:
    """The thread that looks after the workers of one pool, and how other threads wake it."""

    def __init__(self, engine: Supervised, name: str) -> None:
        self._engine = engine
        self._watcher = ExitWatcher()
        self._by_identity: dict[ProcessIdentity, Lane] = {}
        self._poke_reader, self._poke_writer = os.pipe()
        # The ends of the pipe; the thread that takes them out of this list closes them.
        self._pipe = [(self._poke_reader, self._poke_writer)]
        # One element for each thread that is just poking.
        self._poking: list[None] = []
        # Whether the pipe may be written into.
        self._pokable = True
        never_wait(self._poke_reader)
        never_wait(self._poke_writer)
        self._requests: deque[Callable[[], None]] = deque()
        self._thread = new_thread(self._run, f"{name}-supervisor")
        #: When it looks at running tasks next without being poked (monotonic); `NEVER` if there are none.
        self.looks_at: float = 0.0
        # Workers that have ended and have not been buried.
        self._gone: list[Lane] = []
        # Whether the thread has begun, or was discarded before it could: whichever comes first is stored
        # here, in a single step (`setdefault`).
        self._claims: dict[None, str] = {}

    # -- from other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def discard(self) -> bool:
        """Close all descriptors, because the thread is not to run; False if it is running already."""
        discarded = self._claims.setdefault(None, "discarded") == "discarded"
        if discarded:
            self._watcher.close()
            self._close_pipe()
        return discarded

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread, `timeout` seconds at most; True if it has ended (or this is it)."""
        return join_thread(self._thread, timeout)

    def poke(self) -> None:
        """Wake the thread. Takes no lock: a `__del__` may call this at any moment, even in another poke."""
        # In a reference cycle that is just being collected, the pipe may be closed before another object of
        # the cycle pokes.
        self._poking.append(None)
        try:
            if self._pokable:
                os.write(self._poke_writer, b"!")
        except BlockingIOError:
            # The pipe is full of pokes: the thread is going to wake up.
            return
        finally:
            self._poking.pop()
            if not self._pokable:
                self._close_pipe_unless_poked()

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: there is no thread to poke, and the pipe is also the parent's."""
        self._pokable = False
        self._close_pipe()

    def request(self, what: Callable[[], None]) -> None:
        """Have the thread call something. Takes no lock, like `poke`."""
        self._requests.append(what)
        self.poke()

    def add(self, lane: Lane) -> None:
        """Watch a worker that has been started (before the thread runs, or in this thread)."""
        try:
            if lane.identity is not None and self._watcher.add(lane.identity):
                self._by_identity[lane.identity] = lane
        finally:
            if lane.identity not in self._by_identity:
                # It has ended already, or it cannot be watched because there is no descriptor or no memory
                # left. So it is buried, and must not survive that.
                self._gone.append(lane)
                lane.process.kill()

    def watch(self, program: ProcessIdentity) -> bool:
        """Watch a process that a task has started (in this thread); False if it has ended already."""
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
            except BaseException as error:  # noqa: BLE001  whatever it is, the pool depends on this thread
                failures += 1
                if failures == 1:
                    report()
                over = self._bear(error, failures)
        attempt(self._watcher.close)
        attempt(self._engine.over)
        self._pokable = False
        self._close_pipe_unless_poked()

    def _take_turn(self) -> bool:
        """Do what there is to do, then sleep; True if the thread is to end."""
        engine = self._engine
        with tracker.in_one_message():
            while self._gone:
                # Removed only when it has been buried: after an exception this is tried again.
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
            # After the others, because these may have just told further programs to end.
            engine.programs.look_after(now),
        ]
        if engine.is_over():
            return True
        if self._gone or self._requests:
            return False
        self.looks_at = looks[1]
        # A thread that has submitted a task with a nearer time limit before the line above did not poke: it
        # has seen the old value. `_next_wait` checks for such tasks.
        wait = self._next_wait(now, min(*looks, engine.tell_deadline))
        ended, poked = self._watcher.wait(wait, also=self._poke_reader)
        # Before the pokes are read, which may fail: these deaths are reported only once.
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
        """Deal with the exception of the last of `failures` failed turns in a row; True to end the thread."""
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
            # Tried after each further failure, in case it fails as well.
            attempt(lambda: engine.break_down(broken))
        time.sleep(min(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS))
        return False

    def _next_wait(self, now: float, next_look: float) -> float | None:
        """How many seconds to sleep if nothing happens, until `next_look` at most; None: no limit."""
        self.looks_at = min(self.looks_at, self._engine.limits.look_at_running(now))
        next_look = min(next_look, self.looks_at)
        if next_look == NEVER:
            return None
        return max(next_look - CLOCK.monotonic(), 0.0)

    def _close_pipe_unless_poked(self) -> None:
        # A thread that is poking may be about to write: until it has, the descriptor must not be closed,
        # because its number could be given to another file. The last of these threads closes the pipe.
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
