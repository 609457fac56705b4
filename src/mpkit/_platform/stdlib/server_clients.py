"""Imported by the fork server: makes it survive clients that vanish while they talk to it, and refused forks.

(`fork_server` has the server import this module. Its children get multiprocessing unchanged.)

A client may vanish because it is killed, say, or has no descriptor left for the next step. Then the server of
multiprocessing would end with a traceback, and with it the exit codes of all its children would be lost,
whichever process had started them: before Python 3.14 in any case, later if the client has not read
everything that it was sent. But the server ignores connections that were aborted. So here a vanished client
counts as an aborted connection, and so does a fork that the system refuses.

The server learns of the end of its children by SIGCHLD. It has that signal blocked if the program has (to
receive it by `sigwait` or through a descriptor). Then exit codes would never be told, and `join` would never
end. So the signal is unblocked here, and with that in the children.

Before its first fork the server runs a garbage collection. After all its imports the collector is close to
its next run, which otherwise each child would do at its start, for some milliseconds.

On macOS the server acknowledges what it has received, which fails if the client has vanished meanwhile. Here
it then goes on as on other systems. Otherwise it would keep the descriptors, one of which would keep it from
ever ending.
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

P = ParamSpec("P")
R = TypeVar("R")

# The functions that the server calls to receive a client's request, all of them before it has received
# anything.
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
            # Nothing else closes the descriptors that the client has sent. The client waits for the last
            # one's end.
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
    # The last one first, because a name may have been replaced twice.
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
