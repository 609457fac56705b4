"""What a worker and its parent share: one mapped file with a status row and two rings, and two semaphores.

No two workers share any of this, so a worker that dies, at any instruction, cannot harm another one.

The words of the status row, and who writes them:

- ``STATE`` (worker): how far it has come: 0 (it is starting), `INITIALIZING` ... `LEAVING`.
- ``TASK`` (worker): the task that it is running (0: none): stored before the record leaves the inbox, cleared
  after the outcome is in the outbox.
- ``STARTED`` (worker): when that task began (`time.monotonic_ns`, the same clock in all processes).
- ``DONE`` (worker): tasks finished.
- ``PID``, ``POOL``, ``STACK_PIPE`` (worker), for other programs (`mpkit.pool._outside`): its process id; the
  random part of the board's name; its descriptor of the pipe that it writes its stack into, plus 1 (0: none).
- ``ITEM`` (worker): while it runs a chunk, which items it is processing: ``first << 32 | end`` (without `end`
  itself), 0 before the first item. If it dies, one of these items may be the
  cause. Written in a single store.
- ``PARCELS`` (worker), once it is `LEAVING`: how many parcels it has made (see
  `mpkit.pool._protocol.payload`).
- ``STOP`` (parent): the task that an interrupt (SIGINT) is meant for; the worker ignores any other interrupt.
- ``LOW`` (parent): the worker is to ring when no more than ``LOW - 1`` tasks are
  left in the inbox (0: never).
- ``SLEEPING`` (worker): it is going to sleep on `wake`, or does, until there is a record in the inbox
  (`SLEEPS_FOR_RECORDS`) or room in the outbox (`SLEEPS_FOR_ROOM`); 0: it does not sleep. The parent clears it
  and releases `wake` once.

The rings:

- inbox (written by the parent): tasks to come. Only the process that holds `lock` takes records out: the
  worker for one record at a time, the parent when it takes tasks back.
- outbox (written by the worker): outcomes and log records.

No wake-up is lost: the worker stores ``SLEEPING`` and then checks the inbox again, the parent publishes a
record and then checks ``SLEEPING``, and each of them passes a full barrier between the two steps. As a safety
net, a worker sleeps for two seconds at most.

The **board** is one page for the whole pool. The parent writes it; a worker only clears ``FRONT`` or ``BACK``
before it rings that bell.
"""

from __future__ import annotations

import functools
import struct
import threading
from collections.abc import Callable

from mpkit._platform.hints import override
from mpkit._platform.stdlib import tracker
from mpkit._shm.memory import trail
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore
from mpkit._shm.queues.ring import Ring

# -- words of the status row; words that different processes write are on different cache lines --------------

STATE = 0
TASK = 1
STARTED = 2
DONE = 3
SLEEPING = 4
PID = 5
STACK_PIPE = 6
POOL = 7
STOP = 8
LOW = 9
IN_HEAD = 16
ITEM = 17
PARCELS = 18
IN_TAIL = 24
OUT_HEAD = 32
OUT_TAIL = 40
#: Behind the trail (see `mpkit._shm.memory.trail`).
RINGS = trail.END

# -- STATE ---------------------------------------------------------------------------------------------------

#: It has started, and may be running the initializer of the pool. (Before the worker writes anything, the
#: word is 0: it is starting.)
INITIALIZING = 1
READY = 2
LEAVING = 3

_STATE_NAMES = {INITIALIZING: "initializing", READY: "idle", LEAVING: "leaving"}


def state_name(state: int, task: int) -> str:
    """The name, for users, of the state of a worker that is running a certain task (0: none)."""
    return "running" if task and state == READY else _STATE_NAMES.get(state, "starting")


# -- SLEEPING ------------------------------------------------------------------------------------------------

SLEEPS_FOR_RECORDS = 1
SLEEPS_FOR_ROOM = 2

# -- the board -----------------------------------------------------------------------------------------------

# Words.
#: 1: the leader sleeps at the front bell. 0: it does not.
FRONT = 0
#: For which outcomes to ring the front bell: the number of a task, or `ANY`, `SOON` or `NOT_NOW`. (The leader
#: also wants to know when an inbox runs low or an outbox fills up.)
WANTED = 1
#: When to ring the back bell, at which the collector sleeps: `AWAKE` ... `ALWAYS`.
BACK = 8
#: Not 0: so many log records wait for the handlers in the parent that a worker which logs has to slow down.
LOGS_LATE = 9

#: Where the name of the pool begins, in bytes: its length in one byte, then UTF-8. For other programs.
NAME_AT = 128
_LONGEST_NAME = 255

