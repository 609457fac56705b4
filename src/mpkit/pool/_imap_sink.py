"""Where the outcomes of a lazy map arrive, and wait until they are taken."""

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

__all__ = ["ImapSink"]


class ImapSink:
    """Where the outcomes of a lazy map arrive.

    The tasks hold it, and not the iterator, which so ends when its user drops it. It is what the collector
    waits for as well.
    """

    _can_be_told_again = False

    def __init__(self, engine: Engine, progress: Progress, function: object, *, ordered: bool) -> None:
        self._engine = engine
        # Shared objects in it live as long as there are tasks of it.
        self._function: object = function
        self._progress = progress
        self.ordered = ordered
        #: Items that have been sent, and those of them that `take` has given out.
        self.sent_items: int = 0
        self.next: int = 0
        #: Tasks that have not ended, by number.
        self.tasks: dict[int, Task] = {}
        # In the order of the input; for the ordered iterator alone.
        self._order: deque[Task] = deque()
        # Outcomes of neighbouring items (how many, kind, data, whether of a chunk): in the order of arrival,
        # or by the first one.
        self._arrived: deque[tuple[int, int, object, bool]] = deque()
        self._by_first: dict[int, tuple[int, int, object, bool]] = {}
        #: One for each outcome that a thread is just bringing.
        self._arriving: set[object] = set()
        self._latest: Task | None = None
        self._is_closed = False
        self._made_condition: threading.Condition | None = None

    # -- of tasks --------------------------------------------------------------------------------------------

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
        """Sending the latest task has failed: if it never got to the pool, nothing will come of it."""
        with deferred_interrupts():
            task, self._latest = self._latest, None
            # Ctrl-C may also come when the pool has it already.
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
        """The next item cannot be sent, so this is its outcome."""
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
            # Once more: the handler of a signal may have raised an exception there.
            self._arriving.discard(mark)
        condition = self._made_condition
        if condition is not None:
            # Not for ever: who sleeps at it sleeps in slices, and the collector's thread must go on.
            InterruptibleLock(condition).run_within(CONDITION_SECONDS, condition.notify_all)

    def _bring(self, task: Task, kind: int, data: object) -> None:
        """May be done again: what the exception of a signal handler has left out is done then."""
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
        """Pieces stand from now on for what of a task had not been done."""
        for piece in pieces:
            self.tasks[piece.number] = piece
        task.stop = task.done
        task.drained = True
        self._forget_if_told(task)
        if self._is_closed:
            self._engine.submission.cancel_later(list(pieces))

    def _forget_if_told(self, task: Chunk) -> None:
        # Its end may be told while another thread still has an earlier part of it in its hands. Each notes
        # what it brings, then looks whether that was the end: so the last one finds nothing missing.
        if sum(list(task.told.values())) >= task.items:
            self.tasks.pop(task.number, None)

    def _arrive(self, first: int, length: int, kind: int, data: object, *, of_chunk: bool) -> None:
        outcome = (length, kind, data, of_chunk)
        if self.ordered:
            self._by_first[first] = outcome
        else:
            self._arrived.append(outcome)
        # What was cancelled, at the end of the pool say, has not been done.
        if not isinstance(data, TaskCancelled):
            self._progress.step(length)

    # -- what the collector waits for ------------------------------------------------------------------------

    @property
    def task_id(self) -> int:
        """What the workers should ring for."""
        order = self._order
        if self.ordered and order and order[0].number in self.tasks:
            return order[0].number
        return SOON

    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for: the next outcome is there, or none will come.

        The last one may be taken while the thread that has brought it is not done with it: whoever asks for
        another one then finds this not idle yet, and has to be told when it is.
        """
        return self.has_next() or self.is_idle()

    def has_next(self) -> bool:
        """Whether the next outcome is there."""
        return self.next in self._by_first if self.ordered else bool(self._arrived)

    def is_idle(self) -> bool:
        """Whether nothing is there, and nothing will come of what has been sent."""
        # In this order, the reverse of that in `_settle`: what another thread is bringing is seen somewhere.
        return not self.tasks and not self._arriving and not self.has_next()

    def _ensure_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads."""
        if self._made_condition is None:
            self._made_condition = threading.Condition()
        return self._made_condition

    # -- of the iterator -------------------------------------------------------------------------------------

    def take(self) -> tuple[int, int, object, bool]:
        """The next outcome, which is there: of how many items, its kind and data, whether of a chunk."""
        if not self.ordered:
            return self._arrived.popleft()
        first = self.next
        outcome = self._by_first[first]
        # First: after Ctrl-C in between, an item is lost, but nobody waits for it.
        self.next += outcome[0]
        del self._by_first[first]
        order = self._order
        while order and order[0].offset + order[0].items <= self.next:
            order.popleft()
        return outcome

    def close(self) -> None:
        """Cancel what has not ended, and forget what has. Takes no lock, and may be called again."""
        self._is_closed = True
        # It has this sink, and would stay with it, and with the function, until the next garbage collection.
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
