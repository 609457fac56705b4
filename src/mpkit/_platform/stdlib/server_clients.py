"""For the fork server: a client that goes away while it asks does not end it, nor does one for which the
system has no process.

One that goes away has been killed, say, or has found no descriptor for what comes next. The server of
multiprocessing would end with a traceback, and with it the exit codes of all its children, whoever has
started them: before Python 3.14 in any case, since then if the client has not read all that it was sent. It
passes over connections that were aborted, so this counts as one, and a fork that is refused does, too. (See
`fork_server` for who imports this module.) Its children have multiprocessing as it is.

It hears of the end of its children by SIGCHLD, and has that blocked if the program has (to take it from
`sigwait` or a descriptor). Nobody would be told of an exit code, and `join` never end: so it is unblocked
here, and with that in the children.

Before its first fork it collects its garbage. All that it has imported leaves the collector near to its next
turn, which each child would take then, for some milliseconds, before it has done anything.

On macOS it acknowledges what it has been sent, which fails if the client has gone meanwhile. Then it goes on
as it would elsewhere: else it would keep the descriptors, and one of them would keep it from ever ending.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing import connection, reduction
from types import ModuleType
from typing import ParamSpec, TypeVar

__all__: list[str] = []

P = ParamSpec("P")
R = TypeVar("R")

# What it calls to hear what a client wants, all of it before it has got anything from it.
_ASKED: list[tuple[ModuleType, str]] = [
    (connection, "deliver_challenge"),
    (connection, "answer_challenge"),
    (reduction, "recvfds"),
]
_originals: list[tuple[ModuleType, str, object]] = []
_has_forked = False


def _bearing(function: Callable[P, R]) -> Callable[P, R]:
    def ask(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (EOFError, ConnectionResetError) as error:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client has gone") from error

    return ask


def _bearing_refusal(fork: Callable[[], int]) -> Callable[[], int]:
    def fork_or_pass_over() -> int:
        try:
            return fork()
        except OSError as error:
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__") != "multiprocessing.forkserver":
                raise
            its = caller.f_locals
            # Nobody else closes what the client has sent. It waits for the end of the last of these.
            for descriptor in (*its["fds"], its["child_r"], its["child_w"]):
                os.close(descriptor)
            raise ConnectionAbortedError(errno.ECONNABORTED, "there is no process for the client") from error

    return fork_or_pass_over


def _acknowledging(receive: Callable[[socket.socket, int], list[int]]) -> Callable[..., list[int]]:
    def receive_and_tell(connected: socket.socket, size: int) -> list[int]:
        descriptors = receive(connected, size)
        with contextlib.suppress(ConnectionError):
            connected.send(b"A")
        return descriptors

    return receive_and_tell


def _replace(module: ModuleType, name: str, new: object) -> None:
    _originals.append((module, name, vars(module)[name]))
    setattr(module, name, new)


def _collect_once() -> None:
    global _has_forked
    if not _has_forked:
        _has_forked = True
        gc.collect()


def _give_back() -> None:
    # The last one first: one of them may have been replaced twice.
    for module, name, original in reversed(_originals):
        setattr(module, name, original)
    _originals.clear()


if sys.platform != "win32":
    for _module, _name in _ASKED:
        _replace(_module, _name, _bearing(vars(_module)[_name]))
    _replace(os, "fork", _bearing_refusal(os.fork))
    if getattr(reduction, "ACKNOWLEDGE", False):
        _replace(reduction, "ACKNOWLEDGE", False)
        _replace(reduction, "recvfds", _acknowledging(vars(reduction)["recvfds"]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.register_at_fork(before=_collect_once, after_in_child=_give_back)
