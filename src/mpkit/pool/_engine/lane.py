"""One worker as the parent sees it: its process, its channel, its tasks, and whether it starts or leaves.

A task moves from the inbox to the status row (while it runs) to the outbox (as its outcome), and is at the
next place before it leaves the previous one. Only the process that holds the lock of the inbox takes records
out; the worker does so for one record at a time.
"""

from __future__ import annotations

import signal
import sys
from itertools import starmap
from multiprocessing.connection import Connection

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.identity import ProcessIdentity, is_alive
from mpkit._platform.processes.start_times import StartClock
from mpkit._platform.processes.stat_file import is_stopped
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

# How far a stop has come.
#: It has been decided; the worker may be writing the stack of the task.
DECIDED = 0
INTERRUPTED = 1
TERMINATED = 2
KILLED = 3

#: As many tasks as any worker could ever be given.
_NO_LIMIT = 1 << 30
#: More records than an inbox can hold.
ALL = 1 << 20
#: How long to wait for the lock of an inbox. A worker that is ready to run holds it for a microsecond.
_PATIENCE_SECONDS = 5.0
#: How often meanwhile to check whether the worker can still release it.
_SLICE_SECONDS = 0.01


def number_of(record: bytes) -> int:
    """The number of the task in a record of an inbox."""
    return int.from_bytes(record[:8], "little")


