"""What the processes of `test_process.py` run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from mpkit import WorkerProcess
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.processes import identity


def multiply(x: int, y: int = 1) -> int:
    return x * y


def fail(message: str) -> NoReturn:
    raise LookupError(message)


def exit_with(code: object) -> NoReturn:
    sys.exit(code)  # type: ignore[arg-type]


def exit_at_once(code: int) -> NoReturn:
    os._exit(code)


def kill_itself(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(60)


def segfault_here() -> None:
    import faulthandler

    faulthandler._sigsegv()  # type: ignore[attr-defined]


def many_bytes(size: int) -> bytes:
    return bytes(size)


def big_arrays() -> dict[str, Any]:
    import numpy as np

    return {"ones": np.ones(200_000), "range": np.arange(300_001, dtype="i4"), "small": np.zeros(3)}


def unpicklable() -> object:
    return threading.Lock()


class NotBack:
    """Unpickles by calling something with too few arguments."""

    def __reduce__(self) -> tuple[Any, ...]:
        return multiply, ()


class NotThere:
    """Unpickles by calling something that raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exit_in_unpickling, ()


def exit_in_unpickling() -> NoReturn:
    raise ZeroDivisionError("while unpickling")


class Telling:
    """Tells when it is unpickled."""

    def __init__(self) -> None:
        self.content = 1

    @staticmethod
    def told() -> None:
        """For a test to replace."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.told()
        vars(self).update(state)


def telling() -> Telling:
    return Telling()


def not_back() -> NotBack:
    return NotBack()


def who_am_i() -> tuple[Any, ...]:
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return type(me).__name__, me.name, me.pid, os.getpid(), parent.pid, repr(me), me.is_alive()


def report_and_wait(connection: Connection) -> None:
    connection.send(os.getpid())
    while True:
        time.sleep(60)


def report_and_spin(connection: Connection) -> None:
    connection.send(os.getpid())
    while True:
        pass


def resist(connection: Connection, *signals: int) -> None:
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN)
    report_and_wait(connection)


def exit_when_terminated(connection: Connection, code: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(code))
    report_and_wait(connection)


class LooksAtItself(WorkerProcess["tuple[str, int]"]):
    def run(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self.state), self.info().pid


class RaisesAnInterruptWhilePickled(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt("nobody has pressed it")


def raise_one_that_raises_an_interrupt() -> NoReturn:
    raise RaisesAnInterruptWhilePickled


def leave_quietly_when_interrupted(connection: Connection) -> str:
    with contextlib.suppress(KeyboardInterrupt):
        report_and_wait(connection)
    return "interrupted"


PROGRAM = (
    "import signal, sys, time\n"
    "[signal.signal(int(number), signal.SIG_IGN) for number in sys.argv[1:]]\n"
    "print(1, flush=True)\n"
    "time.sleep(600)"
)


def have_a_family(connection: Connection, *ignored: int) -> None:
    """A child with a child and a grandchild that are programs, all of which ignore signals."""
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    numbers = [str(int(number)) for number in ignored]
    inner = [sys.executable, "-S", "-c", PROGRAM, *numbers]
    outer = (
        "import signal, subprocess, sys\n"
        f"[signal.signal(number, signal.SIG_IGN) for number in {[int(number) for number in ignored]}]\n"
        f"p = subprocess.Popen({inner!r}, stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\nprint(p.pid, flush=True)\np.wait()"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", outer], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        connection.send([os.getpid(), child.pid, int(child.stdout.readline())])
        while True:
            time.sleep(60)


def grow(connection: Connection) -> None:
    """Take memory, slowly enough to be seen."""
    connection.send(os.getpid())
    taken = []
    while True:
        taken.append(b"x" * 10_000_000)
        time.sleep(0.01)


def nest(depth: int) -> list[int]:
    if depth == 0:
        return [os.getpid()]
    with WorkerProcess.call(nest, depth - 1) as inner:
        return [os.getpid(), *inner.result()]


def fork_and_return(connection: Connection) -> None:
    """Leave behind a process that was forked, and that has inherited every descriptor."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    connection.send(pid)


def use_shared(lock: Any, queue: Any, value: Any) -> None:
    with lock:
        value.value += 1
    queue.put("done")


