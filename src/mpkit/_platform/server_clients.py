"""For the fork server: a client that goes away while it asks does not end it, nor does one for which the
system has no process.

One that goes away has been killed, say, or has found no descriptor for what comes next. The server of
multiprocessing would end with a traceback, and with it the exit codes of all its children, whoever has
started them: before Python 3.14 in any case, since then if the client has not read all that it was sent. It
passes over connections that were aborted, so this counts as one, and a fork that is refused does, too. (See
`seam.start_fork_server` for who imports this module.) Its children have multiprocessing as it is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from multiprocessing import connection, reduction
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

__all__: list[str] = []

P = ParamSpec("P")
R = TypeVar("R")

# What it calls to hear what a client wants, all of it before it has got anything from it.
_ASKED: list[tuple[ModuleType, str]] = [
    (connection, "deliver_challenge"),
    (connection, "answer_challenge"),
    (reduction, "recvfds"),
]
_originals: list[tuple[ModuleType, str, Callable[..., Any]]] = []


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


def _replace(module: ModuleType, name: str, wrap: Callable[[Any], Callable[..., Any]]) -> None:
    original = vars(module)[name]
    _originals.append((module, name, original))
    setattr(module, name, wrap(original))


def _give_back() -> None:
    for module, name, original in _originals:
        setattr(module, name, original)
    _originals.clear()


for _module, _name in _ASKED:
    _replace(_module, _name, _bearing)
_replace(os, "fork", _bearing_refusal)
os.register_at_fork(after_in_child=_give_back)
