"""The worker processes: started, replaced, counted; and when to give up.

A pool whose workers cannot be started must say so instead of trying for ever: after `MOST_FAILURES` start-ups
in a row that end with an exit code (an exception in ``__main__``, usually), or `MOST_KILLED` that die of a
signal or do not come about (for want of descriptors, say), none succeeding in between, it is broken. Between
two attempts lies a growing pause.
"""

from __future__ import annotations

import errno
import sys
import time
from enum import Enum, auto
from multiprocessing.connection import Connection

from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.processes import identity
from mpkit._platform.resources import memory
from mpkit._platform.signals.interrupts import without_interrupts
from mpkit._platform.signals.names import how_it_ended, signal_name
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.readiness import never_wait
from mpkit._wire import failure
from mpkit.errors import InitializerFailed, PoolBroken
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.fork_warning import without_fork_warning
from mpkit.pool._engine.function_table import name_of
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.server import start_server
from mpkit.pool._protocol.channel import HEAD_SIZE, INITIALIZING, STATE, Board, Channel
from mpkit.pool._worker import worker
from mpkit.pool._worker.importing import generation

MOST_FAILURES = 3
MOST_KILLED = 10
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0

# No process, or no shared memory; like what `identity.is_lack_of_means` tells, it may pass.
_REFUSED = frozenset({errno.EAGAIN, errno.ENOSPC})

_GUARD = (
    "the main module creates the pool when it is imported, which every worker does; put that under "
    '`if __name__ == "__main__":`'
)
_NOT_IMPORTABLE = (
    "the main module cannot be imported again (an interactive session, code read from standard input); save "
    "the program to a file, and put the functions into that or into a module of their own"
)

# Starting a process asks all children of multiprocessing for their exit codes. Two threads that do so at the
# same moment take those of the application's own processes from each other (not those of `WorkerChild`); the
# standard library has no lock for it.
_starting = seam.InterruptibleLock()


@in_forked_children
def _forget_after_fork() -> None:
    global _starting
    _starting = seam.InterruptibleLock()


class Failure(Enum):
    """How a start-up has failed."""

    EXITED = auto()
    """The worker ended with an exit code: it has told on its standard error what was wrong."""
    KILLED = auto()
    """It was killed by a signal."""
    RAISED = auto()
    """There is none: starting it raised an error."""
    REFUSED = auto()
    """There is none, and nothing is wrong with it: it may be over in a moment."""


class Crew:
    """Starts workers, and knows how the start-ups have gone lately."""

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
        self._failures: list[str] = []
        self._failed = 0
        self._killed = 0
        self._hellos_seen = 0
        #: No worker is started before this moment (monotonic).
        self.not_before: float = 0.0

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
            identified = seam.identity_of(process)
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
        self._forget_failures_before_a_greeting()
        if lane.greeted or lane.told_to_leave:
            # Who is sent home while it starts is killed, which is no failure.
            return None
        return self.note_failure(
            f"process {lane.pid} {how_it_ended(exitcode)}" + (f"\n{last_words}" if last_words else ""),
            Failure.EXITED if signal_name(exitcode) is None else Failure.KILLED,
            initializing=self.is_initializing(lane),
        )

    def initializer_error(self, lane: Lane) -> InitializerFailed | None:
        """What the initializer has raised in a worker, for those who wait for the pool."""
        if lane.bad_initializer is None:
            return None
        cause = failure.unpack_exception(lane.bad_initializer[HEAD_SIZE:], contain=True)
        broken = InitializerFailed(
            f"the initializer of {self._options.name} raised {failure.in_words(cause)}"
        )
        broken.__cause__ = cause
        return broken

    def is_initializing(self, lane: Lane) -> bool:
        """Whether a worker is in the pool's initializer, or has died there."""
        return self._options.initializer is not None and lane.words[STATE] == INITIALIZING

    def note_error(self, error: Exception) -> PoolBroken | None:
        """`start` has raised an error. The one for the pool, once there is no more hope."""
        how = f"starting a process raised {failure.in_words(error)}"
        refused = isinstance(error, MemoryError) or (
            isinstance(error, OSError) and (identity.is_lack_of_means(error) or error.errno in _REFUSED)
        )
        if refused:
            how += (
                "; the system has none left of what a worker needs (descriptors, processes, memory): raise "
                "the limit, or give back what is not needed"
            )
        # A fork server that has died is replaced as soon as it is seen to have ended.
        may_pass = refused or isinstance(error, PoolBroken)
        broken = self.note_failure(how, Failure.REFUSED if may_pass else Failure.RAISED)
        if broken is not None:
            broken.__cause__ = error
        return broken

    def note_failure(self, how: str, kind: Failure, *, initializing: bool = False) -> PoolBroken | None:
        """A start-up has failed. The error, once there is no more hope.

        Args:
            how: What has happened, for people.
            kind: The same, for what is to follow from it.
            initializing: In the pool's initializer.
        """
        self._forget_failures_before_a_greeting()
        self._failures.append(how)
        if kind in (Failure.KILLED, Failure.REFUSED):
            self._killed += 1
        else:
            self._failed += 1
        tries = self._failed + self._killed
        self.not_before = time.monotonic() + min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE)
        if self._failed < MOST_FAILURES and self._killed < MOST_KILLED:
            return None
        method = self._options.context.get_start_method()
        text = (
            f"the workers of {self._options.name} cannot be started (start method {method!r}): "
            f"{tries} start-ups in a row failed. The last one: {self._failures[-1]}."
        )
        if initializing:
            # Whoever has come so far has imported the main module.
            text += (
                f" It was running the initializer {name_of(self._options.initializer)}, which may be what "
                "ended it (os._exit, os.abort, a crash in C code)."
            )
        elif kind is Failure.EXITED and method != "fork":
            text += (
                f" The error itself was printed by the worker (standard error). A frequent cause: {_GUARD}."
                f" Another: {_NOT_IMPORTABLE}."
            )
        if kind is Failure.KILLED:
            text += (
                f" {'Otherwise something' if initializing else 'Something'} kills them: the out-of-memory "
                "killer, a limit of the system, or another program."
            )
        return PoolBroken(text)

    def _forget_failures_before_a_greeting(self) -> None:
        # In a row are those without a start between them that went well.
        if self._hellos_seen != self._dispatcher.hellos:
            self._hellos_seen = self._dispatcher.hellos
            self._failures.clear()
            self._failed = self._killed = 0

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


def _start_alone(process: seam.ChildProcess, method: str) -> None:
    with without_interrupts(), without_fork_warning(method):
        _start(process, method)


def _start(process: seam.ChildProcess, method: str) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        if method != "forkserver":
            raise
        # What talking to the fork server ends in. From 3.14 on (and 3.13.8) it imports the main module.
        raise PoolBroken(
            "the fork server of multiprocessing has died, or the system has no process left for it "
            f"({type(error).__name__}: {error}); if its error output says that the main module could not be "
            f"imported, a frequent cause is that {_GUARD}. Another is that {_NOT_IMPORTABLE}"
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
            return None if seam.code_lost_because(process) else process.exitcode
    return None


def _root_level() -> int:
    import logging  # noqa: PLC0415

    return logging.getLogger().getEffectiveLevel()
