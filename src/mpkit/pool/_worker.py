"""The worker: what runs in a child process of a pool. It imports little, because every worker pays for it.

One turn of `_Worker.serve`: take one record from the inbox, call the function, put the outcome into the
outbox, ring the parent if it wants to know. The order of the stores is the protocol (see
``docs/explanation/pool-protocol.md``): the task's number goes into the status row before the record leaves
the inbox, and is cleared after the outcome is in the outbox.
"""

from __future__ import annotations

import _frozen_importlib
import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import starmap
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple, TypeAlias, cast

from mpkit._platform import seam
from mpkit._platform.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.forks import in_forked_children
from mpkit._platform.hints import override
from mpkit._platform.parent_watch import ParentLink
from mpkit._wire import codec, failure
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool import _payload as payload
from mpkit.pool._channel import (
    ALWAYS,
    ANY,
    BACK,
    BAD_INITIALIZER,
    BIG_PART,
    BY_REFERENCE,
    BY_VALUE,
    CHUNK,
    DONE,
    EACH,
    ERROR,
    FRONT,
    FUNCTION_INSIDE,
    HEAD_SIZE,
    HELLO,
    INITIALIZING,
    ITEM,
    KEYWORDS,
    LEAVE,
    LEAVING,
    LOG,
    LOW,
    NONE,
    PARCELS,
    PART,
    PID,
    POOL,
    RANGE,
    READY,
    RESULT_HEAD,
    SLEEPING,
    SOON,
    STACK_PIPE,
    STAR,
    STARTED,
    STATE,
    STOP,
    TASK,
    TASK_HEAD,
    VALUE,
    WANTED,
    WHEN_LOW,
    Barrier,
    Board,
    Channel,
    ChannelNames,
    ring_bell,
)
from mpkit.pool._opened import forget_closed, opened
from mpkit.pool._patience import Patience
from mpkit.pool._stack_signal import STACK_SIGNAL
from mpkit.pool._worker_fork import end_fork, give_up_stack_pipe

#: A chunk of short items is worked on in blocks of about this length ...
_BLOCK_NS = 500_000
#: ... and hands in what it has this often.
_PART_NS = 2_000_000
#: How long a worker sleeps before it looks again although nobody has woken it: a net below the protocol, and
#: no part of it.
_SLICE_SECONDS = 2.0
#: Outcomes that somebody waits for in general are announced this often while the worker has more to do.
_ANNOUNCE_NS = 1_000_000
#: It looks this often whether shared objects that it has open have been closed.
_LOOK_AFTER_SHARED_NS = 500_000_000
#: Functions that a worker keeps unpickled.
_MOST_FUNCTIONS = 1024
_LONGEST_RUN = (1 << 32) - 1
#: The namespace of the module whose frames are on the stack while a module is imported.
_IMPORT_SYSTEM = vars(_frozen_importlib)


Initializer: TypeAlias = tuple[Callable[..., object], tuple[Any, ...]]


class WorkerPlan(NamedTuple):
    """What a worker is told when it starts."""

    names: ChannelNames
    stack_pipe: Connection | None
    #: Pickled; or as it is, because it can only be inherited, or be pickled while a process is started.
    initializer: bytes | Initializer | None
    pickler: Pickler
    tasks: int | None
    max_memory_bytes: int | None
    forward_logs: bool
    log_level: int
    link: ParentLink


class WorkerChild(seam.ChildProcess):
    """The process that a worker is.

    The pool closes it when the worker has ended, and programs may have it in hand then: `active_children`
    returns it. Like one that nobody closes, it goes on to say how it has ended, and cannot be ended again.
    """

    @override
    def _check_closed(self) -> None:
        pass

    @override
    def _arrived(self) -> None:
        # Until there is a handler, an interrupt would be a traceback for nothing. (What comes from the fork
        # server cannot be started with the signal blocked; before this, its start ends silently.)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main(plan: WorkerPlan) -> None:
    """Serve until told to leave. The target of the child process."""
    plan.link.die_with_parent()
    worker = _Worker(plan)
    worker.prepare()
    if worker.initialize():
        worker.serve()


