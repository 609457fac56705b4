"""The worker processes: how they are started, and what is given back when they have ended."""

from __future__ import annotations

import logging
import sys
from functools import partial
from multiprocessing.connection import Connection

from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.resources import memory
from mpkit._platform.signals.interrupts import without_interrupts
from mpkit._platform.signals.names import how_it_ended, signal_name
from mpkit._platform.stdlib import child_process
from mpkit._platform.stdlib.child_process import ChildProcess
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.readiness import never_wait
from mpkit._wire import failure
from mpkit.errors import InitializerFailed, PoolBroken
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.fork_warning import without_fork_warning
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.server import start_server
from mpkit.pool._engine.start_ups import GUARD, NOT_IMPORTABLE, Failure, StartUps
from mpkit.pool._engine.threads import attempt, call_aside
from mpkit.pool._protocol.channel import HEAD_SIZE, INITIALIZING, STATE, Board, Channel
from mpkit.pool._worker import worker
from mpkit.pool._worker.importing import generation

#: How long unpickling the error of an initializer may take: it may have to import a big package.
_UNPICKLING_SECONDS = 10.0
#: How long it may take until the exit code of a worker that has ended is known: so many times this long.
_EXIT_CODE_SLICES = 50
_EXIT_CODE_SLICE_SECONDS = 0.1

# Starting a process polls all children of multiprocessing for their exit codes. The standard library has no
# lock for that: if two threads do so at the same moment, exit codes of the application's own processes may
# get lost (not those of a `WorkerChild`).
_starting = InterruptibleLock()


@in_forked_children
def _forget_after_fork() -> None:
    global _starting
    _starting = InterruptibleLock()


