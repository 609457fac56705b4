r"""The state of every task: a pure state machine without I/O, clock or threads.

A task is *queued* (in the parent), *sent* (in the inbox of a worker, or being run by it) or *ended*. It ends
exactly once, and is then no longer in the ledger::

    submit -> QUEUED --send--> SENT --finish--------------------------> ENDED
                 ^   \           |--take_back--> QUEUED (in front)
                 |    cancel      |--worker lost, not begun --> QUEUED (in front), not counted
                 |     \          |--worker lost while it ran: retries left --> QUEUED (in front)
                 |      ENDED     |                             none left    --> ENDED
                 +----------------+

If a running task is to be stopped (time limit, cancel, memory), the reason is stored in `Task.ending`:
whatever its worker does from then on, the task ends, and is never sent again.

All methods are called under the dispatcher's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from mpkit._platform.hints import override
from mpkit._platform.threads.deadlines import NEVER
from mpkit.pool._engine.functions import Function

# States of a task.
#: The ledger does not know it yet.
UNSENT = 0
QUEUED = 1
SENT = 2
ENDED = 3

# Why a task is to end, whatever its worker does (`Task.ending`).
#: It is not.
NOT_ENDING = ""
TIMED_OUT = "timeout"
CANCELLED = "cancel"
TOO_BIG = "memory"
#: Its pool is broken.
POOL_BROKEN = "broken"

#: How many cancelled tasks may stay in the queue, in addition to as many as there are others.
_MOST_ENDED = 64


# Called as a function: see "Light imports" in docs/explanation/architecture.md.
Death = NamedTuple(
    "Death",
    [
        ("pid", int),
        ("exitcode", int | None),
        ("signal", str | None),
        ("stack", str | None),
        ("rss_bytes", int | None),
        ("likely_oom", bool),
    ],
)
"""How a worker ended while it ran a task: the arguments of `WorkerCrashed` other than the task."""


class Sink(Protocol):
    """What takes the outcome of a task: its handle, or the part of a map that receives outcomes.

    Attributes:
        _can_be_told_again: whether an interrupt may come in the middle of `_settle`, because calling it again
            does what was left out.
    """

    @property
    def _can_be_told_again(self) -> bool: ...

    def _sent(self, task: Task) -> object:
        """Note the task that the outcome will come from. Called before it is sent."""

    def _next_item(self) -> int | None:
        """The index, in the input of the map, of the item that is sent next; None if this is not a map."""

    def _settle(self, task: Task, kind: int, data: object) -> object:
        """Take the outcome of a task. Called by a thread that holds no lock of the pool.

        Of several calls for the same items, only the first one has an effect.

        Args:
            task: whose outcome it is.
            kind: what kind of outcome it is: see the kinds in `mpkit.pool._protocol.channel`.
            data: what belongs to an outcome of this kind.
        """


class Task:
    """One unit of work, as the parent knows it.

    Attributes:
        number: its id, unique in the pool and rising.
        sink: is told the outcome.
        record: the bytes that are written into an inbox.
        function: the name and the measured run time of what it calls.
        timeout: seconds that it may run, or None.
        retries: how many deaths of its worker it survives.
        state: `UNSENT`, `QUEUED`, `SENT` or `ENDED`.
        worker: the key of the worker that it has been sent to; -1: it is with none.
        offset: the index of its first item in the input of a map; set by its sink.
        kept: objects that must live until it has ended (shared objects among its arguments, parcels).
        deaths: how the workers died that died while they ran it.
        ending: why it is to end whatever its worker does, or `NOT_ENDING`.
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
        """How many items of a map it consists of."""
        return 1

    def has_tries_left(self) -> bool:
        """Whether it is tried again if the worker that runs it dies now."""
        return not self.ending and len(self.deaths or ()) < self.retries


