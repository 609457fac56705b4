"""The worker: what runs in a child process of a pool. It imports little, because every worker pays for it.

One turn of `_Worker.serve`: take one record from the inbox, call the function, put the outcome into the
outbox, ring the parent if it wants to know. The order of the stores is the protocol (see
``docs/explanation/pool-protocol.md``): the task's number goes into the status row before the record leaves
the inbox, and is cleared after the outcome is in the outbox.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple, TypeAlias, cast

from mpkit._platform.hints import override
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.readiness import never_wait
from mpkit._shm.memory import trail
from mpkit._wire import codec, failure
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import (
    BAD_INITIALIZER,
    BY_VALUE,
    CHUNK,
    DONE,
    ERROR,
    FRONT,
    GOODBYE,
    HELLO,
    INITIALIZING,
    ITEM,
    LEAVE,
    LEAVING,
    PARCELS,
    PID,
    POOL,
    READY,
    RESULT_HEAD,
    SLEEPING,
    STACK_PIPE,
    STARTED,
    STATE,
    STOP,
    TASK,
    TASK_HEAD,
    Barrier,
    Board,
    Channel,
)
from mpkit.pool._protocol.patience import Patience
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL
from mpkit.pool._worker.bells import Bells
from mpkit.pool._worker.calls import Calls
from mpkit.pool._worker.chunks import ChunkRunner
from mpkit.pool._worker.fork import end_fork, give_up_stack_pipe
from mpkit.pool._worker.importing import become_worker, is_importing
from mpkit.pool._worker.opened import forget_closed, opened
from mpkit.pool._worker.outbox import Outbox, OutboxOfFork

#: How long a worker sleeps before it looks again although nobody has woken it: a net below the protocol, and
#: no part of it.
_SLICE_SECONDS = 2.0
#: It looks this often whether shared objects that it has open have been closed.
_LOOK_AFTER_SHARED_NS = 500_000_000
_LONGEST_RUN = (1 << 32) - 1


Initializer: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


WorkerPlan = NamedTuple(
    "WorkerPlan",
    [
        ("channel", Channel),
        ("board", Board),
        ("stack_pipe", Connection | None),
        # Pickled; or as it is, because it can only be inherited, or be pickled while a process is started.
        ("initializer", bytes | Initializer | None),
        ("pickler", Pickler),
        ("tasks", int | None),
        ("max_memory_bytes", int | None),
        ("forward_logs", bool),
        ("log_level", int),
        # 1; in a pool that a worker makes, one more than that worker's.
        ("generation", int),
        ("link", ParentLink),
    ],
)
"""What a worker is told when it starts."""


class WorkerChild(ChildProcess):
    """The process that a worker is.

    The pool closes it when the worker has ended, and programs may have it in hand then: `active_children`
    returns it. Like one that nobody closes, it goes on to say how it has ended, and cannot be ended again.
    """

    @override
    def _check_closed(self) -> None:
        pass

    @override
    def _mpkit_arrived(self) -> None:
        # Until there is a handler, an interrupt would be a traceback for nothing. (What comes from the fork
        # server cannot be started with the signal blocked; before this, its start ends silently.)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(plan: WorkerPlan) -> None:
    """Serve until told to leave. The target of the child process."""
    plan.link.die_with_parent()
    try:
        worker = _Worker(plan)
    finally:
        if not plan.link.is_parent_alive():
            # Whoever removes what that has left has removed the files, or need not look for this process.
            os._exit(1)
    worker.prepare()
    if worker.initialize():
        worker.serve()


class _Worker:
    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.channel = plan.channel
        trail.begin(self.channel.segment)
        self.board = plan.board
        self.bells = Bells(self.channel, self.board)
        self.outbox = Outbox(self.channel, self.bells)
        self.chunks = ChunkRunner(self, self.channel, self.bells)
        self.calls = Calls(self, self.chunks)
        # A fork has its parent's count.
        self.parcels_before = payload.parcels_made()
        #: The number of the task whose code is running; 0 while the worker's own code is.
        self.inside = 0
        #: The parent has interrupted the task: what it raises from now on is no error of its own.
        self.stopping = False
        #: The task was interrupted in the middle of an import: a module may be half there.
        self.half_imported = False
        #: This process is a fork of the worker.
        self.forked = False
        self._reports_to_stderr = False
        self.stop_forwarding: Callable[[], None] | None = None
        #: Not before this moment it looks after shared objects again.
        self.shared_looked_after = 0

    # -- the start -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Signals, stacks, logging."""
        become_worker(globals(), self.plan.generation)
        # A forked worker has the parent's handlers; a SIGTERM must end it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._on_interrupt)
        if sys.platform != "win32":
            # Whoever started this process may have blocked them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        pipe = self.plan.stack_pipe
        if pipe is not None:
            # Not blocking: a stack that does not fit into the pipe is cut off, and never stops the worker.
            never_wait(pipe.fileno())
            # It has come here as one that the programs of tasks would get as well.
            os.set_inheritable(pipe.fileno(), False)
            self._reports_to_stderr = faulthandler.is_enabled()
            faulthandler.enable(pipe.fileno(), all_threads=True)
            if STACK_SIGNAL is not None and hasattr(faulthandler, "register"):
                faulthandler.register(STACK_SIGNAL, pipe.fileno(), all_threads=True, chain=False)
        if self.plan.forward_logs:
            from mpkit.pool._protocol.logs import forward_to  # noqa: PLC0415  loads logging, for those that want it

            self.stop_forwarding = forward_to(self.outbox.put_log, lambda: self.inside, self.plan.log_level)
        in_forked_children(self._become_fork)
        words = self.channel.words
        words[PID] = os.getpid()
        words[POOL] = int(self.board.segment.name.rpartition("-")[2], 16)
        words[STACK_PIPE] = 0 if pipe is None or not hasattr(faulthandler, "register") else pipe.fileno() + 1
        words[STATE] = INITIALIZING

    def _become_fork(self) -> None:
        """This process has been forked by a task: it is no worker, and uses nothing of the worker's."""
        self.forked = True
        self.outbox = OutboxOfFork(self.channel, self.bells)
        self.chunks.drop_block()
        if self.stop_forwarding is not None:
            self.stop_forwarding()
        if self.plan.stack_pipe is not None:
            give_up_stack_pipe(reports_to_stderr=self._reports_to_stderr)

    def initialize(self) -> bool:
        """Run the pool's initializer; False when it raised, which the parent is told."""
        if self.plan.initializer is not None:
            try:
                call = self.plan.initializer
                if isinstance(call, bytes):
                    call = cast("Initializer", codec.contained(codec.loads, call))
                function, args = call
                function(*args)
            except BaseException as error:  # noqa: BLE001  SystemExit too: it would end the worker without a word
                if self.forked:
                    end_fork(error)
                data = failure.pack_exception(error, self.plan.pickler)
                if len(data) > payload.INLINE_BYTES:
                    text = f"{type(error).__name__}: {str(error)[:2000]} (cut off: too long to be sent whole)"
                    data = failure.pack_exception(SerializationError(text))
                self.outbox.put(RESULT_HEAD.pack(0, 0, BAD_INITIALIZER) + data)
                self.bells.ring_all()
                return False
            if self.forked:
                end_fork(None)
        self.channel.words[STATE] = READY
        self.outbox.put(RESULT_HEAD.pack(0, 0, HELLO))
        self.bells.ring_all()
        return True

    def _on_interrupt(self, _signum: int, frame: FrameType | None) -> None:
        # Ctrl-C in a terminal goes to all processes of the group: what happens then is the parent's business.
        # Only an interrupt meant for the very task that is running counts.
        if self.forked:
            raise KeyboardInterrupt
        words = self.channel.words
        if self.inside and words[STOP] == self.inside:
            self.stopping = True
            self.half_imported = self.half_imported or is_importing(frame)
            if self.outbox.busy_here():
                # In the middle of a log record: let it be finished first.
                self.outbox.interrupted = True
                return
            words[STOP] = 0
            raise KeyboardInterrupt

    # -- the work --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Do tasks until told to leave."""
        words = self.channel.words
        left = self.plan.tasks
        most_memory = self.plan.max_memory_bytes
        number = 0
        awake = False
        patience = Patience()
        barrier = Barrier()
        clock = CLOCK.monotonic_ns
        finished = 0
        while True:
            record = self._take()
            if record is None:
                if number:
                    barrier()
                    awake = not self.board.words[FRONT]
                    self.bells.ring(number, finished, idle=True)
                    number = 0
                self._sleep(patience, barrier, parent_awake=awake)
                if opened:
                    self._look_after_shared(clock())
                continue
            if number:
                # Taking the record went through the inbox's lock: between the outcome and this look lies a
                # full barrier.
                self.bells.ring(number, finished, idle=False)
            number, length, flags = TASK_HEAD.unpack_from(record)
            if flags & LEAVE:
                break
            started = words[STARTED]
            kind, data = self._run(number, length, flags, record)
            record = b""
            finished = clock()
            took = finished - started
            self.outbox.put(RESULT_HEAD.pack(number, min(_LONGEST_RUN, took), kind) + data)
            data = b""
            if flags & CHUNK:
                words[ITEM] = 0
            words[TASK] = 0
            words[DONE] += 1
            if opened:
                self._look_after_shared(finished)
            if left is not None:
                left -= 1
                if left <= 0:
                    break
            if most_memory is not None and (own_rss_bytes() or 0) > most_memory:
                # What it has kept must not be held against the next task.
                break
            if self.half_imported:
                # Nor what an interrupt has left of a module: an import removes the module that it could not
                # finish, and keeps the modules within it, which do not go with what is imported next.
                break
        words[PARCELS] = payload.parcels_made() - self.parcels_before
        words[STATE] = LEAVING
        if not flags & LEAVE:
            # Who was told to leave need not say so. Otherwise the end of the process says it as well, but
            # comes only when no thread and no process is left that a task has started here.
            self.outbox.put(RESULT_HEAD.pack(0, 0, GOODBYE))
            self.bells.ring_all()

    def _look_after_shared(self, now: int) -> None:
        """Let go of shared objects that have been closed, if it is time to look for them."""
        if now >= self.shared_looked_after:
            self.shared_looked_after = now + _LOOK_AFTER_SHARED_NS
            forget_closed()

    def _take(self) -> bytes | None:
        """The next record, or None.

        Only here the status row gets its number, and the inbox loses the record.
        """
        channel = self.channel
        acquire = channel.lock.acquire
        if not acquire(False):
            # The parent is taking tasks back. Should it die meanwhile, so does this worker.
            while not acquire(True, _SLICE_SECONDS):
                pass
        try:
            inbox = channel.inbox
            record = inbox.peek()
            if record is not None:
                # When it began, then which: whoever sees the number sees the right time.
                channel.words[STARTED] = CLOCK.monotonic_ns()
                channel.words[TASK] = int.from_bytes(record[:8], "little")
                if not TOTAL_STORE_ORDER:
                    full_fence()
                inbox.drop()
            return record
        finally:
            channel.lock.release()

    def _run(self, number: int, length: int, flags: int, record: bytes) -> tuple[int, bytes]:
        """Call the function of a record: kind and data of the outcome."""
        pickler: Pickler = "cloudpickle" if flags & BY_VALUE else "pickle"
        try:
            try:
                self.stopping = False
                self.inside = number
                if self.channel.words[STOP] == number:
                    # The interrupt may have come when the task was taken and nobody was inside yet, and comes
                    # only once. (If it comes now: whoever clears the word raises, this or the handler.)
                    self.stopping = True
                    self.channel.words[STOP] = 0
                    raise KeyboardInterrupt
                outcome = self.calls.make(number, length, flags, record, pickler)
            finally:
                # From here on an interrupt comes too late. One that comes just before is caught below: there
                # is only one for each task.
                self.inside = 0
        except BaseException as error:  # noqa: BLE001  SystemExit and KeyboardInterrupt of a task go to its caller too
            if self.forked:
                end_fork(error)
            self.inside = 0
            try:
                return payload.dump_error(error, pickler)
            except BaseException as second:  # noqa: BLE001  no room for a parcel, or an exception class that fights back
                text = f"the task raised {type(error).__name__}, which cannot be sent: {second!r}"
                return ERROR, failure.pack_exception(SerializationError(text))
        return outcome

    def _sleep(self, patience: Patience, barrier: Barrier, *, parent_awake: bool) -> None:
        """Wait for a record: look for a moment, then sleep."""
        channel = self.channel
        is_empty = channel.inbox.is_empty
        looks = patience.looks(partner_looks=parent_awake)
        if looks:
            for _ in range(looks):
                if not is_empty():
                    patience.paid()
                    return
            patience.failed()
        words = channel.words
        words[SLEEPING] = 1
        barrier()
        if is_empty():
            channel.wake.acquire(True, _SLICE_SECONDS)
        words[SLEEPING] = 0


def own_rss_bytes() -> int | None:
    """Resident memory of this process, or None if it cannot be read."""
    from mpkit._platform.resources import memory  # noqa: PLC0415  only with a limit

    return memory.rss_bytes(os.getpid())


__all__ = ["Initializer", "WorkerChild", "WorkerPlan", "main"]
