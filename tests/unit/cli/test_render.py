"""How processes, pools and queues are shown."""

from __future__ import annotations

from dataclasses import replace

from mpkit.cli import _render
from mpkit.introspect import PoolSnapshot, ProcessSnapshot, ProcessTree, QueueSnapshot
from mpkit.pool import WorkerSnapshot
from mpkit.process import ProcessState
from mpkit.queue import QueueStatistics


def process(pid: int, *cmdline: str, num_fds: int | None = 4) -> ProcessSnapshot:
    return ProcessSnapshot(
        pid=pid,
        ppid=1,
        name=cmdline[0] if cmdline else "python",
        cmdline=cmdline,
        state=ProcessState.WAITING,
        create_time=1000.0,
        cpu_percent=12.34,
        cpu_user_s=1.0,
        cpu_system_s=0.5,
        rss_bytes=1 << 20,
        uss_bytes=None,
        num_threads=2,
        num_fds=num_fds,
        ctx_switches=7,
        nice=0,
        cpu_affinity=None,
    )


def test_children_are_drawn_under_their_parents() -> None:
    tree = ProcessTree(
        process(1, "top"),
        (ProcessTree(process(2, "a"), (ProcessTree(process(3, "b")),)), ProcessTree(process(4, "c"))),
    )
    lines = _render.processes(tree, now=1060.0, cpu_percent={}, roles={})
    assert [line.split("1 min 0 s")[-1].strip() for line in lines[1:]] == ["top", "|- a", "|  `- b", "`- c"]


def test_a_row_tells_state_load_memory_and_what_it_is() -> None:
    tree = ProcessTree(process(7, "x", num_fds=None))
    (_, row) = _render.processes(tree, now=1002.0, cpu_percent={7: 99.0}, roles={7: "worker"})
    assert row.split() == ["7", "waiting", "99.0", "1.50", "s", "1.0", "MiB", "2", "-", "2.00", "s", "worker"]


def test_a_command_line_is_one_line() -> None:
    assert _render.command(process(1, "python", "-c", "a\nb")) == "python -c a b"
    assert _render.command(process(1)) == "[python]"
    assert "resource tracker" in _render.command(
        process(1, "python", "-c", "from multiprocessing.resource_tracker import")
    )


def test_a_name_that_a_process_has_set_comes_before_the_command_line() -> None:
    reader = replace(process(1, "python", "-c", "from multiprocessing.forkserver import main"), name="reader")
    assert _render.command(reader).startswith("reader: [multiprocessing's fork server")
    # Not names that the system gives: that of a script, which it cuts to 15 bytes, or of a login shell.
    script = replace(process(1, "/bin/sh", "-e", "/opt/nightly-clean-up.sh"), name="nightly-clean-u")
    assert _render.command(script) == "/bin/sh -e /opt/nightly-clean-up.sh"
    assert _render.command(replace(process(1, "-bash"), name="bash")) == "-bash"


def test_a_command_line_does_nothing_to_the_terminal() -> None:
    # A byte that is not UTF-8, in the form that Python gives it, and an escape sequence.
    assert _render.command(process(1, "caf\udce9", "\x1b[2J")) == r"caf\xe9 \x1b[2J"
    assert _render.command(replace(process(1), name="\x1b]0;mine\x07")) == r"[\x1b]0;mine\x07]"


def test_thousands_of_generations_are_drawn() -> None:
    tree = ProcessTree(process(5000, "last"))
    for pid in range(4999, 0, -1):
        tree = ProcessTree(process(pid, "p"), (tree,))
    lines = _render.processes(tree, now=1060.0, cpu_percent={}, roles={})
    assert [int(line.split()[0]) for line in lines[1:]] == list(range(1, 5001))
    assert lines[-1].endswith("[+4959] `- last")
    # The lines do not get wider with each generation.
    assert max(map(len, lines)) < 300


def test_a_pool_shows_what_its_workers_do() -> None:
    workers = (
        WorkerSnapshot(10, "running", 5, None, 1.25, 4, 1 << 20, 50.0),
        WorkerSnapshot(11, "idle", None, None, None, 3, None, None),
    )
    lines = _render.pool_lines(PoolSnapshot("/dev/shm/mpkit-pool-9-1-abcdef0123456789", 9, workers, 2))
    assert lines[0] == "pool abcdef01 of process 9: 2 workers, 2 tasks sent ahead"
    named = PoolSnapshot("/dev/shm/mpkit-pool-9-1-abcdef0123456789", 9, (), 0, "caf\u00e9 \x1b")
    assert _render.pool_lines(named)[0].startswith("pool abcdef01 (caf\u00e9 \\x1b) of process 9: ")
    assert [line.split() for line in lines[2:]] == [
        ["10", "running", "5", "1.25", "s", "4", "1.0", "MiB"],
        ["11", "idle", "-", "-", "3", "-"],
    ]


def queue(number: int, size: int) -> QueueSnapshot:
    statistics = QueueStatistics(size, 8 * size, 0, None, size, 0, 1, 2, 0)
    return QueueSnapshot(f"/dev/shm/mpkit-queue-9-1-{number:016x}", 9, (9, 10), statistics)


def test_the_fullest_queues_come_first_and_only_some_are_shown() -> None:
    lines = _render.queue_lines([queue(number, number % 3) for number in range(30)])
    assert lines[1].split() == ["00000000", "9", "2", "-", "16", "B", "2", "0", "1/2", "9", "10"]
    assert lines[-1] == "and 10 more queues"
