"""What the processes of `test_process.py` and `test_process_parent_watch.py` run."""

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
    """Cannot be unpickled: that calls a function with too few arguments."""

    def __reduce__(self) -> tuple[Any, ...]:
        return multiply, ()


class NotThere:
    """Cannot be unpickled: that calls a function that raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exit_in_unpickling, ()


def exit_in_unpickling() -> NoReturn:
    raise ZeroDivisionError("while unpickling")


class TooBig:
    """There is no memory for it where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return no_memory_for_it, ()


def no_memory_for_it() -> NoReturn:
    raise MemoryError("for an argument")


class Interrupts:
    """Ctrl-C comes while it is unpickled, after something has been printed."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return print_and_interrupt, ()


def print_and_interrupt() -> None:
    # A file that is not flushed until the end, whatever the environment says.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    print("printed before")
    signal.raise_signal(signal.SIGINT)


class Telling:
    """Calls `told` when it is unpickled."""

    def __init__(self) -> None:
        self.content = 1

    @staticmethod
    def told() -> None:
        """Do nothing; a test replaces this."""

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
    """Start a program that starts another one; all three ignore the signals `ignored`."""
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
    """Use more and more memory, slowly enough for the memory watch to notice."""
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
    """Return, and leave a forked process behind, which has inherited every descriptor."""
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
    """Overrides `run` and `__getstate__`, and has attributes of its own."""

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
    """A subclass with attributes whose names `WorkerProcess` uses, too, or might use."""

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


class Delegates(WorkerProcess[int]):
    """Starts another process, whose target is a method of this one."""

    def __init__(self, start_method: str, method_of_other: str) -> None:
        super().__init__(start_method=start_method)
        self.method_of_other = method_of_other

    def run(self) -> int:  # type: ignore[override]
        self.number = 7
        with WorkerProcess(target=self.tell, start_method=self.method_of_other) as other:
            return other.result()

    def tell(self) -> int:
        return self.number


class BecomesText(WorkerProcess[None]):
    """Unpickles to something that is no process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("text",)


class WithoutRepr:
    """Can be neither pickled nor shown: its repr raises."""

    def __init__(self) -> None:
        self.thing = threading.Lock()

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class TakesForEverToArrive:
    """Takes (nearly) for ever to unpickle, unless it is interrupted."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (600.0,)


def close_what_is_not_mine(path: str) -> str:
    """Close all descriptors, as a daemon does, and open other files, which get the same numbers."""
    for number in range(3, 256):
        # Not the error output, which may be a file of pytest with a higher number than 2.
        if number != sys.stderr.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    _kept_open.extend(open(path, "r+") for _ in range(20))  # noqa: SIM115  they stay open
    return "hello"


_kept_open: list[Any] = []


def fork_a_helper(how: str) -> int:
    """Fork a helper, which leaves this function in the way that `how` says; then return 42."""
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
    """A result during whose pickling Ctrl-C comes."""

    def __reduce__(self) -> tuple[type[InterruptedWhilePickled], tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return InterruptedWhilePickled, ()


class ErrorInterruptedWhilePickled(Exception):
    """An error during whose pickling Ctrl-C comes."""

    def __reduce__(self) -> tuple[type[ErrorInterruptedWhilePickled], tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return ErrorInterruptedWhilePickled, ()


class ExitsWhilePickled:
    """Raises SystemExit when it is pickled."""

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
    """Connect to the guardian, report the names of all threads of this child, then wait."""
    link.die_with_parent()
    connection.send((os.getpid(), [thread.name for thread in threading.enumerate()]))
    connection.recv()


def report_and_wait_to_be_killed(link: ParentLink, connection: Connection) -> None:
    link.die_with_parent()
    connection.send(os.getpid())
    while True:
        signal.pause()


def start_one_and_report(link: ParentLink, connection: Connection, orphan: bool) -> None:
    """Start a child (or an orphan) and a program that does not use mpkit, and report both pids."""
    link.die_with_parent()
    ours, theirs = multiprocessing.Pipe()
    inner = ParentLink.create(orphan=orphan)
    process = multiprocessing.Process(target=report_and_wait_to_be_killed, args=(inner, theirs))
    process.start()
    inner.started(identity.of(process.pid or 0))
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as program:
        connection.send((ours.recv(), program.pid))
        connection.recv()