class Adder(WorkerProcess[int]):
    """Overrides `run`, has attributes of its own and a state of its own."""

    def __init__(self, first: int, second: int, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.second = first, second
        self.helper = threading.Lock()  # cannot be pickled

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["helper"]
        return state

    def run(self) -> int:  # type: ignore[override]
        return self.first + self.second


class Worn(WorkerProcess[str]):
    """A subclass whose attributes have names that ours have, too, or that one would think of."""

    NAMES = (
        "state",
        *("info", "children", "result", "exception", "stop", "interrupt", "call"),
        *("_stop", "_join", "_state", "_result", "_link", "_handle", "_arrived"),
    )

    def __init__(self, start_method: str) -> None:
        super().__init__(start_method=start_method)
        for name in self.NAMES:
            setattr(self, name, f"my {name}")

    def run(self) -> str:  # type: ignore[override]
        return " ".join(vars(self)[name] for name in self.NAMES)


class Holder(WorkerProcess[None]):
    """Has an attribute that cannot be pickled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.thing = threading.Lock()

    def run(self) -> None: ...


class BecomesText(WorkerProcess[None]):
    """Unpickles to something that is no process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("text",)


class WithoutRepr:
    """Neither it nor its repr goes anywhere."""

    def __init__(self) -> None:
        self.thing = threading.Lock()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class TakesForEverToArrive:
    """Unpickling it lasts until it is interrupted."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (600.0,)


def close_what_is_not_mine(path: str) -> str:
    """As a daemon does; then the numbers are those of other files."""
    for number in range(3, 256):
        # The error output may lie elsewhere, in a file of pytest's: it is not what this is about.
        if number != sys.stderr.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    _kept_open.extend(open(path, "r+") for _ in range(20))  # noqa: SIM115  they stay open
    return "hello"


_kept_open: list[Any] = []


def fork_a_helper(how: str) -> int:
    """Ends long after its helper, which leaves as `how` says."""
    pid = os.fork()
    if not pid:
        if how == "returns":
            return 1
        if how == "raises":
            raise ValueError("of the helper")
        sys.exit(0)
    os.waitpid(pid, 0)
    return 42


def fork_a_helper_and_die(how: str) -> None:
    fork_a_helper(how)
    os.kill(os.getpid(), signal.SIGKILL)


class InterruptedWhilePickled:
    """Ctrl-C comes while the child hands in its result."""

    def __reduce__(self) -> tuple[type[InterruptedWhilePickled], tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return InterruptedWhilePickled, ()


class ErrorInterruptedWhilePickled(Exception):
    """Ctrl-C comes while the child hands in its error."""

    def __reduce__(self) -> tuple[type[ErrorInterruptedWhilePickled], tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return ErrorInterruptedWhilePickled, ()


class ExitsWhilePickled:
    """Somebody's way to say that it cannot be pickled."""

    def __reduce__(self) -> tuple[type[ExitsWhilePickled], tuple[()]]:
        raise SystemExit(5)


def raise_one_that_is_interrupted_while_pickled() -> None:
    raise ErrorInterruptedWhilePickled


def start_programs_without_end(connection: Connection, started: Path) -> None:
    connection.send(None)
    while True:
        with started.open("a") as file:
            file.write(f"{subprocess.Popen(['sleep', '600'], stdin=subprocess.DEVNULL).pid}\n")
        time.sleep(0.002)


def start_a_program_when_interrupted(connection: Connection, started: Path) -> None:
    def start_and_leave(*_: object) -> None:
        program = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
        started.write_text(str(program.pid))
        raise SystemExit

    signal.signal(signal.SIGINT, start_and_leave)
    connection.send(None)
    time.sleep(600)


def signals_when_unpickled_in(pid: int, raises: bool) -> object:
    if raises:
        raise ErrorThatSignals(pid)
    return Signals(pid)


class Signals:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> Any:
        return _signal_in, (self.pid,)


class ErrorThatSignals(Exception):
    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        _signal_in(pid)


def _signal_in(pid: int) -> None:
    if os.getpid() == pid:
        signal.raise_signal(signal.SIGUSR1)


def wait_for_a_line(link: ParentLink, connection: Connection) -> None:
    """A child that reports whether it has a thread of its own, then waits."""
    link.die_with_parent()
    connection.send((os.getpid(), [thread.name for thread in threading.enumerate()]))
    connection.recv()


def report_and_wait_to_be_killed(link: ParentLink, connection: Connection) -> None:
    link.die_with_parent()
    connection.send(os.getpid())
    while True:
        signal.pause()


def start_one_and_report(link: ParentLink, connection: Connection, orphan: bool) -> None:
    """A child that starts a child of its own, and a program that knows nothing of us."""
    link.die_with_parent()
    ours, theirs = multiprocessing.Pipe()
    inner = ParentLink.create(orphan=orphan)
    process = multiprocessing.Process(target=report_and_wait_to_be_killed, args=(inner, theirs))
    process.start()
    inner.started(identity.of(process.pid or 0))
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as program:
        connection.send((ours.recv(), program.pid))
        connection.recv()
