"""The state of a pool and its workers, read from another process. Nothing is ever changed."""

from __future__ import annotations

import os
from typing import NamedTuple

from mpkit._platform.files.positioned import read_at
from mpkit._shm.queues.outside import open_to_look
from mpkit._shm.queues.ring import COUNT_MASK, INDEX_BITS
from mpkit.pool._protocol.channel import (
    DONE,
    IN_HEAD,
    IN_TAIL,
    NAME_AT,
    PID,
    POOL,
    RINGS,
    STACK_PIPE,
    STARTED,
    STATE,
    TASK,
    state_name,
)


class WorkerRow(NamedTuple):
    """The status row of one worker at one moment.

    Attributes:
        pid: the process id of the worker; 0 while it starts.
        pool: the random part of the name of its pool's board, as a number.
        state: ``"starting"``, ``"initializing"``, ``"idle"``, ``"running"`` or ``"leaving"``.
        task_id: the task that it is running, or None.
        started_ns: when that task began (`time.monotonic_ns`), or None.
        tasks_done: how many tasks it has finished.
        waiting: how many tasks are in its inbox.
        stack_pipe: the descriptor, in the worker, of the pipe that it writes its stack into, or None.
    """

    pid: int
    pool: int
    state: str
    task_id: int | None
    started_ns: int | None
    tasks_done: int
    waiting: int
    stack_pipe: int | None


def read_name(path: str) -> str:
    """The name that its program has given the pool whose board is the file at `path`.

    Raises:
        OSError: the file is gone, or may not be read.
    """
    fd = open_to_look(path)
    try:
        length = read_at(fd, 1, NAME_AT)
        return read_at(fd, length[0], NAME_AT + 1).decode(errors="ignore") if length else ""
    finally:
        os.close(fd)


def read_row(path: str) -> WorkerRow | None:
    """The status row of the worker whose channel is the file at `path`; None if the file is not a channel.

    Raises:
        OSError: the file is gone, or may not be read.
    """
    fd = open_to_look(path)
    try:
        # Read, not mapped: another user may truncate the file meanwhile, and touching the mapping would then
        # raise SIGBUS. Read twice, because a read of several words is not atomic.
        first, again = read_at(fd, RINGS << 3, 0), read_at(fd, RINGS << 3, 0)
    finally:
        os.close(fd)
    if len(first) < RINGS << 3 or len(again) < RINGS << 3:
        return None
    words = memoryview(first).cast("Q")
    if memoryview(again).cast("Q")[TASK] != words[TASK]:
        # The worker has just gone on to another task, or to none, so the first read may mix the words of two
        # tasks. The second one is right, unless the worker has gone on again within microseconds.
        words = memoryview(again).cast("Q")
    task, started = words[TASK], words[STARTED]
    head, tail = words[IN_HEAD], words[IN_TAIL]
    return WorkerRow(
        pid=words[PID],
        pool=words[POOL],
        state=state_name(words[STATE], task),
        task_id=task or None,
        started_ns=started if task else None,
        tasks_done=words[DONE],
        waiting=((tail >> INDEX_BITS) - (head >> INDEX_BITS)) & COUNT_MASK,
        stack_pipe=words[STACK_PIPE] - 1 if words[STACK_PIPE] else None,
    )
