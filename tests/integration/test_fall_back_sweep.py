"""Without /dev/shm, a killed process leaves a file in the temporary directory; a later process removes it.

The later process does so when it creates a file there itself, and only if nobody uses the old one any more.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.helpers.processes import ROOT, python
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL, and locks of open files")

# Makes mpkit behave as on a system without /dev/shm.
WITHOUT_SHM = """
import sys
from mpkit import BoundedQueue
from mpkit._shm.memory import names, segment
names.SHM_DIRECTORY = segment.SHM_DIRECTORY = "/nowhere"
"""
CREATE = """
with BoundedQueue() as queue:
    queue.put("spam")
    print(queue._opened().name, flush=True)
    sys.stdin.read()
"""
ATTACH = """
user = segment.Segment.attach(sys.argv[1])
print(user.name, flush=True)
sys.stdin.read()
"""


@contextmanager
def program(code: str, folder: Path, *arguments: str) -> Generator[tuple[Popen[str], str]]:
    """Give the block a process that runs `code` until its standard input ends, and its first output line."""
    with python("-c", WITHOUT_SHM + code, *arguments, env={"TMPDIR": str(folder)}, stdin=-1) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def kill(process: Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The process's resource tracker removes its semaphores. It must not be killed before it has done so.
    wait_until(lambda: not glob.glob(f"/dev/shm/*mpkit-?-{process.pid}-*"), "its semaphores are gone")


def test_the_next_process_removes_the_unused_file_of_a_killed_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        creator, left = stack.enter_context(program(CREATE, tmp_path))
        assert os.path.dirname(left) == str(tmp_path)
        user, opened = stack.enter_context(program(ATTACH, tmp_path, left))
        assert opened == left
        kill(creator)
        os.utime(left, (0, 0))
        with program(CREATE, tmp_path) as (another, other):
            assert os.path.exists(other)
            assert os.path.exists(left), "a living process has it open"
            another.communicate()
        kill(user)
        with program(CREATE, tmp_path) as (last, own):
            assert not os.path.exists(left)
            assert os.path.exists(own)
            last.communicate()
        assert not os.path.exists(own)


def test_a_file_of_a_process_in_another_pid_namespace_is_left_alone(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root, to make a PID namespace")
    options = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*options, "true"], capture_output=True, check=False).returncode:
        pytest.skip("PID namespaces are not permitted here")
    container = subprocess.Popen(
        [*options, sys.executable, "-c", WITHOUT_SHM + CREATE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with container:
        assert container.stdout is not None
        used = container.stdout.readline().strip()
        os.utime(used, (0, 0))
        with program(CREATE, tmp_path) as (here, _):
            assert os.path.exists(used), "its creator is alive, in another PID namespace"
            here.communicate()
        container.communicate()
    assert not os.path.exists(used)
