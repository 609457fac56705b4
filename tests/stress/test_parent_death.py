"""Programs that die at random moments: every process that has to end with them ends, and no other.

python -m pytest tests/stress/test_parent_death.py --stress-seconds 600 --stress-seed 1

A round that fails prints its seed. ``--stress-seconds 0`` with that seed repeats this one round, as far as it
does not depend on timing.
"""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import psutil
import pytest

from mpkit._platform.processes import identity, stat_file
from mpkit._platform.processes.identity import ProcessIdentity
from tests.helpers.marked import Mark
from tests.helpers.processes import ROOT, gone
from tests.helpers.waiting import PATIENCE, wait_until
from tests.stress.death_programs import PROGRAM, STRANGERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")

NOTING = Path(__file__).parent / "noting"

#: Who is killed before the program ("alone": nobody). "itself": the program is not killed, but ends by
#: os._exit or a crash.
WAYS = [
    *["alone"] * 6,
    *["itself"] * 2,
    "server",
    "worker",
    "two workers",
    "stopped worker",
    "guardian",
    "tracker",
    "guardian and tracker",
]

_WHO = {
    "guardian": "_platform/parent_death/guardian.py",
    "server": "multiprocessing.forkserver",
    "tracker": "multiprocessing.resource_tracker",
}
_HELPERS = tuple(_WHO.values())

#: The index of the flags in what `stat_file.fields_of` returns, and the flag "was forked, and has not called
#: exec since" (linux/sched.h).
_FLAGS = 6
_PF_FORKNOEXEC = 0x40