class Crew:
    """Starts the workers of one pool."""

    def __init__(
        self,
        options: PoolOptions,
        dispatcher: Dispatcher,
        board: Board,
        initializer: bytes | worker.Initializer | None,
    ) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._board = board
        self._initializer = initializer
        self._next_key = 0
        self.workers_started: int = 0
        self.start_ups: StartUps = StartUps(options, dispatcher.roster)
        # One error for the whole pool: that of the first worker that has reported one. Empty until then.
        self._initializer_errors: list[InitializerFailed] = []

    def start(self, number: int) -> list[Lane]:
        """Start so many workers and give each a lane.

        Raises:
            OSError: the system refuses a process, memory or descriptors. Nothing is left behind of this
                worker; those that had been started before it are in the dispatcher.
            RuntimeError: this process may not start children now (an unguarded main module).
        """
        if self._options.context.get_start_method() == "fork":
            return self._start_together(number)
        # One by one, so that the first one comes up while the others are being started.
        return [lane for _ in range(number) for lane in self._start_together(1)]

    def _start_together(self, number: int) -> list[Lane]:
        link = ParentLink.create()
        # Read before the start, so that a worker that is killed while it starts counts.
        oom_kills = memory.oom_kills()
        # All channels before the first fork: after a fork, the first write to each page of memory copies it.
        channels: list[Channel] = []
        lanes: list[Lane] = []
        try:
            channels.extend(Channel.create() for _ in range(number))
            lanes.extend(self._start(channel, link, oom_kills) for channel in channels)
        except BaseException:
            for channel in channels[len(lanes) :]:
                # There may be a worker: a fork server that died after the fork has not reported it.
                channel.dismiss()
                channel.discard()
            raise
        return lanes

    def _start(self, channel: Channel, link: ParentLink, oom_kills: int | None) -> Lane:
        options = self._options
        dispatcher = self._dispatcher
        # Here, where no signal is blocked yet: all children of the fork server inherit its signal mask.
        start_server(options.context)
        method = options.context.get_start_method()
        reader: Connection | None = None
        writer: Connection | None = None
        try:
            if sys.platform != "win32":
                reader, writer = options.context.Pipe(duplex=False)
                never_wait(reader.fileno())
            self._next_key += 1
            key = self._next_key
            plan = worker.WorkerPlan(
                channel=channel,
                board=self._board,
                stack_pipe=writer,
                initializer=self._initializer,
                pickler=options.pickler,
                maxtasksperchild=options.maxtasksperchild,
                max_memory_bytes=options.max_memory_bytes,
                log_level=logging.getLogger().getEffectiveLevel() if options.forward_logs else None,
                generation=generation() + 1,
                link=link,
            )
            # Not the process class of the context: with that, an exit code gets lost if two threads poll for
            # it at once, and starting any process polls all others.
            process = worker.WorkerChild(
                target=worker.main,
                args=(plan,),
                name=None if options.worker_names else f"{options.name}-{key}",
                daemon=False,
                start_method=method,
            )
            if options.worker_names:
                _, _, number = process.name.rpartition("-")
                process.name = f"{options.worker_names}-{number}"
            _starting.run(_start_alone, process, method)
            identified = child_process.identity_of(process)
            plan.link.started(identified)
            lane = Lane(
                key,
                channel,
                process,
                identified,
                stack_pipe=reader,
                maxtasksperchild=options.maxtasksperchild,
                oom_kills=oom_kills,
            )
            dispatcher.lock.run(dispatcher.add, lane)
        except BaseException:
            if reader is not None:
                reader.close()
            raise
        finally:
            if writer is not None:
                writer.close()
        self.workers_started += 1
        return lane

    def note_death_of(self, lane: Lane, exitcode: int | None, last_words: str) -> PoolBroken | None:
        """A worker is dead: if it never became ready, count a failed start-up.

        Returns:
            The error for the pool, once too many start-ups have failed.
        """
        if lane.greeted or lane.told_to_leave:
            # One that was told to leave while it was starting has been killed by the pool.
            return None
        return self.start_ups.note_failure(
            f"process {lane.pid} {how_it_ended(exitcode)}" + (f"\n{last_words}" if last_words else ""),
            Failure.EXITED if signal_name(exitcode) is None else Failure.KILLED,
            initializing=self.is_initializing(lane),
        )

    def initializer_error(self, lane: Lane) -> InitializerFailed | None:
        """The error for the pool if the initializer has raised in this worker, else None."""
        if lane.bad_initializer is None:
            return None
        if not self._initializer_errors:
            data = lane.bad_initializer[HEAD_SIZE:]
            # Unpickling it, and getting its text, runs code of its class. The supervisor, which this is
            # called in, must not wait for ever.
            attempt(partial(call_aside, _UNPICKLING_SECONDS, self._note_initializer_error, data))
            if not self._initializer_errors:
                self._note_initializer_error(data, "unpickling it takes too long")
        return self._initializer_errors[0]

    def _note_initializer_error(self, data: bytes, refused: str = "") -> None:
        cause = failure.unpack_exception(data, contain=True, refused=refused)
        broken = InitializerFailed(
            f"the initializer of {self._options.name} raised {failure.in_words(cause)}"
        )
        broken.__cause__ = cause
        self._initializer_errors.append(broken)

    def is_initializing(self, lane: Lane) -> bool:
        """Whether a worker is running the pool's initializer, or has died in it."""
        return self._options.initializer is not None and lane.words[STATE] == INITIALIZING

    def dispose(self, lane: Lane) -> None:
        """Give back everything that belongs to a dead worker."""
        lane.channel.discard()
        if lane.stack_pipe is not None:
            with lane.stack_lock:
                lane.stack_pipe.close()
                lane.stack_pipe = None
        if lane.process.exitcode is not None:
            # A process whose exit code is not known (because the fork server is stopped, say) counts as
            # running, and cannot be closed. It is freed with its last reference.
            lane.process.close()


def _start_alone(process: ChildProcess, method: str) -> None:
    """Start a process (holding `_starting`)."""
    try:
        with without_interrupts(), without_fork_warning(method):
            process.start()
    except (EOFError, ConnectionError) as error:
        if method != "forkserver":
            raise
        # The connection to the fork server has failed. (In 3.13.8, and from 3.14 on, the server imports the
        # main module, and may die of that.)
        raise PoolBroken(
            "the fork server of multiprocessing has died, or the system has no process left for it "
            f"({type(error).__name__}: {error}); if its error output says that the main module could not be "
            f"imported, a frequent cause is that {GUARD}. Another is that {NOT_IMPORTABLE}"
        ) from error


def exit_code(lane: Lane) -> int | None:
    """Reap a worker that has ended.

    Returns:
        Its exit code; None if it is lost, or does not become known in time.

    Blocking: until the system or the fork server has reported it, which takes a moment; five seconds at most.
    """
    process = lane.process
    for _ in range(_EXIT_CODE_SLICES):
        process.join(_EXIT_CODE_SLICE_SECONDS)
        if process.exitcode is not None:
            # multiprocessing reports a lost exit code as 255, which would be misleading in an error message.
            return None if child_process.code_lost_because(process) else process.exitcode
    return None
