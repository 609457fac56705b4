"""Where the outcomes of a lazy map arrive, and stay until the iterator takes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.errors import TaskCancelled
from mpkit.pool._chunking import piece_of
from mpkit.pool._engine.ledger import SENT, UNSENT, Chunk, Task
from mpkit.pool._engine.progress import Progress
from mpkit.pool._handle import CONDITION_SECONDS
from mpkit.pool._protocol.channel import PART, RAISED, SOON

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine


class ImapSink:
    """The sink of all tasks of one lazy map, and what a thread waits for that wants the next result.

    The tasks refer to this object and not to the iterator, so the iterator ends as soon as its user drops it.
    """

    _can_be_told_again = False

    def __init__(self, engine: Engine, progress: Progress, function: object, *, ordered: bool) -> None:
        self._engine = engine
        # Kept alive as long as there are tasks, with the shared objects in it.
        self._function: object = function
        self._progress = progress
        self.ordered = ordered
        #: How many items have been sent.
        self.sent_items: int = 0
        #: The index of the next item whose outcome `take` returns; for the ordered iterator only.
        self.next: int = 0
        #: Tasks that have not ended, by number.
        self.tasks: dict[int, Task] = {}
        # Tasks in the order of the input; for the ordered iterator only.
        self._order: deque[Task] = deque()
        # Outcomes of neighbouring items (number of items, kind, data, whether of a chunk): in the order of
        # arrival for the unordered iterator, by the index of the first item for the ordered one.
        self._arrived: deque[tuple[int, int, object, bool]] = deque()
        self._by_first: dict[int, tuple[int, int, object, bool]] = {}
        #: One mark for each outcome that a thread is just bringing.
        self._arriving: set[object] = set()
        # The task that was sent last, in case sending it fails.
        self._latest: Task | None = None
        self._is_closed = False
        self._made_condition: threading.Condition | None = None

    # -- as the sink of tasks --------------------------------------------------------------------------------

    def _sent(self, task: Task) -> None:
        """Remember a task that is about to be sent."""
        self._latest = task
        self.tasks[task.number] = task
        task.offset = self.sent_items
        self.sent_items += task.items
        if self.ordered:
            self._order.append(task)

    def _next_item(self) -> int:
        return self.sent_items

    def forget_unsent(self) -> None:
        """Sending the latest task has failed: unless the pool has it all the same, forget it."""
        with deferred_interrupts():
            task, self._latest = self._latest, None
            # If it was Ctrl-C that came, the pool may have the task already.
            if task is None or not self._engine.dispatcher.lock.run(self._is_nowhere, task):
                return
            self.tasks.pop(task.number, None)
            self.sent_items = task.offset
            if self._order and self._order[-1] is task:
                self._order.pop()

    def _is_nowhere(self, task: Task) -> bool:
        """Whether the pool does not know the task (holding the dispatcher's lock)."""
        if task.state == SENT:
            return task.number not in self._engine.dispatcher.ledger.sent.get(task.worker, ())
        return task.state == UNSENT

    def fail_next(self, error: BaseException) -> None:
        """The next item cannot be sent: take the error as its outcome."""
        first = self.sent_items
        self.sent_items += 1
        self._arrive(first, 1, RAISED, error, of_chunk=False)

    def _settle(self, task: Task, kind: int, data: object) -> None:
        """Take the outcome of a task, or a part of it."""
        mark = object()
        try:
            try:
                # See `is_idle`.
                self._arriving.add(mark)
                self._bring(task, kind, data)
            finally:
                self._arriving.discard(mark)
        finally:
            # Again, in case the handler of a signal has raised an exception in the `finally` block above.
            self._arriving.discard(mark)
        condition = self._made_condition
        if condition is not None:
            # With a time limit: the collector's thread must go on, and waiting threads wake by themselves.
            InterruptibleLock(condition).run_within(CONDITION_SECONDS, condition.notify_all)

    def _bring(self, task: Task, kind: int, data: object) -> None:
        """Take the outcome of a task, or a part of it.

        May be called again with the same arguments after an exception of a signal handler: it then does what
        was left out.
        """
        first, length, inner, data = piece_of(task, kind, data)
        if isinstance(task, Chunk):
            is_new = first not in task.told
            if is_new:
                task.told[first] = length
        else:
            is_new = self.tasks.pop(task.number, None) is not None
        if is_new and not self._is_closed:
            self._arrive(first, length, inner, data, of_chunk=isinstance(task, Chunk))
        if isinstance(task, Chunk):
            if kind != PART:
                task.drained = True
            if task.drained:
                self._forget_if_told(task)

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> None:
        """The worker of a chunk is dead: `pieces` stand for the items of it that have no outcome yet."""
        for piece in pieces:
            self.tasks[piece.number] = piece
        task.stop = task.done
        task.drained = True
        self._forget_if_told(task)
        if self._is_closed:
            self._engine.submission.cancel_later(list(pieces))

    def _forget_if_told(self, task: Chunk) -> None:
        # A thread may bring the end of a chunk while another thread is still bringing an earlier part. Each
        # of them notes what it brings and then checks whether all is there: so the last one finds that it is.
        if sum(list(task.told.values())) >= task.items:
            self.tasks.pop(task.number, None)

    def _arrive(self, first: int, length: int, kind: int, data: object, *, of_chunk: bool) -> None:
        outcome = (length, kind, data, of_chunk)
        if self.ordered:
            self._by_first[first] = outcome
        else:
            self._arrived.append(outcome)
        # Items that were cancelled (because the pool was terminated, say) do not count as done.
        if not isinstance(data, TaskCancelled):
            self._progress.step(length)

    # -- as a `Waiter`: what a thread waits for that wants the next result -----------------------------------

    @property
    def task_id(self) -> int:
        """The task whose outcome comes next, so that its worker rings for it; `SOON`: any outcome will do."""
        order = self._order
        if self.ordered and order and order[0].number in self.tasks:
            return order[0].number
        return SOON

    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for: the next outcome is there, or none will come.

        The last outcome may be taken before the thread that brought it has left `_settle`. A consumer that
        then asks for another one waits, and is notified when this is idle.
        """
        return self.has_next() or self.is_idle()

    def has_next(self) -> bool:
        """Whether the next outcome is there."""
        return self.next in self._by_first if self.ordered else bool(self._arrived)

    def is_idle(self) -> bool:
        """Whether no outcome is there, and none will come from what has been sent."""
        # Checked in the order in which an outcome moves (see `_settle`), so one that another thread is just
        # bringing is not overlooked.
        return not self.tasks and not self._arriving and not self.has_next()

    def _ensure_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads."""
        if self._made_condition is None:
            self._made_condition = threading.Condition()
        return self._made_condition

    # -- of the iterator -------------------------------------------------------------------------------------

    def take(self) -> tuple[int, int, object, bool]:
        """Take the next outcome, which must be there: number of items, kind, data, whether of a chunk."""
        if not self.ordered:
            return self._arrived.popleft()
        first = self.next
        outcome = self._by_first[first]
        # Before the outcome is removed: if Ctrl-C comes in between, an item is lost, but nobody waits for it.
        self.next += outcome[0]
        del self._by_first[first]
        order = self._order
        while order and order[0].offset + order[0].items <= self.next:
            order.popleft()
        return outcome

    def close(self) -> None:
        """Cancel the tasks that have not ended, and drop outcomes. Takes no lock, and may be called again."""
        self._is_closed = True
        # Break a reference cycle: the task refers to this sink.
        self._latest = None
        engine = self._engine
        if not engine.status.is_forked():
            if self.tasks:
                engine.submission.cancel_later(list(self.tasks.values()))
            if self._progress.is_shown:
                engine.supervisor.request(self._progress.close)
        self.tasks.clear()
        self._order.clear()
        self._arrived.clear()
        self._by_first.clear()
