"""`mpkit._platform.resources.memory`: resident memory, and what the out-of-memory killer has done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mpkit._platform.resources import memory
from tests.unit.platform.test_cpus import V2_MOUNT, lay_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counted on Linux only")

V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def test_resident_memory() -> None:
    size = memory.rss_bytes(os.getpid())
    assert size is not None
    assert 1_000_000 < size < 100_000_000_000
    assert memory.rss_bytes(2**30) is None


def test_version_2(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/vmstat": "nr_free_pages 5\noom_kill 100\n",
            "sys/fs/cgroup/job/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
        },
    )
    assert memory.oom_kills(root) == 2


def test_version_1(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": V1_MOUNT,
            "proc/vmstat": "oom_kill 100\n",
            "sys/fs/cgroup/memory/docker/abc/memory.oom_control": "oom_kill_disable 0\noom_kill 7\n",
        },
    )
    assert memory.oom_kills(root) == 7


def test_without_a_group_the_whole_machine_counts(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "proc/vmstat": "nr_free_pages 5\noom_kill 100\n",
        },
    )
    assert memory.oom_kills(root) == 100


def test_a_system_that_does_not_count(tmp_path: Path) -> None:
    assert memory.oom_kills(tmp_path) is None


def test_here() -> None:
    count = memory.oom_kills()
    assert count is None or count >= 0