# Values of `WANTED`.
#: Every outcome, at once.
ANY = 0
#: Every outcome, but while a worker has more to do it need not ring more than once in a millisecond.
SOON = (1 << 64) - 1
#: No outcome: the leader wakes up by itself in a moment.
NOT_NOW = (1 << 64) - 2

# Values of `BACK`; each includes the ones before it.
#: Never: the collector is not asleep.
AWAKE = 0
#: When the outbox fills up.
WHEN_FULL = 1
#: When the inbox runs low.
WHEN_LOW = 2
#: For every outcome, in the way of `SOON`.
ALWAYS = 3

# -- records -------------------------------------------------------------------------------------------------

#: A task: its number, the length of the pickled function that follows, flags. After
#: the function: the arguments.
TASK_HEAD = struct.Struct("<QIH2x")
#: What a worker hands in: the number of the task, how long it ran in nanoseconds, the kind. Then the data.
RESULT_HEAD = struct.Struct("<QIB3x")
#: Which items of a chunk are meant: the index of the first one, and the index behind the last one.
RANGE = struct.Struct("<II")
#: The size in bytes of `TASK_HEAD`, and of `RESULT_HEAD`.
HEAD_SIZE = 16

# Flags of a task.
#: The arguments are ``(args, kwargs)``; without this flag, they are ``args`` alone.
KEYWORDS = 1
#: The arguments are in a parcel; the record has its name.
BIG = 2
#: A chunk of a map: the arguments are a list of items, and a `RANGE` precedes them.
CHUNK = 4
#: Each item of the chunk is a tuple of arguments.
STAR = 8
#: The function was pickled by name: the worker may keep it.
BY_REFERENCE = 16
#: Use cloudpickle for the outcome.
BY_VALUE = 32
#: The function is too big for a record: the arguments are ``(pickled function, arguments)``.
FUNCTION_INSIDE = 64
#: Not a task: finish what came before, then leave.
LEAVE = 128
#: A group of an imap: a chunk whose worker hands in the result of each item before the next one begins.
EACH = 256

# Kinds of what a worker hands in. First come the outcomes of tasks.
#: The task has returned None.
NONE = 0
#: A pickled value follows.
VALUE = 1
#: A pickled exception follows.
ERROR = 2
#: The name of a parcel with the value follows.
BIG_VALUE = 3
#: The name of a parcel with the exception follows.
BIG_ERROR = 4
#: The kinds up to this one are outcomes of tasks.
LAST_RESULT = BIG_ERROR
#: Used in the parent only: the outcome is an exception object that was created there.
RAISED = 5
#: Used in the parent only: the outcome is a value that was created or unpickled there.
PLAIN = 6
#: Results of some items of a chunk that goes on. Instead of the run time, the head
#: has the index of the next item.
PART = 8
#: The same, in a parcel.
BIG_PART = 9
#: A log record.
LOG = 16
#: The worker is ready for tasks.
HELLO = 17
#: The initializer has raised an exception, which follows, pickled; the worker takes no tasks.
BAD_INITIALIZER = 18
#: The worker takes no more tasks, and will end as soon as no thread and no process that it waits for is left.
GOODBYE = 19

_INBOX_BYTES = 64 << 10
_OUTBOX_BYTES = 128 << 10

#: The record that tells a worker to leave.
LEAVE_RECORD = TASK_HEAD.pack(0, 0, LEAVE)

#: The longest record of a task, in bytes. It must fit into an empty inbox even if the
#: index is in the middle of it.
LONGEST_TASK = ((_INBOX_BYTES >> 4) - 1) << 3


def _created(size: int, kind: str, permits: list[tuple[int, int]]) -> tuple[Segment, Semaphore, Semaphore]:
    """Create a segment and two semaphores. If that fails, nothing is left behind."""
    segment = Segment.create(size, kind=kind)
    try:
        first, second = Semaphore.create_all(permits, segment.name)
    except BaseException:
        segment.close()
        raise
    return segment, first, second


