"""A killed process leaves a file in the temporary directory; the next one that puts one there removes it."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a SIGKILL, and locks of open files")

# What mpkit does where there is no /dev/shm.
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
    """A process that runs `code` until its standard input ends, and the first line that it has printed."""
    with python("-c", WITHOUT_SHM + code, *arguments, env={"TMPDIR": str(folder)}, stdin=-1) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()


def kill(process: Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Its resource tracker removes the semaphores; it must not be ended in the middle of that.
    wait_until(lambda: not glob.glob(f"/dev/shm/*mpkit-?-{process.pid}-*"), "its semaphores are gone")


def test_the_next_process_removes_what_a_killed_one_left_and_nobody_uses(tmp_path: Path) -> None:
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


def test_a_container_that_shares_the_directory_is_left_alone(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root, to make a name space of pids")
    options = [unshare, "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*options, "true"], capture_output=True, check=False).returncode:
        pytest.skip("name spaces of pids are not permitted here")
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
            assert os.path.exists(used), "its creator lives, under a pid that means nothing here"
            here.communicate()
        container.communicate()
    assert not os.path.exists(used)
