"""One worker as the parent sees it: its channel, what it has been sent, how far its start or end has come."""

from __future__ import annotations

import signal
import sys
from itertools import starmap
from multiprocessing.connection import Connection

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.processes.start_times import StartClock
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._engine.ledger import Task
from mpkit.pool._protocol.channel import (
    DONE,
    INITIALIZING,
    SLEEPING,
    STARTED,
    STATE,
    TASK,
    Barrier,
    Channel,
    ring_bell,
)


class Stop:
    """A running task that is being stopped: interrupt, terminate, kill, with a grace period after each."""

    __slots__ = ("began", "due", "ended", "limit", "number", "over_at", "programs", "stack", "stage")

    def __init__(self, number: int, limit: int | None) -> None:
        self.number: int = number
        self.stack: str = ""
        self.limit: int | None = limit
        #: The task, if it ended before the first step.
        self.ended: Task | None = None
        self.stage: int = 0
        self.due: float = 0.0
        #: When it began, and when it was known to have ended (`time.monotonic_ns`).
        self.began: int = 0
        self.over_at: int = 0
        #: What it had started before it was interrupted. Its parents may have ended since, and then nothing
        #: tells any more whose it is.
        self.programs: list[ProcessIdentity] = []


class Lane:
    """One worker, as the parent sees it."""

    __slots__ = (
        "_barrier",
        "bad_initializer",
        "channel",
        "children",
        "doomed",
        "greeted",
        "identity",
        "inbox_locks",
        "is_torn",
        "key",
        "leave_by",
        "leaving",
        "left_at",
        "lost",
        "low",
        "oom_kills",
        "pending",
        "process",
        "ready",
        "rss_bytes",
        "sent",
        "set_aside",
        "stack_lock",
        "stack_pipe",
        "start_clock",
        "started_at",
        "stop",
        "tasks",
        "told_to_end",
        "told_to_leave",
        "words",
    )

    def __init__(
        self,
        key: int,
        channel: Channel,
        stack_pipe: Connection | None,
        tasks: int | None,
    ) -> None:
        self.key: int = key
        self.channel: Channel = channel
        self.words: memoryview[int] = channel.words
        self._barrier = Barrier()
        #: The tasks that it has, by number. (In the pool it is the ledger's.)
        self.sent: dict[int, Task] = {}
        self.stack_pipe: Connection | None = stack_pipe
        self.stack_lock: InterruptibleLock = InterruptibleLock()
        #: How many tasks it does in its life (maxtasksperchild); None: no limit.
        self.tasks: int | None = tasks
        self.process: ChildProcess | None = None
        self.identity: ProcessIdentity | None = None
        #: Whether it may be given tasks now: see `update_ready`.
        self.ready: bool = False
        #: It has reported that it is ready for tasks.
        self.greeted: bool = False
        #: Somebody has stopped the process (SIGSTOP): it gets nothing until it goes on.
        self.set_aside: bool = False
        #: It takes no more tasks, or is not to.
        self.leaving: bool = False
        #: When it said that it takes no more tasks (monotonic); 0: it has not.
        self.left_at: float = 0.0
        #: Terminated or killed by the pool; its inbox is locked for good.
        self.doomed: bool = False
        #: What it shares with the pool cannot be what it has written there itself; it is to be killed.
        self.is_torn: bool = False
        #: The tasks that were nowhere when it was looked for them last: see `look_whether_sane`.
        self.lost: set[int] = set()
        #: One element while this process holds the lock of its inbox.
        self.inbox_locks: list[bool] = []
        self.low: int = 0
        self.rss_bytes: int | None = None
        #: What `oom_kills` counted before it was started; None: nothing is counted here.
        self.oom_kills: int | None = None
        #: Records of its outbox that are just being gone through, and the place behind them.
        self.pending: tuple[list[bytes], int] | None = None
        self.started_at: float = CLOCK.monotonic()
        self.start_clock: StartClock = StartClock()
        #: The children that it had when it was last looked at, running a task.
        self.children: list[ProcessIdentity] = []
        self.bad_initializer: bytes | None = None
        #: The task that is being stopped, if one is.
        self.stop: Stop | None = None
        # At the end of the pool.
        self.told_to_leave: bool = False
        self.told_to_end: bool = False
        #: When it is killed, having left or been told to (monotonic); 0: not known yet.
        self.leave_by: float = 0.0

    def update_ready(self) -> None:
        """Note whether it may be given tasks (holding the dispatcher's lock); for whoever has changed
        anything of that.
        """
        self.ready = (
            self.greeted
            and self.stop is None
            and not self.leaving
            and not self.set_aside
            and not self.is_torn
        )

    def room(self) -> int:
        """How many more tasks it may be given.

        Counted anew each time, from what it says it has done, because tasks are taken back as well as sent.
        An outcome may be here before it is counted there: one task too many goes, comes back when the worker
        says that it leaves, and is sent to the next one.
        """
        if self.tasks is None:
            return 1 << 30
        done = self.words[DONE]
        # The worker counts for itself as well, and leaves in time. If it says more than it can have done,
        # something has written over that word, and it must not idle for ever.
        return self.tasks - (done if done <= self.tasks else 0) - len(self.sent)

    def wake(self) -> None:
        """Wake the worker if it sleeps: there is something in its inbox, or room in its outbox (holding the
        dispatcher's lock).
        """
        if TOTAL_STORE_ORDER:
            # Elsewhere `nudge` has one.
            self._barrier()
        self.nudge()

    def nudge(self) -> None:
        """`wake`, for callers that have given the lock back since they put the record there."""
        if not TOTAL_STORE_ORDER:
            # Giving the lock back is a full barrier on x86 only, where it is an atomic exchange.
            full_fence()
        words = self.words
        if words[SLEEPING]:
            words[SLEEPING] = 0
            ring_bell(self.channel.wake)

    def lock_inbox(self, seconds: float | None = None) -> bool:
        """Take the lock of its inbox, waiting so long at most (None: not at all); whether it was got."""
        # Taken and noted in one call of C code: no handler of a signal can raise in between.
        arguments = (False,) if seconds is None else (True, seconds)
        self.inbox_locks.extend(filter(None, starmap(self.channel.lock.acquire, (arguments,))))
        return bool(self.inbox_locks)

    def unlock_inbox(self) -> None:
        """Give the lock of its inbox back, if this process holds it."""
        # As above: `release` returns None, so nothing is left of what has been given back.
        held = self.inbox_locks
        held[:] = filter(None, starmap(self.channel.lock.release, [()] * len(held)))

    def terminate(self) -> list[ProcessIdentity]:
        """Send SIGTERM (in the supervisor's thread), also to what its task has started, which is returned."""
        self.doomed = True
        worker = self.identity
        if worker is None:
            return []
        since = self.task_since()
        if since is None:
            signalling.send_signal_if_allowed(worker, signal.SIGTERM)
            return []
        known = [] if self.stop is None else self.stop.programs
        told = parent_watch.signal_to_end([worker, *known], signal.SIGTERM, since=since)
        return [process for process in told if process != worker]

    def kill(self, *, spare_earlier: bool = False) -> None:
        """Kill it and its descendants (in the supervisor's thread).

        Args:
            spare_earlier: Of its descendants only what its task has started.
        """
        if self.identity is not None:
            since = self.task_since() if spare_earlier else 0
            known = [] if self.stop is None else self.stop.programs
            # None: no process will ever have been started so late.
            families.kill_families([self.identity, *known], since=sys.maxsize if since is None else since)
        # Only now: what could not be done is tried again.
        self.doomed = True

    def task_since(self) -> int | None:
        """From when on it was its task that has started what descends from it (`ProcessIdentity.started`).

        None when it runs none: what earlier tasks have left there is nobody's business. (The initializer of
        the pool is one, in this respect.) Holds for a worker that has died, too.
        """
        if self.words[STATE] == INITIALIZING:
            return 0
        number, started = self.running_since()
        return self.start_clock.at(started) if number else None

    @property
    def pid(self) -> int:
        """Its process id, or 0."""
        return 0 if self.identity is None else self.identity.pid

    def running(self) -> int:
        """The task in its hands, or 0."""
        return self.words[TASK]

    def running_since(self) -> tuple[int, int]:
        """The task in its hands and when that began (ns); (0, 0) when there is none."""
        words = self.words
        number = words[TASK]
        started = words[STARTED]
        return (number, started) if number and words[TASK] == number else (0, 0)
