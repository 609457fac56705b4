"""For the fork server: a client that goes away while it asks does not end it.

Such a client has been killed, say, or has found no descriptor for what comes next. The server of
multiprocessing would end with a traceback, and with it the exit codes of all its children, whoever has
started them: before Python 3.14 in any case, since then if the client has not read all that it was sent. It
passes over connections that were aborted, so this counts as one. (See `seam.start_fork_server` for who
imports this module.) Its children have multiprocessing as it is.
"""

from __future__ import annotations

import errno
import os
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


def _give_back() -> None:
    for module, name, original in _originals:
        setattr(module, name, original)
    _originals.clear()


for _module, _name in _ASKED:
    _originals.append((_module, _name, vars(_module)[_name]))
    setattr(_module, _name, _bearing(vars(_module)[_name]))
os.register_at_fork(after_in_child=_give_back)

# Besides: each child compiles the main module, and would have to wait a millisecond for the first use of the
# compiler in its process.
compile("None", __name__, "eval")