class _Worker:
    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self.channel = Channel.attach(plan.names)
        self.board = Board.attach(plan.names)
        self.outbox = _Outbox(self.channel, self.board)
        self.functions: dict[bytes, Callable[..., Any]] = {}
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
        #: Items of a chunk that are being worked on, all in one call of C code.
        self.block: list[Any] = []
        self.stop_forwarding: Callable[[], None] | None = None
        self.last_ring = 0
        #: Not before this moment it looks after shared objects again.
        self.shared_looked_after = 0

    # -- the start -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Signals, stacks, logging."""
        # A forked worker has the parent's handlers; a SIGTERM must end it, and must not write to the parent's
        # event loop.
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._on_interrupt)
        if hasattr(signal, "pthread_sigmask"):
            # Whoever started this process may have blocked them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        pipe = self.plan.stack_pipe
        if pipe is not None:
            # Not blocking: a stack that does not fit into the pipe is cut off, and never stops the worker.
            os.set_blocking(pipe.fileno(), False)
            self._reports_to_stderr = faulthandler.is_enabled()
            faulthandler.enable(pipe.fileno(), all_threads=True)
            if STACK_SIGNAL is not None and hasattr(faulthandler, "register"):
                faulthandler.register(STACK_SIGNAL, pipe.fileno(), all_threads=True, chain=False)
        if self.plan.forward_logs:
            from mpkit.pool._logs import forward_to  # noqa: PLC0415  loads logging, for those that want it

            self.stop_forwarding = forward_to(self.outbox.put_log, lambda: self.inside, self.plan.log_level)
        in_forked_children(self._become_fork)
        words = self.channel.words
        words[PID] = os.getpid()
        words[POOL] = int(self.plan.names.board.rpartition("-")[2], 16)
        words[STACK_PIPE] = 0 if pipe is None or not hasattr(faulthandler, "register") else pipe.fileno() + 1
        words[STATE] = INITIALIZING

    def _become_fork(self) -> None:
        """This process has been forked by a task: it is no worker, and uses nothing of the worker's."""
        self.forked = True
        self.outbox = _OutboxOfFork(self.channel, self.board)
        # It is not to go on with what the worker has in hand, should it come back from the task.
        self.block.clear()
        if self.stop_forwarding is not None:
            self.stop_forwarding()
        if self.plan.stack_pipe is not None:
            give_up_stack_pipe(reports_to_stderr=self._reports_to_stderr)

    def initialize(self) -> bool:
        """Run the pool's initializer; False when it raised, which the parent is told."""
        if self.plan.initializer is not None:
            try:
                call = self.plan.initializer
                function, args = cast("Initializer", codec.loads(call)) if isinstance(call, bytes) else call
                function(*args)
            except BaseException as error:  # noqa: BLE001  SystemExit too: it would end the worker without a word
                if self.forked:
                    end_fork(error)
                data = failure.pack_exception(error, self.plan.pickler)
                if len(data) > payload.INLINE_BYTES:
                    text = f"{type(error).__name__}: {str(error)[:2000]} (cut off: too long to be sent whole)"
                    data = failure.pack_exception(SerializationError(text))
                self.outbox.put(RESULT_HEAD.pack(0, 0, BAD_INITIALIZER) + data)
                self.outbox.ring_all()
                return False
            if self.forked:
                end_fork(None)
        self.channel.words[STATE] = READY
        self.outbox.put(RESULT_HEAD.pack(0, 0, HELLO))
        self.outbox.ring_all()
        return True

    def _on_interrupt(self, _signum: int, frame: FrameType | None) -> None:
        # Ctrl-C in a terminal goes to all processes of the group: what happens then is the parent's business.
        # Only an interrupt meant for the very task that is running counts.
        if self.forked:
            raise KeyboardInterrupt
        words = self.channel.words
        if self.inside and words[STOP] == self.inside:
            self.stopping = True
            self.half_imported = self.half_imported or _is_importing(frame)
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
        clock = time.monotonic_ns
        finished = 0
        while True:
            record = self._take()
            if record is None:
                if number:
                    barrier()
                    awake = not self.board.words[FRONT]
                    self._ring(number, finished, idle=True)
                    number = 0
                self._sleep(patience, barrier, parent_awake=awake)
                if opened:
                    self._look_after_shared(clock())
                continue
            if number:
                # Taking the record went through the inbox's lock: between the outcome and this look lies a
                # full barrier.
                self._ring(number, finished, idle=False)
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
        self.outbox.ring_all()

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
                channel.words[STARTED] = time.monotonic_ns()
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
                outcome = self._call(number, length, flags, record, pickler)
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
            except Exception as second:  # noqa: BLE001  no room for a parcel, or an exception class that fights back
                text = f"the task raised {type(error).__name__}, which cannot be sent: {second!r}"
                return ERROR, failure.pack_exception(SerializationError(text))
        return outcome

    def _call(
        self, number: int, length: int, flags: int, record: bytes, pickler: Pickler
    ) -> tuple[int, bytes]:
        start = HEAD_SIZE + length
        blob = record[HEAD_SIZE:start]
        if flags & (CHUNK | FUNCTION_INSIDE):
            return self._call_specially(number, blob, flags, memoryview(record)[start:], pickler)
        function = self.functions.get(blob)
        if function is None:
            function = self._load_function(blob, flags)
        if len(record) == start:
            value = function()
        else:
            args, kwargs = payload.load_arguments(flags, memoryview(record)[start:])
            value = function(*args) if kwargs is None else function(*args, **kwargs)
        if self.forked:
            end_fork(None)
        return (NONE, b"") if value is None else payload.dump_value(value, pickler)

    def _call_specially(
        self, number: int, blob: bytes, flags: int, rest: memoryview, pickler: Pickler
    ) -> tuple[int, bytes]:
        """What is not just one call of a known function: a chunk, or a function that came as an argument."""
        first = stop = 0
        if flags & CHUNK:
            first, stop = RANGE.unpack_from(rest)
            rest = rest[RANGE.size :]
        function: Any
        args: Any
        kwargs: Any = None
        try:
            if flags & FUNCTION_INSIDE:
                (blob, args), _ = payload.load_arguments(flags & ~KEYWORDS, rest)
            else:
                args, kwargs = payload.load_arguments(flags, rest)
        except SerializationError as error:
            if not flags & CHUNK:
                raise
            try:
                inside, items = payload.load_items(flags, rest)
            except Exception:  # noqa: BLE001  they cannot be told apart
                raise error from error.__cause__
            function = _except_of_broken(self._function(inside or blob, flags))
            args = [item if reason is None else _Broken(reason) for item, reason in items]
            if flags & STAR:
                args = [(item,) if type(item) is _Broken else item for item in args]
        else:
            function = self._function(blob, flags)
            if flags & FUNCTION_INSIDE and flags & KEYWORDS:
                args, kwargs = args
        if flags & EACH:
            return self._run_each(function, args, number, first, stop, pickler)
        if flags & CHUNK:
            return self._run_chunk(function, args, number, flags, first, stop, pickler)
        return payload.dump_value(function(*args) if kwargs is None else function(*args, **kwargs), pickler)

    def _run_chunk(
        self,
        function: Callable[..., Any],
        items: list[Any],
        number: int,
        flags: int,
        first: int,
        stop: int,
        pickler: Pickler,
    ) -> tuple[int, bytes]:
        """Call the function for the items from `first` to `stop`.

        The outcome: the list of results, and what went wrong at which index of it. While it works it says in
        the status row which items it has in hand, and hands in what it has every `_PART_NS`, so that its
        death costs as little as possible. Short items are worked on in blocks of about `_BLOCK_NS`: a store
        for each of them would cost more than they do.
        """
        words = self.channel.words
        clock = time.monotonic_ns
        results: list[Any] = []
        errors: list[tuple[int, bytes]] = []
        base = at = first
        block = 1
        began = handed_in = clock()
        while True:
            end = min(at + block, stop)
            words[ITEM] = at << 32 | end
            self.block = items[at:end]
            self._run_block(function, self.block, flags, pickler, results, errors)
            at = end
            if at == stop:
                break
            now = clock()
            took, began = now - began, now
            # Each item may take longer than the last one: the block grows fourfold at most.
            block = max(1, min(block << 2, block * _BLOCK_NS // (took or 1)))
            if now - handed_in > _PART_NS:
                # Now pickling may be the end of the worker.
                words[ITEM] = base << 32 | at
                self._hand_in(number, at, *self._dump_results(results, errors, pickler))
                results, errors, base = [], [], at
                began = handed_in = clock()
        words[ITEM] = base << 32 | stop
        return self._dump_results(results, errors, pickler)

    def _run_each(
        self,
        function: Callable[..., Any],
        items: list[Any],
        number: int,
        first: int,
        stop: int,
        pickler: Pickler,
    ) -> tuple[int, bytes]:
        """Call the function for the items from `first` to `stop`, each as if it were a task of its own.

        Its result is in the outbox before the next one begins. So the death of this worker is the death of
        the item in hand alone, and nothing is done twice. The outcome is that of the last one.
        """
        words = self.channel.words
        at = first
        while True:
            words[ITEM] = at << 32 | at + 1
            results: list[Any] = [None]
            errors: list[tuple[int, bytes]] = []
            try:
                results[0] = function(items[at])
            except BaseException as error:
                if self.stopping or self.forked:
                    # All of it.
                    raise
                errors.append((0, failure.pack_exception(error, pickler)))
            if self.forked:
                end_fork(None)
            # What has been worked on must not live on here while the next one is worked on.
            items[at] = None
            kind, data = self._dump_results(results, errors, pickler)
            at += 1
            if at == stop:
                return kind, data
            self._hand_in(number, at, kind, data)
            self._announce(number)

    def _run_block(
        self,
        function: Callable[..., Any],
        items: list[Any],
        flags: int,
        pickler: Pickler,
        results: list[Any],
        errors: list[tuple[int, bytes]],
    ) -> None:
        """Call the function for each item, adding to `results`, and to `errors` what went wrong at which
        index.

        An error fails its own item only. `list.extend` keeps what an iterator gave before it raised, and
        `map` goes on with the next item after an error, so the calls run at the speed of C all the same.
        """
        calls = starmap(function, items) if flags & STAR else map(function, items)
        total = len(results) + len(items)
        while len(results) < total:
            try:
                results.extend(calls)
                if self.forked:
                    end_fork(None)
                if len(results) < total:
                    # Only a StopIteration that the function itself raised ends `calls` early.
                    raise RuntimeError("the function raised StopIteration")
            except BaseException as error:
                if self.stopping or self.forked:
                    # The whole chunk. A KeyboardInterrupt of the item's own is an error like any other.
                    raise
                errors.append((len(results), failure.pack_exception(error, pickler)))
                results.append(None)

    def _dump_results(
        self, results: list[Any], errors: list[tuple[int, bytes]], pickler: Pickler
    ) -> tuple[int, bytes]:
        try:
            return payload.dump_chunk(results, errors, pickler)
        except BaseException:
            if self.stopping:
                raise
            # Rare, so slow is good enough: find the results that cannot be pickled.
            failed = {index for index, _ in errors}
            for index, value in enumerate(results):
                if index not in failed:
                    try:
                        codec.dumps(value, pickler)
                    except BaseException as error:
                        if self.stopping:
                            raise
                        errors.append((index, failure.pack_exception(error, pickler)))
                        results[index] = None
            return payload.dump_chunk(results, errors, pickler)

    def _hand_in(self, number: int, reached: int, kind: int, data: bytes) -> None:
        """Send the results of the items before `reached` that have not been sent yet."""
        head = RESULT_HEAD.pack(number, reached, PART if kind == VALUE else BIG_PART)
        self.outbox.put_part(head + data)

    def _announce(self, number: int) -> None:
        """Wake whoever waits for a part of task `number`, or for anything, now and then."""
        board = self.board.words
        if board[FRONT] and board[WANTED] in (ANY, SOON, number):
            now = time.monotonic_ns()
            if now - self.last_ring > _ANNOUNCE_NS:
                self.last_ring = now
                board[FRONT] = 0
                ring_bell(self.board.front)

    def _function(self, blob: bytes, flags: int) -> Callable[..., Any]:
        if flags & FUNCTION_INSIDE:
            return cast("Callable[..., Any]", codec.loads(blob))
        return self.functions.get(blob) or self._load_function(blob, flags)

    def _load_function(self, blob: bytes, flags: int) -> Callable[..., Any]:
        function: Callable[..., Any] = cast("Callable[..., Any]", codec.loads(blob))
        if flags & BY_REFERENCE:
            if len(self.functions) >= _MOST_FUNCTIONS:
                self.functions.clear()
            self.functions[blob] = function
        return function

    def _ring(self, number: int, now: int, *, idle: bool) -> None:
        """Wake whoever wants to know that task `number` is done."""
        words = self.channel.words
        low = words[LOW]
        empty = low > 0 and (idle or self.channel.inbox.left() < low)
        filling = not words[DONE] & 15 and self.outbox.is_filling()
        board = self.board.words
        if board[FRONT]:
            wanted = board[WANTED]
            if (
                empty
                or filling
                or wanted == number
                or wanted == ANY
                or (wanted == SOON and (idle or now - self.last_ring > _ANNOUNCE_NS))
            ):
                self.last_ring = now
                # In this order: whoever sleeps there sets it again after it has woken.
                board[FRONT] = 0
                ring_bell(self.board.front)
                return
        level = board[BACK]
        if level and (
            filling
            or (level >= WHEN_LOW and empty)
            or (level == ALWAYS and (idle or now - self.last_ring > _ANNOUNCE_NS))
        ):
            self.last_ring = now
            board[BACK] = 0
            ring_bell(self.board.back)

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


class _Outbox:
    """Puts records into the outbox: outcomes from the main thread, log records from any."""

    def __init__(self, channel: Channel, board: Board) -> None:
        self._channel = channel
        self._ring = channel.outbox
        self._board = board
        self._lock = threading.Lock()
        self._holder = 0
        self._late: list[bytes] = []
        self.interrupted = False

    def put(self, record: bytes) -> None:
        """Add a record; waits for room."""
        me = threading.get_ident()
        if self._holder == me:
            # A `__del__` that logs, in the middle of a put of this very thread.
            self._late.append(record)
            return
        with self._lock:
            self._holder = me
            try:
                if not self._ring.try_put(record):
                    self._put_when_room(record)
                while self._late:
                    self._put_when_room(self._late.pop(0))
            finally:
                self._holder = 0

    def put_log(self, record: bytes) -> None:
        """Add a log record, from inside a task."""
        self.put(RESULT_HEAD.pack(0, 0, LOG) + record)
        board = self._board.words
        if board[BACK]:
            board[BACK] = 0
            ring_bell(self._board.back)
        self._catch_up()

    def put_part(self, record: bytes) -> None:
        """Add some results of a chunk, from inside the task."""
        self.put(record)
        self._catch_up()

    def _catch_up(self) -> None:
        # The interrupt that came while a record was being put.
        if self.interrupted and self._holder == 0 and threading.current_thread() is threading.main_thread():
            self.interrupted = False
            self._channel.words[STOP] = 0
            raise KeyboardInterrupt

    def busy_here(self) -> bool:
        """Whether this thread is in the middle of a put."""
        return self._holder == threading.get_ident()

    def is_filling(self) -> bool:
        """Whether less than half of the ring is free."""
        return self._ring.room() < self._ring.capacity << 2

    def ring_all(self) -> None:
        """Wake everybody in the parent."""
        board = self._board
        board.words[FRONT] = 0
        ring_bell(board.front)
        board.words[BACK] = 0
        ring_bell(board.back)

    def _put_when_room(self, record: bytes) -> None:
        if self._ring.try_put(record):
            return
        words = self._channel.words
        barrier = Barrier()
        while True:
            self.ring_all()
            words[SLEEPING] = 2
            barrier()
            if self._ring.try_put(record):
                break
            self._channel.wake.acquire(True, 0.05)
        words[SLEEPING] = 0
        # The token may have been meant for the main thread, which waits for records.
        ring_bell(self._channel.wake)


class _OutboxOfFork(_Outbox):
    """What a fork of the worker has: it has come back from the task, where its life is over."""

    @override
    def put(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)

    @override
    def put_part(self, record: bytes) -> None:  # noqa: ARG002
        end_fork(None)


class _Broken(NamedTuple):
    """Stands for an item that could not be unpickled."""

    error: Exception


def _except_of_broken(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises what is wrong with an item that could not be unpickled."""

    def call(*args: Any) -> Any:
        if args and type(args[0]) is _Broken:
            raise args[0].error
        return function(*args)

    return call


def _is_importing(frame: FrameType | None) -> bool:
    """Whether this frame, or one that called it, is the import system's."""
    while frame is not None:
        if frame.f_globals is _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def own_rss_bytes() -> int | None:
    """Resident memory of this process, or None if it cannot be read."""
    from mpkit._platform import memory  # noqa: PLC0415  only with a limit

    return memory.rss_bytes(os.getpid())


__all__ = ["Initializer", "WorkerPlan", "main"]
