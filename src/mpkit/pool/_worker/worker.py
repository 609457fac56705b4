"""The worker: what runs in a child process of a pool. It imports little, to start quickly.

One turn of `_Worker.serve`: take a record out of the inbox, call the function, put the outcome into the
outbox, ring a bell if a thread of the parent wants to know. The order of the stores is part of the protocol
(see ``docs/explanation/pool-protocol.md``): the number of the task is stored in the status row before the
record leaves the inbox, and is cleared after the outcome is in the outbox.
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
    SLEEPS_FOR_RECORDS,
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

#: How long a worker sleeps before it checks its inbox without having been woken. A safety net only: the
#: protocol loses no wake-up.
_SLICE_SECONDS = 2.0
#: How often to check, at most, whether shared objects that are open have been closed.
_LOOK_AFTER_SHARED_NS = 500_000_000
#: The longest run time that fits into a record, in nanoseconds.
_LONGEST_RUN = (1 << 32) - 1


#: A function and its arguments.
Initializer: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


# Called as a function: see "Light imports" in docs/explanation/architecture.md.
WorkerPlan = NamedTuple(
    "WorkerPlan",
    [
        ("channel", Channel),
        ("board", Board),
        # The writing end of the pipe for stacks.
        ("stack_pipe", Connection | None),
        # Pickled; or the objects themselves (see `mpkit.pool._engine.initializer`).
        ("initializer", bytes | Initializer | None),
        # How to pickle the error of the initializer.
        ("pickler", Pickler),
        # After how many tasks to leave; None: never.
        ("maxtasksperchild", int | None),
        ("max_memory_bytes", int | None),
        # The level of the parent's root logger; None: log records are not forwarded.
        ("log_level", int | None),
        # See `mpkit.pool._worker.importing.generation`.
        ("generation", int),
        ("link", ParentLink),
    ],
)
"""What a worker is given when it starts."""


class WorkerChild(ChildProcess):
    """The process object of a worker.

    The pool closes it when the worker has ended. Programs may still have it, because `active_children`
    returns it. So closing makes no difference to them: it still says how it has ended, and
    terminating it does nothing.
    """

    @override
    def _check_closed(self) -> None:
        pass

    @override
    def _mpkit_arrived(self) -> None:
        # Until the worker has its own handler, an interrupt would only print a traceback. (Children of the
        # fork server cannot be started with the signal blocked. Before this line, an
        # interrupt ends them silently.)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(plan: WorkerPlan) -> None:
    """Run a worker until it leaves. The target of the child process."""
    plan.link.die_with_parent()
    try:
        worker = _Worker(plan)
    finally:
        if not plan.link.is_parent_alive():
            # End silently, even if the files have vanished meanwhile. The process that removes what the
            # parent has left may have looked for this worker in vain: so no names must be created from here
            # on.
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
        # A forked worker has inherited the count of its parent.
        self.parcels_before = payload.parcels_made()
        #: The number of the task whose code is running; 0 while the worker's own code is running.
        self.inside = 0
        #: The parent has interrupted the task: an exception in it is no error of the task from now on.
        self.stopping = False
        #: A task was interrupted in the middle of an import: there may be a half-imported module.
        self.half_imported = False
        #: This process is a fork of the worker.
        self.forked = False
        # Whether the fault handler was enabled before.
        self._reports_to_stderr = False
        self.stop_forwarding: Callable[[], None] | None = None
        #: When to check next whether shared objects have been closed (`time.monotonic_ns`).
        self.shared_looked_after = 0

    # -- the start -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Set up signal handlers, the fault handler, log forwarding and the status row."""
        become_worker(globals(), self.plan.generation)
        # A forked worker has inherited the parent's handlers, but SIGTERM must end it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._on_interrupt)
        if sys.platform != "win32":
            # The process that started this one may have blocked them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        pipe = self.plan.stack_pipe
        if pipe is not None:
            # Writing must not block the worker: a stack that does not fit into the pipe is cut off.
            never_wait(pipe.fileno())
            # It is inheritable, as it had to be to get here; programs that tasks start must not have it.
            os.set_inheritable(pipe.fileno(), False)
            self._reports_to_stderr = faulthandler.is_enabled()
            faulthandler.enable(pipe.fileno(), all_threads=True)
            if STACK_SIGNAL is not None and hasattr(faulthandler, "register"):
                faulthandler.register(STACK_SIGNAL, pipe.fileno(), all_threads=True, chain=False)
        if self.plan.log_level is not None:
            from mpkit.pool._protocol.logs import forward_to  # noqa: PLC0415  loads logging, for those that want it

            self.stop_forwarding = forward_to(self.outbox.put_log, lambda: self.inside, self.plan.log_level)
        in_forked_children(self._become_fork)
        words = self.channel.words
        words[PID] = os.getpid()
        words[POOL] = int(self.board.segment.name.rpartition("-")[2], 16)
        words[STACK_PIPE] = 0 if pipe is None or not hasattr(faulthandler, "register") else pipe.fileno() + 1
        words[STATE] = INITIALIZING

    def _become_fork(self) -> None:
        """This process has been forked by a task: stop using what belongs to the worker."""
        self.forked = True
        self.outbox = OutboxOfFork(self.channel, self.bells)
        self.chunks.drop_block()
        if self.stop_forwarding is not None:
            self.stop_forwarding()
        if self.plan.stack_pipe is not None:
            give_up_stack_pipe(reports_to_stderr=self._reports_to_stderr)

    def initialize(self) -> bool:
        """Run the pool's initializer, and report to the parent; False if it raised an exception."""
        if self.plan.initializer is not None:
            try:
                call = self.plan.initializer
                if isinstance(call, bytes):
                    call = cast("Initializer", codec.contained(codec.loads, call))
                function, args = call
                function(*args)
            except BaseException as error:  # noqa: BLE001  SystemExit, too: it would end the worker silently
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
        # Ctrl-C in a terminal interrupts all processes of the group, but the parent decides what happens
        # then. A worker only reacts if the parent has interrupted the task that is running.
        if self.forked:
            raise KeyboardInterrupt
        words = self.channel.words
        if self.inside and words[STOP] == self.inside:
            self.stopping = True
            self.half_imported = self.half_imported or is_importing(frame)
            if self.outbox.busy_here():
                # In the middle of adding a log record, say: that must be finished first.
                self.outbox.interrupted = True
                return
            words[STOP] = 0
            raise KeyboardInterrupt

    # -- the work --------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Run tasks until told to leave, or until there is a reason to leave."""
        words = self.channel.words
        left = self.plan.maxtasksperchild
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
                # Taking the record has passed a full barrier (the inbox's lock) since the outcome was put
                # into the outbox, as is needed before checking the board.
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
                # Leave: memory that this task has left in use must not count against the next one.
                break
            if self.half_imported:
                # Leave, because of what the interrupt may have left in `sys.modules`: a failed import removes
                # its own module, but not the submodules that it has imported, and these do not belong to the
                # module that the next import creates.
                break
        words[PARCELS] = payload.parcels_made() - self.parcels_before
        words[STATE] = LEAVING
        if not flags & LEAVE:
            # Not needed if the parent has told it to leave. Otherwise the parent should not have to wait for
            # the end of the process, which comes only when all threads and processes
            # that tasks have left here end.
            self.outbox.put(RESULT_HEAD.pack(0, 0, GOODBYE))
            self.bells.ring_all()

    def _look_after_shared(self, now: int) -> None:
        """Drop shared objects that have been closed, if it is time to check that."""
        if now >= self.shared_looked_after:
            self.shared_looked_after = now + _LOOK_AFTER_SHARED_NS
            forget_closed()

    def _take(self) -> bytes | None:
        """Take the next record out of the inbox, and store its task in the status row; else None."""
        channel = self.channel
        acquire = channel.lock.acquire
        if not acquire(False):
            # The parent is taking tasks back. If it dies meanwhile, this worker dies as well.
            while not acquire(True, _SLICE_SECONDS):
                pass
        try:
            inbox = channel.inbox
            record = inbox.peek()
            if record is not None:
                # The time is stored before the number: a process that sees the number sees the right time.
                # And the number before the record leaves the inbox (`drop` has a fence of its own).
                channel.words[STARTED] = CLOCK.monotonic_ns()
                if not TOTAL_STORE_ORDER:
                    full_fence()
                channel.words[TASK] = int.from_bytes(record[:8], "little")
                inbox.drop()
            return record
        finally:
            channel.lock.release()

    def _run(self, number: int, length: int, flags: int, record: bytes) -> tuple[int, bytes]:
        """Run the task of a record; returns kind and data of its outcome."""
        pickler: Pickler = "cloudpickle" if flags & BY_VALUE else "pickle"
        try:
            try:
                self.stopping = False
                self.inside = number
                if self.channel.words[STOP] == number:
                    # The interrupt, which comes only once, may have come after the task was taken and before
                    # `inside` was set. (If it comes just now, either the handler or this clears the word, and
                    # raises.)
                    self.stopping = True
                    self.channel.words[STOP] = 0
                    raise KeyboardInterrupt
                outcome = self.calls.make(number, length, flags, record, pickler)
            finally:
                # From here on, an interrupt comes too late, and has no effect. One that comes just before
                # this is caught below; there is only one for each task.
                self.inside = 0
        except BaseException as error:  # noqa: BLE001  a SystemExit or KeyboardInterrupt goes to the caller, too
            if self.forked:
                end_fork(error)
            self.inside = 0
            try:
                return payload.dump_error(error, pickler)
            except BaseException as second:  # noqa: BLE001  no room, or its class raises
                text = f"the task raised {type(error).__name__}, which cannot be sent: {second!r}"
                return ERROR, failure.pack_exception(SerializationError(text))
        return outcome

    def _sleep(self, patience: Patience, barrier: Barrier, *, parent_awake: bool) -> None:
        """Wait for a record: spin for a moment, then sleep. May return earlier."""
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
        words[SLEEPING] = SLEEPS_FOR_RECORDS
        barrier()
        if is_empty():
            channel.wake.acquire(True, _SLICE_SECONDS)
        words[SLEEPING] = 0


def own_rss_bytes() -> int | None:
    """Resident memory of this process, or None if it cannot be read."""
    from mpkit._platform.resources import memory  # noqa: PLC0415  only with a limit

    return memory.rss_bytes(os.getpid())
