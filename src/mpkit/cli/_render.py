"""Tables of processes, pools and queues, as lines of text (shared by `ps` and `top`)."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mpkit import introspect
from mpkit.cli import _text
from mpkit.errors import AccessDenied, ProcessGone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mpkit.introspect import PoolSnapshot, ProcessSnapshot, ProcessTree, QueueSnapshot

_USERS_WIDTH = 40
#: Helper processes that multiprocessing and mpkit start, by a part of their command lines.
_HELPERS = {
    "multiprocessing.resource_tracker": "multiprocessing's resource tracker",
    "multiprocessing.forkserver": "multiprocessing's fork server, or a child of it",
    "multiprocessing.spawn": "child of multiprocessing, spawned",
    os.path.join("_platform", "parent_death", "guardian.py"): "mpkit's guardian",
}
_MOST_QUEUES = 20
#: How many generations are indented. Deeper ones have a number instead, so that the
#: table does not become too wide.
_MOST_INDENTED = 40


def program(tree: ProcessTree, *, now: float, cpu_percent: Mapping[int, float] | None = None) -> list[str]:
    """Everything about one program: its processes, then its pools and queues.

    Args:
        tree: its processes.
        now: the time, in seconds since 1970.
        cpu_percent: the CPU share of processes, by pid; for others the mean over their lives is shown.
    """
    pools: dict[str, PoolSnapshot] = {}
    queues: dict[str, QueueSnapshot] = {}
    for process in tree.walk():
        # A child may end meanwhile, or belong to another user.
        with contextlib.suppress(ProcessGone, AccessDenied):
            pools.update((pool.name, pool) for pool in introspect.pools(process.pid))
            queues.update((queue.name, queue) for queue in introspect.queues(process.pid))
    roles = {
        worker.pid: f"worker of pool {identifier(pool.name)}"
        for pool in pools.values()
        for worker in pool.workers
    }
    lines = processes(tree, now=now, cpu_percent=cpu_percent or {}, roles=roles)
    for pool in pools.values():
        lines += ["", *pool_lines(pool)]
    if queues:
        lines += ["", *queue_lines(list(queues.values()))]
    return lines


def processes(
    tree: ProcessTree, *, now: float, cpu_percent: Mapping[int, float], roles: Mapping[int, str]
) -> list[str]:
    """The table of a process tree, children drawn under their parents."""
    rows = [
        (
            str(process.pid),
            str(process.state),
            f"{cpu_percent.get(process.pid, process.cpu_percent):.1f}",
            _text.duration(process.cpu_s),
            _text.size(process.rss_bytes),
            str(process.num_threads),
            "-" if process.num_fds is None else str(process.num_fds),
            _text.duration(max(now - process.create_time, 0.0)),
            branch + (roles.get(process.pid) or command(process)),
        )
        for branch, process in _branches(tree)
    ]
    return _text.table(
        ("PID", "STATE", "CPU%", "CPU TIME", "MEMORY", "THREADS", "FILES", "AGE", "COMMAND"),
        rows,
        left=(1, 8),
    )


def command(process: ProcessSnapshot) -> str:
    """What a process runs: its command line, or its name in brackets if that is empty (as in `ps`).

    If the process has given itself a name, that comes first.
    """
    line = _text.visible(" ".join(" ".join(process.cmdline).split()))
    # The command lines of helper processes are long, and say little.
    helper = next((role for mark, role in _HELPERS.items() if mark in line), None)
    name = _text.visible(process.name)
    if not line:
        return f"[{name}]"
    # Otherwise its name is that of the program or script, cut off by the system after 15 characters.
    own = all(os.path.basename(part).lstrip("-")[:15] != process.name[:15] for part in process.cmdline[:3])
    return (f"{name}: " if own else "") + (f"[{helper}]" if helper else line)


def _branches(top: ProcessTree) -> Iterator[tuple[str, ProcessSnapshot]]:
    """Each process of a tree, with the characters that draw its branch."""
    pending = [(top, 0, "", "")]
    while pending:
        tree, generation, first, rest = pending.pop()
        yield first, tree.process
        deeper = generation + 1 - _MOST_INDENTED
        branches: list[tuple[ProcessTree, int, str, str]] = []
        for number, child in enumerate(tree.children, start=1):
            own, below = ("`- ", "   ") if number == len(tree.children) else ("|- ", "|  ")
            lead = (rest + own, rest + below) if deeper <= 0 else (f"{rest}[+{deeper}] {own}", rest)
            branches.append((child, generation + 1, *lead))
        pending.extend(reversed(branches))


def pool_lines(pool: PoolSnapshot) -> list[str]:
    """A pool and the table of its workers."""
    rows = [
        (
            str(worker.pid),
            worker.state,
            "-" if worker.task_id is None else str(worker.task_id),
            "-" if worker.running_s is None else _text.duration(worker.running_s),
            _text.count(worker.tasks_done),
            "-" if worker.rss_bytes is None else _text.size(worker.rss_bytes),
        )
        for worker in pool.workers
    ]
    workers, sent = _text.counted(len(pool.workers), "worker"), _text.counted(pool.sent, "task")
    label = f" ({_text.visible(pool.label)})" if pool.label else ""
    heading = f"pool {identifier(pool.name)}{label} of process {pool.pid}: {workers}, {sent} sent ahead"
    return [heading, *_text.table(("WORKER", "STATE", "TASK", "FOR", "DONE", "MEMORY"), rows, left=(1,))]


def queue_lines(queues: list[QueueSnapshot]) -> list[str]:
    """The table of queues, the fullest first."""
    queues = sorted(queues, key=lambda queue: (-queue.statistics.size, queue.name))
    shown, more = queues[:_MOST_QUEUES], len(queues) - _MOST_QUEUES
    rows = [
        (
            identifier(queue.name),
            str(queue.pid),
            _text.count(queue.statistics.size),
            "-" if not queue.statistics.maxsize else _text.count(queue.statistics.maxsize),
            _text.size(queue.statistics.bytes),
            _text.count(queue.statistics.puts),
            _text.count(queue.statistics.gets),
            f"{queue.statistics.waiting_putters}/{queue.statistics.waiting_getters}",
            _text.shortened(" ".join(map(str, queue.users)), _USERS_WIDTH),
        )
        for queue in shown
    ]
    headings = ("QUEUE", "CREATOR", "ITEMS", "OF", "BYTES", "PUTS", "GETS", "WAITING PUT/GET", "OPEN IN")
    lines = _text.table(headings, rows, left=(0, 8))
    return [*lines, f"and {_text.counted(more, 'more queue')}"] if more > 0 else lines


def identifier(name: str) -> str:
    """The part of the name of a file that distinguishes it from others, short enough to read."""
    return name.rpartition("-")[2][:8]