class Stop:
    """A running task that is being stopped: interrupt, terminate, kill, with a grace period after each.

    Attributes:
        number: the number of the task.
        limit: the memory limit of the pool in bytes, or None.
        stack: the stack of the worker when the time limit was over, or "".
        ended: the task, if it ended before the first step.
        stage: the last step that was taken: `DECIDED` ... `KILLED`.
        due: when the next step is to be taken (monotonic).
        began: when the task began (`time.monotonic_ns`).
        over_at: when the parent saw that it had ended (`time.monotonic_ns`).
        programs: the processes that it had started before it was interrupted. Once their parents have ended,
            it can no longer be found out whose they are.
    """

    __slots__ = ("began", "due", "ended", "limit", "number", "over_at", "programs", "stack", "stage")

    def __init__(self, number: int, limit: int | None) -> None:
        self.number: int = number
        self.limit: int | None = limit
        self.stack: str = ""
        self.ended: Task | None = None
        self.stage: int = DECIDED
        self.due: float = 0.0
        self.began: int = 0
        self.over_at: int = 0
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
        "maxtasksperchild",
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
        "told_to_end",
        "told_to_leave",
        "words",
    )

    def __init__(
        self,
        key: int,
        channel: Channel,
        process: ChildProcess,
        identity: ProcessIdentity | None,
        *,
        stack_pipe: Connection | None,
        maxtasksperchild: int | None,
        oom_kills: int | None,
    ) -> None:
        self.key: int = key
        self.channel: Channel = channel
        self.words: memoryview[int] = channel.words
        self._barrier = Barrier()
        #: The tasks that it has been sent and that have not ended, by number: the ledger's dictionary.
        self.sent: dict[int, Task] = {}
        #: The reading end of the pipe that it writes its stack into; None once it has been closed.
        self.stack_pipe: Connection | None = stack_pipe
        self.stack_lock: InterruptibleLock = InterruptibleLock()
        #: How many tasks it does before it is replaced; None: no limit.
        self.maxtasksperchild: int | None = maxtasksperchild
        self.process: ChildProcess = process
        #: None if it ended before it could be identified.
        self.identity: ProcessIdentity | None = identity
        #: Whether it may be given tasks now: see `update_ready`.
        self.ready: bool = False
        #: It has reported that it is ready for tasks.
        self.greeted: bool = False
        #: The process is stopped by a signal (SIGSTOP): it gets no tasks until it is continued.
        self.set_aside: bool = False
        #: It takes no more tasks, by its own choice or because it has been told so.
        self.leaving: bool = False
        #: When it said that it takes no more tasks (monotonic); 0: it has not.
        self.left_at: float = 0.0
        #: The pool has terminated or killed it, and may hold the lock of its inbox for good.
        self.doomed: bool = False
        #: Its rings or its row hold what it cannot have written there itself; it is to be killed.
        self.is_torn: bool = False
        #: Tasks that could be found nowhere at the last check: see `Dispatcher.check_sane`.
        self.lost: set[int] = set()
        #: Has one element while this process holds the lock of its inbox.
        self.inbox_locks: list[bool] = []
        #: What the parent has stored as its word `LOW`.
        self.low: int = 0
        #: Its resident memory when it was last measured, or None.
        self.rss_bytes: int | None = None
        #: What `memory.oom_kills` returned before it was started; None: the system does not count them.
        self.oom_kills: int | None = oom_kills
        #: Records of its outbox that are just being processed, and the place behind them in the ring.
        self.pending: tuple[list[bytes], int] | None = None
        self.started_at: float = CLOCK.monotonic()
        self.start_clock: StartClock = StartClock()
        #: The children that it had when this was last checked while it ran a task.
        self.children: list[ProcessIdentity] = []
        #: The record that says what its initializer raised, or None.
        self.bad_initializer: bytes | None = None
        #: The stop of the task that it is running, if there is one.
        self.stop: Stop | None = None
        # What it has been told at the end of the pool.
        self.told_to_leave: bool = False
        self.told_to_end: bool = False
        #: If it has left or been told to: when it is killed (monotonic). 0: not decided yet;
        #: `NEVER`: it has been killed.
        self.leave_by: float = 0.0

    def update_ready(self) -> None:
        """Note whether it may be given tasks (holding the dispatcher's lock).

        To be called after any change to what `ready` depends on.
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

        Computed each time from its word `DONE`, because tasks are taken back as well as sent. An outcome may
        arrive before the worker has counted it there. Then it gets one task too many, which is taken back
        when it says that it leaves, and is sent to another worker.
        """
        if self.maxtasksperchild is None:
            return _NO_LIMIT
        most = self.maxtasksperchild
        done = self.words[DONE]
        # The worker also counts for itself, and leaves in time. If the word says more than it can have done,
        # something has overwritten it: ignore it, because otherwise the worker would be idle for ever.
        return most - (done if done <= most else 0) - len(self.sent)

    def wake(self) -> None:
        """Wake the worker if it sleeps: there is a record in its inbox (holding the dispatcher's lock)."""
        if TOTAL_STORE_ORDER:
            # Elsewhere, `nudge` passes a barrier.
            self._barrier()
        self.nudge()

    def nudge(self) -> None:
        """The same as `wake`, for callers that have released the lock after putting the record there."""
        if not TOTAL_STORE_ORDER:
            # On x86, releasing the lock was a full barrier (an atomic exchange); on other machines it is not.
            full_fence()
        words = self.words
        if words[SLEEPING]:
            words[SLEEPING] = 0
            ring_bell(self.channel.wake)

    def lock_inbox(self) -> bool:
        """Take the lock of its inbox, so that it begins no task (holding the dispatcher's lock).

        Returns:
            False if the lock was not taken: the worker is dead, doomed, or stopped by a signal.
        """
        if self.doomed:
            return False
        if self.try_lock_inbox():
            return True
        # The worker holds it for a microsecond, unless it died or was stopped just then. The deadline is for
        # systems on which it cannot be seen that a process is stopped.
        deadline = CLOCK.monotonic() + _PATIENCE_SECONDS
        while not self.try_lock_inbox(_SLICE_SECONDS):
            if (
                self.identity is None
                or not is_alive(self.identity)
                or is_stopped(self.identity.pid)
                or CLOCK.monotonic() > deadline
            ):
                return False
        return True

    def try_lock_inbox(self, seconds: float = 0.0) -> bool:
        """Take the lock of its inbox, waiting for `seconds` at most; returns whether it was taken."""
        # Taken and noted in a single call of C code, so no signal handler can raise in between.
        self.inbox_locks.extend(filter(None, starmap(self.channel.lock.acquire, [(seconds > 0, seconds)])))
        return bool(self.inbox_locks)

    def unlock_inbox(self) -> None:
        """Release the lock of its inbox, if this process holds it."""
        # In a single call of C code, as above: `release` returns None, so the list is empty afterwards.
        held = self.inbox_locks
        held[:] = filter(None, starmap(self.channel.lock.release, [()] * len(held)))

    def unbegun(self) -> set[int]:
        """The numbers of the tasks in its inbox.

        Raises:
            TornRingError: the ring does not hold records of tasks; something has written over it.
        """
        return {number_of(record) for record in self.channel.inbox.peek_many(ALL)[0]}

    def handed_in(self) -> set[int]:
        """Its tasks that are neither in its inbox nor running.

        Each of them has an outcome in the outbox, or it is lost. The outbox must be checked after this, that
        is, in the order in which a task moves: then no task is overlooked.

        Raises:
            TornRingError: the inbox does not hold records of tasks; something has written over it.
        """
        waiting = self.unbegun()
        running = self.running()
        return {number for number in self.sent if number != running and number not in waiting}

    def terminate(self) -> list[ProcessIdentity]:
        """Send SIGTERM to it and to what its task has started (in the supervisor's thread).

        Returns:
            The processes that its task has started.
        """
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
            spare_earlier: Spare descendants that earlier tasks have started.
        """
        if self.identity is not None:
            since = self.task_since() if spare_earlier else 0
            known = [] if self.stop is None else self.stop.programs
            # `sys.maxsize` is later than any process is started: no descendant is killed.
            families.kill_families([self.identity, *known], since=sys.maxsize if since is None else since)
        # Set last: after an exception this is called again.
        self.doomed = True

    def task_since(self) -> int | None:
        """Since when its current task has been running, as
        `ProcessIdentity.started` counts; None: it runs none.

        Descendants that were started since then belong to the task; what earlier tasks have left there stays.
        The pool's initializer counts as a task here. Also works after the death of the worker.
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
        """The number of the task that it is running, or 0."""
        return self.words[TASK]

    def running_since(self) -> tuple[int, int]:
        """The task that it is running, and when that began (`time.monotonic_ns`); (0, 0): there is none."""
        # The worker clears the number, then stores the time of the next task, then its number. So the time
        # belongs to the number if that is the same before and after.
        words = self.words
        number = words[TASK]
        full_fence()
        started = words[STARTED]
        full_fence()
        return (number, started) if number and words[TASK] == number else (0, 0)
