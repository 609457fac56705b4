r"""What has become of every task: a pure state machine without I/O, clock or threads.

A task is *queued* (in the parent), *sent* (in a worker's inbox, or in its hands) or *ended*. It ends exactly
once, and after that it is not in the ledger any more::

    submit -> QUEUED --send--> SENT --finish--------------------------> ENDED
                 ^   \           |--take_back--> QUEUED (in front)
                 |    cancel      |--worker lost, not begun --> QUEUED (in front), not counted
                 |     \          |--worker lost while it ran: retries left --> QUEUED (in front)
                 |      ENDED     |                             none left    --> ENDED
                 +----------------+

A task that is to be stopped while it runs (time limit, cancel, memory) carries the reason in `Task.ending`:
whatever its worker does then, it ends, and it is never sent again.

All methods are called under the dispatcher's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from mpkit._platform.hints import override
from mpkit._platform.threads.deadlines import NEVER
from mpkit.pool._engine.functions import Function

UNSENT = 0
QUEUED = 1
SENT = 2
ENDED = 3

#: Why a running task is being stopped (`Task.ending`); the empty string: it is not.
NOT_ENDING = ""
TIMED_OUT = "timeout"
CANCELLED = "cancel"
TOO_BIG = "memory"
#: Its pool is broken.
POOL_BROKEN = "broken"


#: So many cancelled tasks may stay in the queue, and as many more as there are others.
_MOST_ENDED = 64


Death = NamedTuple(
    "Death",
    [
        ("pid", int),
        ("exitcode", int | None),
        ("signal", str | None),
        ("stack", str),
        ("rss_bytes", int | None),
        ("likely_oom", bool),
    ],
)
"""How a worker ended while it ran a task."""


class Sink(Protocol):
    """Whoever waits for the outcome of a task.

    Attributes:
        _can_be_told_again: whether `_settle` may be called again after an interrupt, wherever that came.
    """

    @property
    def _can_be_told_again(self) -> bool: ...

    def _sent(self, task: Task) -> object:
        """This is the task that the outcome will come from. Called before it is sent."""

    def _next_item(self) -> int | None:
        """The index of the item that is sent next, in the input of a map; None where there is no map."""

    def _settle(self, task: Task, kind: int, data: object) -> object:
        """Take the outcome: `kind` is one of `mpkit.pool._protocol.channel`'s result kinds, `data` what
        belongs to it.

        Called by a thread that holds no lock of the pool; only the first call counts.
        """


class Task:
    """One unit of work, as the parent knows it.

    Attributes:
        number: its id, unique in the pool and rising.
        sink: who is told the outcome.
        record: what is written into an inbox, complete.
        function: the name and the measured run time of what it calls.
        timeout: seconds that it may run, or None.
        retries: how many lost workers it survives.
        offset: where its items begin in the map that it belongs to; set by its sink.
        kept: objects that must live until it has ended (shared objects among its arguments, segments).
        deaths: the workers that died while they ran it.
        ending: why it is being stopped, or "".
    """

    __slots__ = (
        "deaths",
        "ending",
        "function",
        "kept",
        "number",
        "offset",
        "record",
        "retries",
        "sink",
        "state",
        "timeout",
        "worker",
    )

    def __init__(
        self,
        number: int,
        sink: Sink,
        record: bytes,
        function: Function,
        timeout: float | None = None,
        retries: int = 0,
        kept: object = None,
    ) -> None:
        self.number: int = number
        self.sink: Sink = sink
        self.record: bytes = record
        self.function: Function = function
        self.timeout: float | None = timeout
        self.retries: int = retries
        self.kept: object = kept
        self.state: int = UNSENT
        self.worker: int = -1
        self.offset: int = 0
        self.deaths: list[Death] | None = None
        self.ending: str = NOT_ENDING

    @property
    def items(self) -> int:
        """How many items of a map it stands for."""
        return 1

    def has_tries_left(self) -> bool:
        """Whether it is tried again should the worker that runs it die now."""
        return not self.ending and len(self.deaths or ()) < self.retries


class Chunk(Task):
    """A task that stands for several items of a map.

    Attributes:
        start: the first of its items, counted in the list that its record holds.
        stop: behind the last one.
        done: the first one whose outcome has not come yet (the others came in parts).
        pieces: what stands for it since its worker has died; none: it has not been divided.
        told: what its sink has been told of, by the first item: how many.
        drained: nothing more of it will come from a worker, but parts may still be under way to its sink.
    """

    __slots__ = ("done", "drained", "pieces", "start", "stop", "told")

    def __init__(
        self,
        number: int,
        sink: ChunkSink,
        record: bytes,
        function: Function,
        timeout: float | None,
        retries: int,
        kept: object,
        start: int,
        stop: int,
    ) -> None:
        super().__init__(number, sink, record, function, timeout, retries, kept)
        self.start: int = start
        self.stop: int = stop
        self.done: int = start
        self.pieces: Sequence[Chunk] = ()
        self.told: dict[int, int] = {}
        self.drained: bool = False

    @property
    @override
    def items(self) -> int:
        return self.stop - self.start


class ChunkSink(Sink, Protocol):
    """Whoever waits for the outcomes of chunks. Parts are `PART`: ``(first item, kind, data, length)``."""

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> object:
        """The worker of `task` is dead: from now on `pieces` stand for what of it had not been told."""


class Ledger:
    """Every task that has not ended, and how many have ended in which way."""

    __slots__ = (
        "cancelled",
        "crashed",
        "failed",
        "queue",
        "queued",
        "retried",
        "sent",
        "submitted",
        "succeeded",
        "under_way",
    )

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        self.sent: dict[int, dict[int, Task]] = {}
        # Cancelled tasks stay in `queue` until they come up, so its length is not the number of those queued.
        self.queued: int = 0
        self.under_way: int = 0
        self.submitted: int = 0
        self.succeeded: int = 0
        self.failed: int = 0
        self.cancelled: int = 0
        self.crashed: int = 0
        self.retried: int = 0

    # -- tasks -----------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue a new task behind all others."""
        self.queue.append(task)
        task.state = QUEUED
        self.queued += 1
        self.submitted += 1

    def first(self) -> Task | None:
        """The next task to send, which stays queued; or None."""
        queue = self.queue
        while queue:
            task = queue[0]
            if task.state == QUEUED:
                return task
            queue.popleft()
        return None

    def send_first(self, worker: int) -> None:
        """The task that `first` has shown is with `worker` now."""
        # In this order: after an exception in between it is with the worker, and `first` leaves it out.
        task = self.queue[0]
        task.worker = worker
        self.sent[worker][task.number] = task
        task.state = SENT
        self.queue.popleft()
        self.queued -= 1
        self.under_way += 1

    def send_new(self, worker: int, task: Task) -> None:
        """A new task goes straight to `worker`."""
        self.submitted += 1
        self.under_way += 1
        task.state = SENT
        task.worker = worker
        self.sent[worker][task.number] = task

    def finish(self, worker: int, number: int, succeeded: bool) -> Task | None:
        """`worker` reports that it is done with a task.

        None when it had ended before (it was settled while it ran).
        """
        task = self.sent[worker].pop(number, None)
        if task is None:
            return None
        task.state = ENDED
        self.under_way -= 1
        if task.ending == CANCELLED:
            self.cancelled += 1
        elif succeeded and not task.ending:
            self.succeeded += 1
        else:
            self.failed += 1
        return task

    def take_back(self, worker: int, numbers: Iterable[int]) -> list[Task]:
        """Tasks were taken out of `worker`'s inbox: they are first in the queue again, in this order.

        Those that were to be stopped are not queued again: they have ended, and are returned.
        """
        sent = self.sent[worker]
        ended: list[Task] = []
        back: list[Task] = []
        # After an exception that came between a ring and the ledger, one was sent twice.
        for number in dict.fromkeys(numbers):
            task = sent.get(number)
            if task is not None:
                (ended if task.ending else back).append(task)
        # In this order: after an exception in between they are in the queue, and their `worker` says so.
        self._to_the_front(back)
        self.under_way -= len(ended)
        for task in ended:
            self._count_ended(task)
        for task in (*back, *ended):
            del sent[task.number]
        return ended

    def end(self, task: Task) -> bool:
        """End a queued task (cancelled, or its pool is over); False when it is not queued."""
        if task.state != QUEUED:
            return False
        self.queued -= 1
        task.ending = task.ending or CANCELLED
        self._count_ended(task)
        if len(self.queue) > 2 * self.queued + _MOST_ENDED:
            # Behind one that waits for long, those that have ended would never come up.
            self.queue = deque(task for task in self.queue if task.state == QUEUED)
        return True

    def fail_everything(self, ended: list[Task], why: str) -> None:
        """End all that has not ended, with the pool.

        Args:
            ended: gets the tasks, oldest first, before they are ended. After an exception (the handler of a
                signal raised it) this may be called again with it; then some are in it twice.
            why: `CANCELLED` or `POOL_BROKEN`.
        """
        tasks = self.unfinished()
        ended.extend(tasks)
        for task in tasks:
            if task.state != ENDED:
                task.ending = task.ending or why
                self._count_ended(task)
        for sent in self.sent.values():
            sent.clear()
        self.queue.clear()
        self.queued = 0
        self.under_way = 0

    # -- workers ---------------------------------------------------------------------------------------------

    def add_worker(self, worker: int) -> dict[int, Task]:
        """A worker exists, with nothing sent to it: where that will be noted, by number."""
        self.sent[worker] = {}
        return self.sent[worker]

    def ending_with(self, worker: int, begun: int | None) -> list[Task]:
        """The tasks that `lose_worker` would end: whoever waits for them is told before they are forgotten.

        Args:
            worker: its key.
            begun: the task that it had begun and not finished, or None.
        """
        # What was to be stopped is not sent again, whether it had begun or not. After an exception (no
        # memory) some may be in the queue already, and stay there.
        return [
            task
            for number, task in self.sent[worker].items()
            if task.worker == worker and (task.ending or (number == begun and not task.has_tries_left()))
        ]

    def lose_worker(self, worker: int, begun: int | None, death: Death) -> None:
        """A worker is dead: what it had not begun is first in the queue again, and what it ran if that has
        tries left.

        Args:
            worker: its key.
            begun: the task that it had begun and not finished, or None.
            death: how it died.
        """
        tasks = {number: task for number, task in self.sent[worker].items() if task.worker == worker}
        ended = self.ending_with(worker, begun)
        for task in ended:
            del tasks[task.number]
        # What it ran comes first.
        back = sorted(tasks.values(), key=lambda task: task.number != begun)
        running = None if begun is None else self.sent[worker].get(begun)
        self._to_the_front(back)
        if running is not None:
            running.deaths = [*(running.deaths or ()), death]
            if running.state == QUEUED:
                self.retried += 1
        del self.sent[worker]
        self.under_way -= len(ended)
        for task in ended:
            self._count_ended(task)

    def divide(self, chunk: Chunk, queued: Sequence[Chunk], crashed: Chunk | None) -> None:
        """The worker of a chunk is dead: its pieces take its place, in front of the queue.

        Args:
            chunk: was sent to the worker, and has begun.
            queued: what is sent again.
            crashed: the item that it died of and that is not tried again, or None.

        After an exception (no memory) it may be called again with the same ones.
        """
        for piece in reversed(queued):
            if piece.state == UNSENT:
                self._to_the_front((piece,))
                self.under_way += 1
                self.submitted += 1
                self.retried += piece.deaths is not None
        if crashed is not None and crashed.state == UNSENT:
            self._count_ended(crashed)
            self.submitted += 1
        # Last: while it is there, the worker has a task that nothing stands for.
        del self.sent[chunk.worker][chunk.number]
        self.submitted -= 1
        self.under_way -= 1
        chunk.state = ENDED

    # -- all -------------------------------------------------------------------------------------------------

    def snapshot(self) -> list[Task]:
        """The tasks there are, in no order, some of which may have ended: quickly, for all wait meanwhile."""
        tasks = list(self.queue)
        for sent in self.sent.values():
            tasks += sent.values()
        return tasks

    def unfinished(self) -> list[Task]:
        """The tasks that have not ended, oldest first."""
        return sorted((task for task in self.snapshot() if task.state != ENDED), key=_number)

    def shortest_timeout(self) -> float:
        """The shortest time limit of the tasks that have not ended; `NEVER`: none has one."""
        limits = [task.timeout for task in self.queue if task.timeout is not None and task.state == QUEUED]
        for sent in self.sent.values():
            limits += [task.timeout for task in sent.values() if task.timeout is not None]
        return min(limits, default=NEVER)

    @property
    def live(self) -> int:
        """How many tasks have not ended."""
        return self.queued + self.under_way

    def recount(self) -> None:
        """Count what there is: an exception may have come between a task and its count."""
        self.under_way = 0
        for worker, sent in self.sent.items():
            for task in sent.values():
                # Else it is in the queue, and `lose_worker` has failed just there.
                if task.worker == worker:
                    # It is with the worker (see `send_first`), and counts once.
                    task.state = SENT
                    self.under_way += 1
        self.queued = sum(1 for task in self.queue if task.state == QUEUED)

    def _to_the_front(self, tasks: Sequence[Task]) -> None:
        for task in reversed(tasks):
            # In this order, and counted one by one: an exception (no memory, the handler of a signal) may
            # come in between.
            self.queue.appendleft(task)
            self.queued += 1
            self.under_way -= 1
            task.state = QUEUED
            task.worker = -1

    def _count_ended(self, task: Task) -> None:
        task.state = ENDED
        if task.ending == CANCELLED:
            self.cancelled += 1
        elif task.ending:
            self.failed += 1
        else:
            self.crashed += 1


def _number(task: Task) -> int:
    return task.number