class Channel:
    """The channel of one worker, used by both sides.

    A forked worker inherits the object of its parent; in other workers it is
    unpickled, and opened by its names.
    """

    __slots__ = ("inbox", "lock", "outbox", "segment", "wake", "words")

    def __init__(self, segment: Segment, lock: Semaphore, wake: Semaphore) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self.lock: Semaphore = lock
        self.wake: Semaphore = wake
        inbox_words = _INBOX_BYTES >> 3
        self.inbox: Ring = Ring(
            segment.words, segment.mm, head_at=IN_HEAD, tail_at=IN_TAIL, start=RINGS, capacity=inbox_words
        )
        self.outbox: Ring = Ring(
            segment.words,
            segment.mm,
            head_at=OUT_HEAD,
            tail_at=OUT_TAIL,
            start=RINGS + inbox_words,
            capacity=_OUTBOX_BYTES >> 3,
        )

    @classmethod
    def create(cls) -> Channel:
        """Create a channel, in the parent."""
        size = (RINGS << 3) + _INBOX_BYTES + _OUTBOX_BYTES
        return cls(*_created(size, trail.KIND, [(1, 1), (0, MAX_VALUE)]))

    @classmethod
    def attach(cls, segment: str, lock: str, wake: str) -> Channel:
        """Open a channel by its names, in the worker."""
        return cls(Segment.attach(segment), Semaphore.attach(lock, 1), Semaphore.attach(wake, MAX_VALUE))

    @override
    def __reduce__(self) -> tuple[Callable[..., Channel], tuple[str, str, str]]:
        return Channel.attach, (self.segment.name, self.lock.name, self.wake.name)

    def dismiss(self) -> None:
        """In the parent, if starting the worker has failed: should there be one after all, it leaves."""
        self.inbox.try_put(LEAVE_RECORD)
        self.wake.release()

    def discard_semaphores(self) -> None:
        """In the parent: remove the names of the semaphores. The worker must have opened them already."""
        with tracker.in_one_message():
            self.lock.close()
            self.wake.close()

    def discard(self) -> None:
        """In the parent: remove all names. The memory is freed when no thread uses it any more."""
        with tracker.in_one_message():
            self.segment.unlink()
            self.discard_semaphores()


class Board:
    """The page of a pool and its two bells, used by both sides. Passed to workers as a channel is."""

    __slots__ = ("back", "front", "segment", "words")

    def __init__(self, segment: Segment, front: Semaphore, back: Semaphore) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self.front: Semaphore = front
        self.back: Semaphore = back

    @classmethod
    def create(cls, name: str) -> Board:
        """Create a board, in the parent.

        Args:
            name: the name of the pool.
        """
        # Created now, because closing the board must not need anything of the system.
        _silent_bell()
        segment, front, back = _created(1, "pool", [(0, MAX_VALUE), (0, MAX_VALUE)])
        told = name.encode(errors="replace")[:_LONGEST_NAME]
        segment.mm[NAME_AT : NAME_AT + 1 + len(told)] = bytes((len(told),)) + told
        return cls(segment, front, back)

    @classmethod
    def attach(cls, segment: str, front: str, back: str) -> Board:
        """Open a board by its names, in the worker."""
        return cls(
            Segment.attach(segment), Semaphore.attach(front, MAX_VALUE), Semaphore.attach(back, MAX_VALUE)
        )

    @override
    def __reduce__(self) -> tuple[Callable[..., Board], tuple[str, str, str]]:
        return Board.attach, (self.segment.name, self.front.name, self.back.name)

    def discard(self) -> None:
        """In the parent: remove all names."""
        with tracker.in_one_message():
            self.segment.unlink()
            self.front.close()
            self.back.close()

    def close(self) -> None:
        """In the parent, when no worker is left: give back names, descriptor and memory.

        A thread that is still using the page keeps its own view of it. Others then find an empty page, and
        bells that nobody sleeps at.
        """
        self.discard()
        self.segment.close()
        self.words = self.segment.words
        self.front = self.back = _silent_bell()


@functools.cache
def _silent_bell() -> Semaphore:
    return Semaphore.private()


def ring_bell(bell: Semaphore) -> None:
    """Wake the thread that sleeps at a bell, or the next one that would; also used for `Channel.wake`."""
    try:
        bell.release()
    except ValueError:
        # The semaphore has its greatest value: a thread that sleeps at it wakes up anyway.
        return


class Barrier:
    """A full memory barrier between a store and a following load, on every machine.

    Even x86, which keeps stores in order and loads in order, lets a load overtake an earlier store to another
    address. Taking a free lock is an atomic read-modify-write, which no load or store
    passes. It costs some 40 ns.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        # Each object is used by one thread at a time, so the lock is free; unless a signal handler came
        # between the acquire and the release of an earlier call, and raised an exception or has itself called
        # this. Then it is released now, which is an atomic read-modify-write as well.
        self._lock.acquire(False)
        try:
            self._lock.release()
        except RuntimeError:
            # Such a handler has released it, after it was acquired here.
            return