class Round:
    """One program, from its start until nothing is left of it."""

    def __init__(self, method: str, seed: str, directory: Path) -> None:
        self.rng = random.Random(f"{seed}, who and when")
        self.way = self.rng.choice(WAYS)
        self.signum = self.rng.choice([signal.SIGKILL] * 5 + [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
        self.notes = directory / "notes"
        self.notes.mkdir()
        self.mark = Mark()
        #: The mark of programs that the main program itself starts, and that must survive it.
        self.strangers = Mark()
        #: When the first process may have been killed.
        self.struck = float("inf")
        #: When the guardian, if it is killed, has certainly ended.
        self.unguarded = float("inf")
        self._text = f"seed {seed}: {method}, {self.way}, {self.signum.name}"
        self._errors = (directory / "errors").open("w+")
        self._temporary = directory / "tmp"
        self._temporary.mkdir()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.death_programs", method, seed, self.way],
            cwd=ROOT,
            env={
                **os.environ,
                **self.mark.environment,
                STRANGERS: self.strangers.text,
                "MPKIT_TEST_NOTES": str(self.notes),
                "TMPDIR": str(self._temporary),
                "PYTHONPATH": os.pathsep.join([str(NOTING), *filter(None, sys.path)]),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )

    def run(self, figures: collections.Counter[str]) -> None:
        """Let the program die, then check what is left and what is not."""
        assert self._program.stdout is not None
        self._program.stdout.readline()
        time.sleep(self.rng.uniform(0.0, self.rng.choice([0.1, 0.6, 0.6, 2.0])))
        self._let_others_die()
        self._let_it_die(figures)
        figures[self.way] += 1
        self._wait_until_empty(self._left, "processes are left")
        figures["orphans"] += self._look_at_orphans()
        strangers = self._noted("stranger")
        for stranger in strangers:
            assert identity.is_alive(stranger), f"a stranger has died ({self._text}): {stranger}"
        figures["strangers"] += len(strangers)
        if "tracker" not in self.way:
            # Surviving orphans may use the names, so end those first.
            self._kill_the_rest()
            self._wait_until_empty(self._names, "names are left")

    def clear(self) -> None:
        """Remove whatever is left, also after a failure."""
        self._program.kill()
        self._program.wait()
        self._kill_the_rest()
        for path in self._names():
            path.unlink(missing_ok=True)
        self._errors.close()
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _wait_until_empty(self, look: Callable[[], Collection[object]], what: str) -> None:
        try:
            wait_until(lambda: not look(), "nothing is left", timeout=PATIENCE)
        except AssertionError:
            pytest.fail(f"{what} ({self._text}): {look()}\n{self._said()}")

    def _let_others_die(self) -> None:
        victims = [word for word in self.way.split() if word in _WHO]
        self.struck = time.monotonic()
        for pid, line in self.mark.living().items():
            if any(_is_helper(pid, line, _WHO[victim]) for victim in victims):
                _send(pid, signal.SIGKILL)
                if "guardian" in line:
                    # A killed process may still do something for a moment: wait until it has ended.
                    wait_until(lambda pid=pid: gone(pid), "the guardian has ended")  # type: ignore[misc]
                    self.unguarded = time.monotonic()
        if self.way == "guardian":
            # Meanwhile the program starts some more children, with a new guardian.
            time.sleep(self.rng.uniform(0.0, 0.5))
        elif victims:
            time.sleep(self.rng.choice([0.0, self.rng.uniform(0.0, 0.3)]))
        if "worker" in self.way:
            # Before `living`, because a process that is just being started has its parent's command line.
            noted = {process.pid for process in self._noted("process")}
            workers = [
                pid
                for pid, line in self.mark.living().items()
                if pid in noted and pid != self._program.pid and not _is_one_of_helpers(pid, line)
            ]
            self.rng.shuffle(workers)
            for pid in workers[: 2 if "two" in self.way else 1]:
                _send(pid, signal.SIGSTOP if "stopped" in self.way else signal.SIGKILL)

    def _let_it_die(self, figures: collections.Counter[str]) -> None:
        if self.way == "itself":
            self._program.wait(PATIENCE)
            return
        if self.signum == signal.SIGINT:
            _send(self._program.pid, signal.SIGINT)
            # Give it a random time to clean up, and kill it if that is not enough.
            with suppress(subprocess.TimeoutExpired):
                self._program.wait(self.rng.uniform(0.0, 1.0))
                figures["left by itself"] += 1
            self._program.kill()
        else:
            _send(self._program.pid, self.signum)
        self._program.wait(PATIENCE)

    def _left(self) -> dict[int, str]:
        """The processes that still run and should have ended."""
        left = self.mark.living()
        if "guardian" in self.way:
            # Nobody ends the processes that lived when the guardian died, nor what those have started since.
            # So only those must have ended that the program itself started later.
            later = {
                _identity_in(path).pid
                for path in self.notes.glob("begun-*")
                if float(path.read_text()) > self.unguarded
            }
            return {pid: line for pid, line in left.items() if pid in later}
        kinds = ["orphan", "arrived", "below"]
        if self.way in {"worker", "two workers"} or self.signum == signal.SIGINT:
            # Here a child may have been ended on its own: by us, or by the program that cleans up. That does
            # not end programs and forks that this child has started.
            left = {pid: line for pid, line in left.items() if PROGRAM not in line}
            kinds.append("forked")
        free = {process.pid for kind in kinds for process in self._noted(kind) if identity.is_alive(process)}
        return {pid: line for pid, line in left.items() if not _is_with(free, pid, line)} if free else left

    def _look_at_orphans(self) -> int:
        """Check that each orphan lives whose start was complete before the first kill, with its children.

        Returns the number of those orphans.
        """
        if "worker" in self.way or self.signum == signal.SIGINT:
            # An orphan may itself have been the worker that was killed; or the program, when it cleaned up,
            # has stopped a child together with all of its descendants.
            return 0
        found = 0
        for path in self.notes.glob("orphan-*"):
            process = _identity_in(path)
            if float(path.read_text()) < self.struck:
                assert identity.is_alive(process), (
                    f"an orphan has died ({self._text}): {process}\n{self._said()}"
                )
                found += 1
        if found:
            for path in self.notes.glob("below-*"):
                process = _identity_in(path)
                assert identity.is_alive(process), f"a child of an orphan has died ({self._text}): {process}"
        return found

    def _noted(self, kind: str) -> list[ProcessIdentity]:
        return [_identity_in(path) for path in self.notes.glob(f"{kind}-*")]

    def _kill_the_rest(self) -> None:
        for pid in self.strangers.living():
            _send(pid, signal.SIGKILL)
        # Not the resource tracker, which still has work to do, nor the guardian, which ends by itself.
        deadline = time.monotonic() + PATIENCE
        while left := self.mark.living():
            for pid, line in left.items():
                if not any(helper in line for helper in _HELPERS[::2]) or time.monotonic() > deadline:
                    _send(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _names(self) -> list[Path]:
        """The names in shared memory that processes of this round made."""
        creators = {path.name.split("-", 1)[1] for path in self.notes.glob("process-*")}
        pids = {creator.split("-")[0] for creator in creators}
        found: list[Path] = []
        for path in Path("/dev/shm").iterdir():
            parts = path.name.split("-")
            its = path.name.startswith("mpkit-") and "-".join(parts[2:4]) in creators
            if its or (path.name.startswith("sem.mpkit-") and parts[2] in pids):
                found.append(path)
        return found

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-3000:]


def _identity_in(path: Path) -> ProcessIdentity:
    _, pid, started = path.name.split("-")
    return ProcessIdentity(int(pid), int(started))


def _is_with(free: set[int], pid: int, line: str) -> bool:
    """Whether the process is one of `free`, a descendant of one, or a helper process that may serve them."""
    if pid in free or _is_one_of_helpers(pid, line):
        return True
    with suppress(psutil.NoSuchProcess):
        return any(parent.pid in free for parent in psutil.Process(pid).parents())
    return False


def _is_one_of_helpers(pid: int, line: str) -> bool:
    return any(_is_helper(pid, line, words) for words in _HELPERS)


def _is_helper(pid: int, line: str, words: str) -> bool:
    """Whether this process, with the command line `line`, is the helper that `words` name.

    Children of the fork server have the same command line as the server, but only the server has called exec.
    """
    if words not in line:
        return False
    if words != _WHO["server"]:
        return True
    with suppress(FileNotFoundError, ProcessLookupError):
        return not int(stat_file.fields_of(pid)[_FLAGS]) & _PF_FORKNOEXEC
    return False


def _send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def _reap_adopted() -> None:
    """Reap orphans, whose parent is now this process (see `leftovers.adopt_orphans`)."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@contextmanager
def bystander() -> Iterator[ProcessIdentity]:
    """A process of the same user that has nothing to do with the programs, and must not be touched."""
    command = [sys.executable, "-S", "-c", "import time; time.sleep(100_000)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            who = identity.of(process.pid)
            assert who is not None
            yield who
        finally:
            process.kill()


@pytest.mark.timeout(0)
def test_random_deaths(start_method: str, stress_seconds: float, stress_seed: int) -> None:
    print(f"seed {stress_seed}")
    figures: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + stress_seconds / 3
    with bystander() as innocent:
        for seed in count(stress_seed):
            with tempfile.TemporaryDirectory(prefix="death-", ignore_cleanup_errors=True) as directory:
                one = Round(start_method, str(seed), Path(directory))
                try:
                    one.run(figures)
                finally:
                    one.clear()
            assert identity.is_alive(innocent)
            assert psutil.Process(innocent.pid).status() == psutil.STATUS_SLEEPING
            figures["rounds"] += 1
            if time.monotonic() >= end:
                break
    print(start_method, dict(figures))
