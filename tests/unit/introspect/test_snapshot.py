"""`snapshot`, `tree` and `watch` of the test process itself, and their arguments."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from mpkit import introspect
from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect import _processes, _translate, _watch
from mpkit.process import ProcessState

# Larger than any pid of Linux.
NOBODY = 2**22 + 1


def test_a_snapshot_is_right_about_this_process() -> None:
    me = introspect.snapshot()
    assert me.pid == os.getpid()
    assert me.ppid == os.getppid()
    assert any("pytest" in word for word in me.cmdline)
    assert me.state is ProcessState.RUNNING
    assert me.create_time < time.time()
    assert me.cpu_s == me.cpu_user_s + me.cpu_system_s > 0
    assert me.cpu_percent > 0
    assert me.rss_bytes > 1 << 20
    assert me.uss_bytes is None or 0 < me.uss_bytes <= 2 * me.rss_bytes
    assert me.num_threads >= 1
    assert me.num_fds is None or me.num_fds > 2
    assert me.ctx_switches is None or me.ctx_switches > 0


@pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")
def test_a_snapshot_agrees_with_the_kernel() -> None:
    me = introspect.snapshot()
    assert set(me.cpu_affinity or ()) == os.sched_getaffinity(0)
    assert me.nice == os.getpriority(os.PRIO_PROCESS, 0)


def test_a_snapshot_is_a_value() -> None:
    me = introspect.snapshot(os.getpid())
    assert pickle.loads(pickle.dumps(me)) == me
    assert hash(me) == hash(pickle.loads(pickle.dumps(me)))
    with pytest.raises(FrozenInstanceError):
        me.pid = 1  # type: ignore[misc]


LOOKS: list[Callable[[Any], object]] = [
    introspect.snapshot,
    introspect.tree,
    introspect.watch,
    introspect.pools,
    introspect.queues,
]


@pytest.mark.parametrize("look", LOOKS)
def test_a_process_that_is_not_there_is_gone(look: Callable[[Any], object]) -> None:
    with pytest.raises(ProcessGone, match=str(NOBODY)) as caught:
        look(NOBODY)
    assert caught.value.pid == NOBODY
    assert isinstance(caught.value, ProcessLookupError)


@pytest.mark.parametrize("look", LOOKS)
def test_a_number_beyond_all_pids_is_gone(look: Callable[[Any], object]) -> None:
    with pytest.raises(ProcessGone):
        look(2**70)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("pid", ["1", 1.5, [1]])
def test_a_pid_is_an_integer(look: Callable[[Any], object], pid: object) -> None:
    with pytest.raises(TypeError, match="pid must be an int or None"):
        look(pid)


@pytest.mark.parametrize("look", LOOKS)
def test_a_pid_is_not_negative(look: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match="-1"):
        look(-1)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), pytest.param(10**400, id="huge")])
def test_an_interval_is_positive_and_not_too_long_for_a_clock(interval: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        introspect.watch(interval=interval)


@pytest.mark.parametrize("interval", ["soon", "1", b"1"])
def test_an_interval_is_a_number(interval: Any) -> None:
    with pytest.raises(TypeError, match=repr(interval)):
        introspect.watch(interval=interval)


def test_watch_goes_on_and_shows_the_present_load() -> None:
    pictures = introspect.watch(interval=0.01)
    first, second = next(pictures), next(pictures)
    assert first.pid == second.pid == os.getpid()
    assert second.cpu_s >= first.cpu_s
    assert second.cpu_percent >= 0


@pytest.mark.parametrize(
    "due, interval, now, expected",
    [(10.0, 1.0, 10.2, 11.0), (10.0, 1.0, 11.0, 11.0), (10.0, 1.0, 13.5, 14.0), (10.0, 1.0, 9.0, 11.0)],
)
def test_missed_looks_are_skipped(due: float, interval: float, now: float, expected: float) -> None:
    assert _watch.next_moment(due, interval, now) == pytest.approx(expected)


@pytest.mark.parametrize(
    "status, state",
    [
        ("running", ProcessState.RUNNING),
        ("waking", ProcessState.READY),
        ("sleeping", ProcessState.WAITING),
        ("disk-sleep", ProcessState.WAITING),
        ("stopped", ProcessState.STOPPED),
        ("tracing-stop", ProcessState.STOPPED),
        ("zombie", ProcessState.ZOMBIE),
        ("something new", ProcessState.WAITING),
    ],
)
def test_every_status_has_a_state(status: str, state: ProcessState) -> None:
    assert _processes.state_of(status) is state


def test_no_time_is_no_load() -> None:
    assert _processes.share(1.0, 0.0) == 0.0
    assert _processes.share(0.5, 2.0) == 25.0


def test_a_process_whose_pid_was_reused_while_it_was_read_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    process = _translate.find(os.getpid())
    monkeypatch.setattr(process, "is_running", lambda: False)
    with pytest.raises(ProcessGone):
        _processes.read(process)


def test_values_that_only_the_owner_may_read_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse(*_: object) -> int:
        raise psutil.AccessDenied(1)

    process = _translate.find(os.getpid())
    monkeypatch.setattr(process, "num_fds", refuse, raising=False)
    monkeypatch.setattr(process, "num_handles", refuse, raising=False)
    monkeypatch.setattr(process, "memory_full_info", refuse)
    picture = _processes.read(process)
    assert picture.num_fds is None
    assert picture.uss_bytes is None


def test_if_a_necessary_value_may_not_be_read_access_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse(*_: object) -> int:
        raise psutil.AccessDenied(1)

    process = _translate.find(os.getpid())
    monkeypatch.setattr(process, "create_time", refuse)
    with pytest.raises(AccessDenied) as caught:
        _processes.read(process)
    assert isinstance(caught.value, PermissionError)


def test_the_tree_of_this_process_begins_with_it() -> None:
    assert next(introspect.tree().walk()).pid == os.getpid()


class Clock:
    """A clock that `sleep` moves forward. It refuses times that are too long for the system."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 2**31 / 1000
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_watch, "time", clock)
    return clock


def test_watch_accepts_an_interval_of_months(clock: Clock) -> None:
    pictures = introspect.watch(interval=1e7)
    next(pictures)
    next(pictures)
    assert clock.now == 1e7


def test_a_moment_that_never_comes_is_waited_for_in_pieces(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps = 0

    def sleep(seconds: float) -> None:
        nonlocal naps
        Clock.sleep(clock, seconds)
        naps += 1
        if naps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        _watch.sleep_until(float("inf"))


def test_an_interval_too_short_to_count_is_always_due() -> None:
    assert _watch.next_moment(1.0, 5e-324, 2.0) == 2.0
