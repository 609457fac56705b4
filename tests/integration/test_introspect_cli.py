"""`python -m mpkit ps`, `top`, `stacks` and `doctor`, as a user runs them, on a program that is running."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mpkit import introspect
from mpkit._platform.processes import identity
from mpkit._platform.threads import readiness
from mpkit.cli.doctor import leftovers
from mpkit.cli.main import main
from mpkit.errors import AccessDenied
from mpkit.introspect import _pools, _stacks
from mpkit.pool._engine import stacks
from mpkit.pool._outside import WorkerRow
from tests.helpers.processes import python, run_python
from tests.helpers.waiting import PATIENCE, wait_until

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see what processes have open")

PROGRAM = """
import sys, time
from mpkit import BoundedQueue, TaskPool

def work_for_ever(started):
    started.put("begun")
    time.sleep(600)

if __name__ == "__main__":
    with BoundedQueue(maxsize=5) as queue, BoundedQueue() as started, TaskPool(2) as pool:
        queue.put_many(["a", "b"])
        for _ in range(2):
            pool.submit(work_for_ever, started)
            started.get()
        print("ready", flush=True)
        sys.stdin.read()
        pool.terminate()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A program with a queue and a pool whose two workers run all the time.

    At its end the fixture checks that being examined did it no harm.
    """
    path = tmp_path_factory.mktemp("watched") / "program.py"
    path.write_text(PROGRAM)
    with python(path, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        out, err = process.communicate("", timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.fixture(scope="module")
def workers(program: subprocess.Popen[str]) -> list[int]:
    """The pids of the program's workers."""
    pids = [worker.pid for pool in introspect.pools(program.pid) for worker in pool.workers]
    assert len(pids) == 2
    return pids


@linux
def test_ps_shows_processes_workers_and_queues(program: subprocess.Popen[str], workers: list[int]) -> None:
    shown = run_python("-m", "mpkit", "ps", str(program.pid)).stdout
    everything = run_python("-m", "mpkit", "ps").stdout
    assert "program.py" in shown
    assert f"of process {program.pid}: 2 workers" in shown
    for pid in workers:
        assert re.search(rf"^ *{pid} +running +\d+ ", shown, re.MULTILINE), shown
    assert re.search(rf"^[0-9a-f]{{8}} +{program.pid} +2 +5 ", shown, re.MULTILINE), shown
    assert f"{program.pid}" in everything


