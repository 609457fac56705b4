"""The worker processes: started, and given back when they have ended."""

from __future__ import annotations

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
from mpkit.pool._engine.reports import attempt, call_aside
from mpkit.pool._engine.server import start_server
from mpkit.pool._engine.start_ups import GUARD, NOT_IMPORTABLE, Failure, StartUps
from mpkit.pool._protocol.channel import HEAD_SIZE, INITIALIZING, STATE, Board, Channel
from mpkit.pool._worker import worker
from mpkit.pool._worker.importing import generation

#: How long unpickling what the initializer has raised may take: it may have to import a big package.
_UNPICKLING_SECONDS = 10.0

# Starting a process asks all children of multiprocessing for their exit codes. Two threads that do so at the
# same moment take those of the application's own processes from each other (not those of `WorkerChild`); the
# standard library has no lock for it.
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
        # One for all workers, once one has told of one.
        self._initializer_errors: list[InitializerFailed] = []

    def start(self) -> Lane:
        """Start one worker and give it a lane.

        Raises:
            OSError: the system refuses a process, memory or descriptors. Nothing is left behind.
            RuntimeError: this process may not start children now (an unguarded main module).
        """
        return self.start_all(1)[0]

    def start_all(self, number: int) -> list[Lane]:
        """Start so many workers and give each a lane.

        Raises:
            OSError, RuntimeError: see `start`. Those that have been started have their lanes.
        """
        if self._options.context.get_start_method() == "fork":
            return self._start_together(number)
        # The first one comes up while the others are started.
        return [lane for _ in range(number) for lane in self._start_together(1)]

    def _start_together(self, number: int) -> list[Lane]:
        link = ParentLink.create()
        # Counts from before the start: what the system kills meanwhile belongs to it.
        oom_kills = memory.oom_kills()
        # First all of these: after each fork, the first touch of a page of memory costs a copy of it.
        channels: list[Channel] = []
        lanes: list[Lane] = []
        try:
            channels.extend(Channel.create() for _ in range(number))
            lanes.extend(self._start(channel, link, oom_kills) for channel in channels)
        except BaseException:
            for channel in channels[len(lanes) :]:
                # A fork server that dies after the fork has not told us of it.
                channel.dismiss()
                channel.discard()
            raise
        return lanes

    def _start(self, channel: Channel, link: ParentLink, oom_kills: int | None) -> Lane:
        options = self._options
        dispatcher = self._dispatcher
        # Here, where no signal is blocked yet: all children of the server have the mask it was started with.
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
                tasks=options.maxtasksperchild,
                max_memory_bytes=options.max_memory_bytes,
                forward_logs=options.forward_logs,
                log_level=_root_level() if options.forward_logs else 0,
                generation=generation() + 1,
                link=link,
            )
            # Not the context's own class: there, two threads that ask for an exit code take it from each
            # other, and starting any process asks for those of all the others.
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
            lane = Lane(key, channel, reader, options.maxtasksperchild)
            lane.process, lane.identity, lane.oom_kills = process, identified, oom_kills
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
        """A worker is dead: count it if it never became ready. The error, once there is no more hope."""
        if lane.greeted or lane.told_to_leave:
            # Who is sent home while it starts is killed, which is no failure.
            return None
        return self.start_ups.note_failure(
            f"process {lane.pid} {how_it_ended(exitcode)}" + (f"\n{last_words}" if last_words else ""),
            Failure.EXITED if signal_name(exitcode) is None else Failure.KILLED,
            initializing=self.is_initializing(lane),
        )

    def initializer_error(self, lane: Lane) -> InitializerFailed | None:
        """What the initializer has raised in a worker, for those who wait for the pool."""
        if lane.bad_initializer is None:
            return None
        if not self._initializer_errors:
            data = lane.bad_initializer[HEAD_SIZE:]
            # To unpickle it, and to ask it for its text, runs code of its class, for which the supervisor
            # cannot wait for ever.
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
        """Whether a worker is in the pool's initializer, or has died there."""
        return self._options.initializer is not None and lane.words[STATE] == INITIALIZING

    def dispose(self, lane: Lane) -> None:
        """Give back everything of a dead worker."""
        lane.channel.discard()
        if lane.stack_pipe is not None:
            with lane.stack_lock:
                lane.stack_pipe.close()
                lane.stack_pipe = None
        process = lane.process
        if process is not None and process.exitcode is not None:
            # One whose end was not told in time (by a fork server that is stopped, say) passes for running,
            # and cannot be closed: it goes with its last reference.
            process.close()


def _start_alone(process: ChildProcess, method: str) -> None:
    with without_interrupts(), without_fork_warning(method):
        _start(process, method)


def _start(process: ChildProcess, method: str) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        if method != "forkserver":
            raise
        # What talking to the fork server ends in. From 3.14 on (and 3.13.8) it imports the main module.
        raise PoolBroken(
            "the fork server of multiprocessing has died, or the system has no process left for it "
            f"({type(error).__name__}: {error}); if its error output says that the main module could not be "
            f"imported, a frequent cause is that {GUARD}. Another is that {NOT_IMPORTABLE}"
        ) from error


def exit_code(lane: Lane) -> int | None:
    """Reap a worker that has ended; its exit code, or None when it is not told in time, or lost.

    Blocking: for a moment, until the system (or the fork server) tells.
    """
    process = lane.process
    assert process is not None
    for _ in range(50):
        process.join(0.1)
        if process.exitcode is not None:
            # One that is lost stands as 255 there, which says something else to whoever reads the error.
            return None if child_process.code_lost_because(process) else process.exitcode
    return None


def _root_level() -> int:
    import logging  # noqa: PLC0415

    return logging.getLogger().getEffectiveLevel()
