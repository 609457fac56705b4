"""The programs of `test_process.py`: ``python -m tests.integration.process_programs NAME ARGUMENT...``."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from mpkit import WorkerProcess
from mpkit._platform.stdlib import fork_server


def say(*pids: int | None) -> None:
    # In a single write, even with PYTHONUNBUFFERED set: another process may be writing a line at this moment.
    print(" ".join(map(str, pids)) + "\n", end="", flush=True)


def work(connection: Connection, kind: str) -> None:
    """Report the pids of this process and of its child, then keep busy in the way that `kind` says."""
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as program:
        connection.send([os.getpid(), program.pid])
        if kind == "spin":
            while True:
                pass
        elif kind == "gil":
            # A single call into C that holds the GIL for an hour or so.
            pow(7, 10**10)
        elif kind == "no gil":
            hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
        elif kind == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "nested":
            ours, theirs = multiprocessing.Pipe()
            with WorkerProcess(target=report_and_sleep, args=(theirs,)):
                connection.send([ours.recv()])
                time.sleep(600)
        time.sleep(600)


def report_and_sleep(connection: Connection) -> None:
    connection.send(os.getpid())
    time.sleep(600)


def parent(start_method: str, kind: str, how: str) -> None:
    """Start a child, print its pids, and die in the way that `how` says."""
    ours, theirs = multiprocessing.Pipe()
    process = WorkerProcess(
        target=work,
        args=(theirs, kind),
        start_method=start_method,
        daemon=how == "exit",
        orphan=how == "orphan",
    )
    if how == "thread":
        # The thread that starts the child ends long before this process does.
        thread = threading.Thread(target=process.start)
        thread.start()
        thread.join()
    else:
        process.start()
    pids = ours.recv()
    if kind == "nested":
        pids += ours.recv()
    say(*pids)
    if how == "_exit":
        os._exit(0)
    if how == "abort":
        os.abort()
    if how != "exit":
        os.kill(os.getpid(), signal.SIGKILL)


def joined_at_exit(start_method: str) -> None:
    """End without joining the child: multiprocessing joins children that are not daemonic."""
    WorkerProcess(target=late, start_method=start_method).start()


def late() -> None:
    time.sleep(0.3)
    print("the child has finished", flush=True)


def interrupted(start_method: str) -> None:
    """Wait for a child inside a `with` block until Ctrl-C comes."""
    with WorkerProcess(target=wait_for_ctrl_c, start_method=start_method) as process:
        # The child may print its pid before this process does.
        say(os.getpid())
        process.join()


def wait_for_ctrl_c() -> None:
    try:
        say(os.getpid())
        time.sleep(600)
    except KeyboardInterrupt:
        # The cleanup takes a while, and no second interrupt may disturb it.
        time.sleep(0.2)
        say(0)


def asked_at_every_step(start_method: str, question: str) -> None:
    """Call the method `question` of ended processes; a signal handler asks the same process in the middle.

    For each process the handler runs one step later. `terminate` has so many steps (opcodes) that only every
    other one is tried: each line has several.
    """
    stride = 2 if question == "terminate" else 1
    if start_method == "forkserver":
        fork_server.start_fork_server(["mpkit.process"])  # so that each child starts quickly
    # Since Python 3.12, the first traced call of a function reports no opcodes.
    assert not reached_when_asked(start_method, question, sys.maxsize)
    step = 1
    while reached_when_asked(start_method, question, step):
        step += stride
    say(step)


def reached_when_asked(start_method: str, question: str, step: int) -> bool:
    """Call the method `question`, with a handler at step number `step`; return whether there is such a step.

    Python runs signal handlers between two steps of the main thread. It runs trace functions there as well,
    but at a step that can be chosen: so here, a trace function acts as the handler.
    """
    traced = {
        f"mpkit._platform.{name}"
        for name in ("stdlib.child_popen", "stdlib.child_process", "threads.interruptible_lock")
    }
    process = WorkerProcess(target=os._exit, args=(7,), start_method=start_method)
    process.start()
    connection.wait([process.sentinel])
    answers: list[object] = []

    def handle() -> None:
        process.terminate()
        process.join()
        answers.append((process.is_alive(), process.exitcode))

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal step
        if frame.f_globals.get("__name__") not in traced:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            step -= 1
            if step == 0:
                # Nothing is traced while a trace function runs.
                handle()
        return trace

    sys.settrace(trace)
    getattr(process, question)()
    sys.settrace(None)
    process.join()
    answers.append((process.is_alive(), process.exitcode))
    assert set(answers) == {(False, 7)}, (step, answers)
    process.close()
    return step <= 0


def signal_at_a_fork(where: str) -> None:
    """SIGTERM comes in the middle of starting a child by fork; its handler ends the program."""

    def kill_myself() -> None:
        if is_starting:
            os.kill(os.getpid(), signal.SIGTERM)

    is_starting = False
    os.register_at_fork(**{where: kill_myself})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    process: WorkerProcess[None] = WorkerProcess(target=time.sleep, args=(600,), start_method="fork")
    is_starting = True
    process.start()
    is_starting = False
    process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