class Chunk(Task):
    """A task that consists of several items of a map.

    Attributes:
        start: the index of its first item, in the list that its record holds.
        stop: the index behind its last item.
        done: the index of the first item whose outcome has not come yet; outcomes of those before it have
            come in parts.
        pieces: the chunks that have replaced it since its worker died; empty: it has not been divided.
        told: which outcomes its sink has been told: the number of items by the index of the first one.
        drained: no worker will hand in anything more of it, but parts may still be on their way to its sink.
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
    """The sink of chunks. Of a part, the kind is `PART` and the data ``(first item, kind, data, length)``."""

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> object:
        """The worker of `task` is dead: `pieces` replace the items of it that have no outcome yet."""


class Ledger:
    """Every task that has not ended, and how many have ended in which way.

    Attributes:
        queue: the queued tasks, next one first; and cancelled ones, until they come up.
        queued: how many tasks in `queue` are queued.
        sent: the tasks that have been sent to each worker, by number; by the worker's key.
        under_way: how many tasks have been sent and not ended.
        submitted, succeeded, failed, cancelled, crashed, retried: see `PoolStatistics`.
    """

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
        """The next task to send, or None. It stays queued."""
        queue = self.queue
        while queue:
            task = queue[0]
            if task.state == QUEUED:
                return task
            queue.popleft()
        return None

    def send_first(self, worker: int) -> None:
        """The task that `first` has returned has been sent to `worker`."""
        # In this order: after an exception in between, it belongs to the worker, and `first` skips it.
        task = self.queue[0]
        task.worker = worker
        self.sent[worker][task.number] = task
        task.state = SENT
        self.queue.popleft()
        self.queued -= 1
        self.under_way += 1

    def send_new(self, worker: int, task: Task) -> None:
        """A new task has been sent straight to `worker`."""
        self.submitted += 1
        self.under_way += 1
        task.state = SENT
        task.worker = worker
        self.sent[worker][task.number] = task

    def finish(self, worker: int, number: int, succeeded: bool) -> Task | None:
        """`worker` has finished a task: end it.

        Returns:
            The task; None if it had ended before, because it was settled while it ran.
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
        """Tasks have been taken out of `worker`'s inbox: put them in front of the queue, in this order.

        Returns:
            Those that were to be stopped: they have ended instead of being queued again.
        """
        sent = self.sent[worker]
        ended: list[Task] = []
        back: list[Task] = []
        # A number may be there twice: after an exception between putting a task into a ring and noting it
        # here, the task was sent twice.
        for number in dict.fromkeys(numbers):
            task = sent.get(number)
            if task is not None:
                (ended if task.ending else back).append(task)
        # Removed from `sent` last: after an exception in between, `Task.worker` says where a task belongs.
        self._to_the_front(back)
        self.under_way -= len(ended)
        for task in ended:
            self._count_ended(task)
        for task in (*back, *ended):
            del sent[task.number]
        return ended

    def end(self, task: Task) -> bool:
        """End a queued task, as cancelled unless it has another reason to end; False if it is not queued."""
        if task.state != QUEUED:
            return False
        self.queued -= 1
        task.ending = task.ending or CANCELLED
        self._count_ended(task)
        if len(self.queue) > 2 * self.queued + _MOST_ENDED:
            # While the first task has to wait for long, ended ones behind it would pile up.
            self.queue = deque(task for task in self.queue if task.state == QUEUED)
        return True

    def fail_everything(self, ended: list[Task], why: str) -> None:
        """End all tasks that have not ended, because the pool ends.

        After an exception of a signal handler it may be called again, with the same list; then some tasks are
        in the list twice.

        Args:
            ended: the tasks are added to it, oldest first, before they are ended.
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
        """Add a worker; returns the dictionary of the tasks that have been sent to it, by number."""
        self.sent[worker] = {}
        return self.sent[worker]

    def ending_with(self, worker: int, begun: int | None) -> list[Task]:
        """The tasks that `lose_worker` is going to end, so that their sinks can be told before.

        Args:
            worker: its key.
            begun: the task that it had begun and not finished, or None.
        """
        # A task that was to be stopped is not sent again, whether it had begun or not. After an exception (no
        # memory) some tasks may be in the queue already (their `worker` is -1), and stay there.
        return [
            task
            for number, task in self.sent[worker].items()
            if task.worker == worker and (task.ending or (number == begun and not task.has_tries_left()))
        ]

    def lose_worker(self, worker: int, begun: int | None, death: Death) -> None:
        """A worker is dead: put its tasks in front of the queue, except those of `ending_with`, which end.

        Args:
            worker: its key.
            begun: the task that it had begun and not finished, or None.
            death: how it died.
        """
        tasks = {number: task for number, task in self.sent[worker].items() if task.worker == worker}
        ended = self.ending_with(worker, begun)
        for task in ended:
            del tasks[task.number]
        # The task that it ran comes first.
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
        """The worker of a chunk is dead: replace the chunk by its pieces, in front of the queue.

        After an exception (no memory) it may be called again, with the same arguments.

        Args:
            chunk: the chunk; the worker had begun it.
            queued: the pieces that are sent again.
            crashed: the piece with the item that the worker died of, if it is not tried again.
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
        # Last: if an exception comes before this, the chunk is still known as a task of the worker, and this
        # method is called again.
        del self.sent[chunk.worker][chunk.number]
        self.submitted -= 1
        self.under_way -= 1
        chunk.state = ENDED

    # -- all -------------------------------------------------------------------------------------------------

    def snapshot(self) -> list[Task]:
        """All tasks, in no order; some may have ended. Quick, because other threads wait for the lock."""
        tasks = list(self.queue)
        for sent in self.sent.values():
            tasks += sent.values()
        return tasks

    def unfinished(self) -> list[Task]:
        """The tasks that have not ended, oldest first."""
        return sorted((task for task in self.snapshot() if task.state != ENDED), key=lambda task: task.number)

    def shortest_timeout(self) -> float:
        """The shortest time limit of the tasks that have not ended, in seconds; `NEVER`: none has one."""
        limits = [task.timeout for task in self.queue if task.timeout is not None and task.state == QUEUED]
        for sent in self.sent.values():
            limits += [task.timeout for task in sent.values() if task.timeout is not None]
        return min(limits, default=NEVER)

    @property
    def live(self) -> int:
        """How many tasks have not ended."""
        return self.queued + self.under_way

    def recount(self) -> None:
        """Count the tasks anew: an exception may have come between moving a task and counting it."""
        self.under_way = 0
        for worker, sent in self.sent.items():
            for task in sent.values():
                # Otherwise it is in the queue already, and `lose_worker` was interrupted just then.
                if task.worker == worker:
                    # It may still be in the queue as well (see `send_first`), and must count once.
                    task.state = SENT
                    self.under_way += 1
        self.queued = sum(1 for task in self.queue if task.state == QUEUED)

    def _to_the_front(self, tasks: Sequence[Task]) -> None:
        for task in reversed(tasks):
            # In this order, and counted one by one, because an exception (no memory, the handler of a signal)
            # may come in between: until `worker` is -1, the task still belongs to the worker.
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