@linux
def test_stacks_shows_where_the_workers_are(
    program: subprocess.Popen[str],
    workers: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # On a busy machine, a worker may not be able to answer in the usual two seconds.
    monkeypatch.setattr(_stacks, "_ANSWER_SECONDS", PATIENCE / 2)
    assert main(["stacks", str(program.pid)]) == 0
    of_all = capsys.readouterr().out
    assert main(["stacks", str(workers[0])]) == 0
    of_one = capsys.readouterr().out
    with python("-c", "import time; time.sleep(600)") as other:
        refused = run_python("-m", "mpkit", "stacks", str(other.pid), check=False)
    # Asking does the workers no harm.
    assert [psutil.pid_exists(pid) for pid in workers] == [True, True]
    assert of_all.count("in work_for_ever") == 2
    assert of_one.count("in work_for_ever") == 1
    assert [f"worker {pid}, running" in of_all for pid in workers] == [True, True]
    assert refused.returncode == 1
    assert "is not a worker of an mpkit pool" in refused.stderr


@linux
def test_workers_are_found_below_a_process_that_may_not_be_examined(
    program: subprocess.Popen[str], workers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = _pools.worker_row
    forbidden = {program.pid}

    def examined(process: psutil.Process) -> WorkerRow | None:
        if process.pid in forbidden:
            raise AccessDenied(pid=process.pid)
        return look(process)

    for module in (_pools, _stacks):
        monkeypatch.setattr(module, "worker_row", examined)
    found = [worker.process.pid for worker in _stacks.workers_under(program.pid)]
    assert sorted(found) == sorted(workers)
    forbidden.update(workers)
    with pytest.raises(AccessDenied):
        _stacks.workers_under(program.pid)


@contextmanager
def stopping() -> Iterator[Callable[[int], None]]:
    """Give the block a function that stops a process (SIGSTOP). At the end of the block they all go on."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        stopped.append(pid)
        os.kill(pid, signal.SIGSTOP)

    try:
        yield stop
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@linux
def test_a_stopped_worker_is_reported_as_not_answering(
    workers: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_stacks, "_ANSWER_SECONDS", 0.1)
    with stopping() as stop:
        stop(workers[0])
        assert main(["stacks", str(workers[0])]) == 1
    assert "it does not answer" in capsys.readouterr().out


@linux
def test_workers_that_do_not_answer_are_waited_for_together(
    program: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(descriptors: Iterable[int], timeout: float) -> list[int]:
        """Record the timeout, not the time that it takes: a busy machine needs longer."""
        waits.append(timeout)
        return readiness.wait_any_readable(descriptors, timeout)

    monkeypatch.setattr(stacks, "wait_any_readable", wait)
    found = _stacks.workers_under(program.pid)
    pids = [worker.process.pid for worker in found]
    assert len(pids) == 2
    with stopping() as stop:
        stop(pids[0])
        first, second, seconds = "", "", 0.25
        # How soon the second worker gets a core to answer is not known, so try longer and longer timeouts.
        # The first, stopped worker is waited for during the same time.
        while not second and seconds < PATIENCE:
            monkeypatch.setattr(_stacks, "_ANSWER_SECONDS", seconds)
            first, second = map(str, _stacks.stacks_of(found))
            seconds *= 4
        stop(pids[1])
        waits.clear()
        monkeypatch.setattr(_stacks, "_ANSWER_SECONDS", 0.25)
        assert _stacks.stacks_of(found) == ["", ""]
        assert waits
        assert sum(waits) < 0.45
    assert first == ""
    assert "in work_for_ever" in second, "it does answer"


def test_top_shows_as_many_pages_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(os.getpid()), "--plain", "--count", "2", "--interval", "0.01"]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^\d\d:\d\d:\d\d$", shown, re.MULTILINE)) == 2
    assert shown.count("COMMAND") == 2
    assert "pytest" in shown


def on_a_terminal(*arguments: str, **env: str) -> tuple[int, str, str]:
    """Run Python with a terminal as standard output; return exit code, what the terminal got, and stderr."""
    ours, theirs = os.openpty()
    try:
        with python(*arguments, stdout=theirs, env={"TERM": "xterm", "COLUMNS": "120", **env}) as process:
            os.close(theirs)
            theirs = -1
            screen = b""
            # On Linux, reading fails once nobody has the other end of the terminal open.
            with contextlib.suppress(OSError):
                while data := os.read(ours, 1 << 16):
                    screen += data
            _, err = process.communicate(timeout=PATIENCE)
            return process.returncode, screen.decode(), err
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def path_with(folder: Path) -> str:
    """Return a PYTHONPATH that begins with `folder`, followed by the present one."""
    return os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals")
def test_top_on_a_terminal_uses_the_alternate_screen() -> None:
    pytest.importorskip("rich")
    code, screen, err = on_a_terminal("-m", "mpkit", "top", str(os.getpid()), "--count", "1")
    assert (code, err) == (0, "")
    assert "COMMAND" in screen
    entered, left = screen.index("\x1b[?1049h"), screen.index("\x1b[?1049l")
    assert entered < screen.index("COMMAND") < left


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals")
def test_top_without_rich_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError")
    code, screen, err = on_a_terminal("-m", "mpkit", "top", "--count", "1", PYTHONPATH=path_with(tmp_path))
    assert (code, screen) == (1, "")
    assert 'pip install "mpkit[top]"' in err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals")
@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_top_prints_pages_on_a_dumb_terminal(term: str, tmp_path: Path) -> None:
    # Plain pages do not need rich.
    (tmp_path / "rich.py").write_text("raise ImportError")
    arguments = ("-m", "mpkit", "top", str(os.getpid()), "--count", "2", "--interval", "0.01")
    # Wide enough to show the head of the last column, even if a number before it has one digit more.
    code, screen, err = on_a_terminal(*arguments, TERM=term, COLUMNS="100", PYTHONPATH=path_with(tmp_path))
    assert (code, err) == (0, "")
    assert len(re.findall(r"^\d\d:\d\d:\d\d\r$", screen, re.MULTILINE)) == 2
    assert screen.count("COMMAND") == 2
    assert "\x1b" not in screen
    assert max(len(line.rstrip("\r")) for line in screen.split("\n")) <= 100


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals")
def test_top_prints_pages_if_rich_is_told_not_to_be_interactive() -> None:
    console = pytest.importorskip("rich.console")
    told = {"TTY_INTERACTIVE": "0"}
    if console.Console(force_terminal=True, _environ=told).is_interactive:
        pytest.skip("this version of rich does not read TTY_INTERACTIVE")
    arguments = ("-m", "mpkit", "top", str(os.getpid()), "--count", "1")
    code, screen, err = on_a_terminal(*arguments, **told)
    assert (code, err) == (0, "")
    assert screen.count("COMMAND") == 1
    assert "\x1b" not in screen


@linux
def test_hostile_command_lines_are_printed_with_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = os.fsdecode(b"caf\xe9 \x1b[2J\x07")
    program = "print(flush=True); input()"
    with python("-c", program, hostile, stdin=subprocess.PIPE) as watched:
        assert watched.stdout is not None
        watched.stdout.readline()
        for command in (["ps"], ["top", "--count", "1"]):
            assert main([*command, str(watched.pid)]) == 0
            shown = capsys.readouterr()
            assert shown.out.endswith(f"{program} caf\\xe9 \\x1b[2J\\x07\n")
            assert shown.err == ""
        assert watched.communicate("\n", timeout=PATIENCE) == ("", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no such terminals")
def test_ps_is_no_wider_than_the_terminal() -> None:
    code, screen, err = on_a_terminal("-m", "mpkit", "ps", str(os.getpid()), COLUMNS="80")
    assert (code, err) == (0, "")
    assert max(len(line.rstrip("\r")) for line in screen.split("\n")) <= 80


def test_top_ends_when_the_program_ends_and_on_ctrl_c() -> None:
    with python("-c", "input()", stdin=subprocess.PIPE) as watched:
        with python("-m", "mpkit", "top", str(watched.pid), "--plain", "--interval", "0.05") as top:
            assert top.stdout is not None
            top.stdout.readline()
            watched.communicate("\n", timeout=PATIENCE)
            _, err = top.communicate(timeout=PATIENCE)
            assert (top.returncode, err) == (0, "")
    with python("-m", "mpkit", "top", str(os.getpid()), "--plain", "--interval", "60") as top:
        assert top.stdout is not None
        top.stdout.readline()
        top.send_signal(signal.SIGINT)
        _, err = top.communicate(timeout=PATIENCE)
        assert (top.returncode, err) == (130, "")


@pytest.mark.parametrize("command", ["ps", "top", "stacks"])
def test_a_missing_process_is_reported_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(2**22 + 1)]) == 1
    assert capsys.readouterr() == ("", f"mpkit {command}: process {2**22 + 1} does not exist (any more)\n")


def test_top_ends_without_a_traceback_if_its_output_is_closed() -> None:
    with python("-m", "mpkit", "top", str(os.getpid()), "--plain", "--interval", "0.01") as top:
        assert top.stdout is not None
        assert top.stderr is not None
        top.stdout.readline()
        top.stdout.close()
        assert top.wait(PATIENCE) == 141
        assert top.stderr.read() == ""


#: Buffered output fails when it is flushed; unbuffered output (common in containers) when it is written.
BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@BUFFERING
@pytest.mark.parametrize("arguments", [["ps"], ["--help"], ["--version"], ["ps", "--help"]])
def test_a_full_disk_is_reported_in_one_line(arguments: list[str], unbuffered: str) -> None:
    with (
        open("/dev/full", "w") as full,
        python("-m", "mpkit", *arguments, stdout=full, env={"PYTHONUNBUFFERED": unbuffered}) as process,
    ):
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    name = "mpkit ps" if arguments == ["ps"] else "mpkit"
    assert err == f"{name}: cannot write to standard output: No space left on device\n"


#: Closes standard output, restarts itself, runs each command and prints to stderr what `main` returns for it.
WITHOUT_OUTPUT = """
import os, sys
from mpkit.cli.main import main

if sys.stdout is not None:
    os.close(1)
    os.execv(sys.executable, sys.orig_argv)
for line in sys.argv[1:]:
    print(main(line.split()), end=" ", file=sys.stderr, flush=True)
sys.exit(main(["--version"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="closes a descriptor by number, as on POSIX")
def test_with_closed_standard_output_each_command_only_reports_that(tmp_path: Path) -> None:
    """Even ``--help`` prints nothing anywhere else, and ``demo`` creates no file."""
    commands = ["ps", "top --count 1", "doctor", "stacks 1", "demo", "--help"]
    with python("-c", WITHOUT_OUTPUT, *commands, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    complaint = "cannot write to standard output: it is closed\n"
    names = [f"mpkit {command}" for command in ("ps", "top", "doctor", "stacks", "demo")] + ["mpkit"]
    assert err == "".join(f"{name}: {complaint}1 " for name in names) + f"mpkit: {complaint}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="broken pipes behave differently there")
@BUFFERING
def test_help_into_a_closed_pipe_ends_without_a_traceback(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with python("-m", "mpkit", "--help", stdout=writer, env={"PYTHONUNBUFFERED": unbuffered}) as process:
            _, err = process.communicate(timeout=PATIENCE)
    finally:
        os.close(writer)
    assert (process.returncode, err) == (141, "")


def test_doctor_finds_this_machine_fit() -> None:
    ended = run_python("-m", "mpkit", "doctor", check=False)
    lines = ended.stdout.splitlines()
    problems = [line for line in lines if line.startswith("PROBLEM")]
    # Other programs on this machine may have left something behind. That is not this test's concern.
    assert all("left behind" in line for line in problems), ended.stdout
    assert ended.returncode == bool(problems)
    assert ended.stderr == ""
    for subject in ("Python", "start method spawn", "shared memory", "CPUs", "psutil", "extra top"):
        assert any(line[9:].startswith(subject) for line in lines), subject


@linux
def test_a_file_that_a_process_has_open_is_not_reported_as_left_behind(tmp_path: Path) -> None:
    me = identity.current()
    # The name says that its creator is dead: the start time does not match that of any process with this pid.
    path = Path(f"/dev/shm/mpkit-test-{me.pid}-{me.started + 1}-0123456789abcdef")
    program = (
        "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
        " print(flush=True); input()"
    )
    path.write_bytes(bytes(100))
    path.chmod(0o600)
    try:
        with python("-c", program, path, stdin=subprocess.PIPE) as user:
            assert user.stdout is not None
            user.stdout.readline()
            assert str(path) not in [left.path for left in leftovers.find()]
            user.communicate("\n", timeout=PATIENCE)
        wait_until(lambda: user.poll() is not None, "the user has ended")
        (left,) = [left for left in leftovers.find() if left.path == str(path)]
        assert leftovers.remove([left]) == [left]
    finally:
        path.unlink(missing_ok=True)
