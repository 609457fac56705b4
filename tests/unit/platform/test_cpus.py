"""`mpkit._platform.resources.cpus`: affinity, and the quotas of control groups, read from made-up files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpkit._platform.resources import cpus
from tests.helpers.processes import run_python

V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_never_less_than_one() -> None:
    assert cpus.usable_cpus() >= 1


def test_a_quota_below_the_affinity_wins_and_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "_affinity", lambda: 64)
    monkeypatch.setattr(sys, "platform", "linux")
    for quota, expected in [(1.5, 2), (0.1, 1), (8.0, 8), (100.0, 64), (None, 64)]:
        monkeypatch.setattr(cpus, "_quota", lambda root, quota=quota: quota)
        assert cpus.usable_cpus() == expected


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python cannot be told")
def test_a_number_that_the_user_has_set_replaces_the_affinity() -> None:
    code = (
        "from mpkit._platform.resources import cpus; cpus._quota = lambda _: None; print(cpus.usable_cpus())"
    )
    assert run_python("-c", code, env={"PYTHON_CPU_COUNT": "77"}).stdout == "77\n"
    assert run_python("-X", "cpu_count=78", "-c", code).stdout == "78\n"


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpus._quota(tmp_path) is None


def test_version_2(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/user.slice/job/cpu.max": "250000 100000\n",
        },
    )
    assert cpus._quota(root) == 2.5


def test_version_2_without_limit(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/job/cpu.max": "max 100000\n",
        },
    )
    assert cpus._quota(root) is None


def test_a_group_further_up_limits_those_below(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kube/pod/container\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/kube/pod/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/kube/pod/container/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/kube/cpu.max": "max 100000\n",
        },
    )
    assert cpus._quota(root) == 3.0


def test_version_1(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n0::/\n",
            "proc/self/mountinfo": V1_MOUNT,
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpus._quota(root) == 1.5


def test_a_container_that_has_only_its_own_part_mounted(tmp_path: Path) -> None:
    mount = "31 24 0:27 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n"
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc/inner\n",
            "proc/self/mountinfo": mount,
            "sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/inner/cpu.cfs_period_us": "50000\n",
        },
    )
    assert cpus._quota(root) == 4.0


def test_a_group_outside_the_namespace(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../elsewhere\n",
            "proc/self/mountinfo": V2_MOUNT.replace(" / /sys", " /../.. /sys"),
            "sys/fs/cgroup/cpu.max": "100000 100000\n",
        },
    )
    assert cpus._quota(root) == 1.0


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/job\n",
            "proc/self/mountinfo": V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040groups"),
            "my groups/job/cpu.max": "50000 100000\n",
        },
    )
    assert cpus._quota(root) == 0.5
