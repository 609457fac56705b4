"""How long an import takes."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from benchmarks.workload import AtLeastTimes, Sample, Scale, Within, Workload

STDLIB: Final = "stdlib"

_DOORWAY: Final = {
    "mpkit": "import mpkit",
    STDLIB: "import multiprocessing, concurrent.futures",
}
_EVERYTHING: Final = {
    "mpkit": "from mpkit import TaskPool, BoundedQueue, Lock, LockedCounter, WorkerProcess",
    STDLIB: (
        "from multiprocessing import context, pool, queues, synchronize, sharedctypes, shared_memory\n"
        "from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor"
    ),
}

_PROGRAM: Final = """
import sys, time
begin = time.perf_counter()
{statement}
end = time.perf_counter()
print(end - begin, sum(name in sys.modules for name in ("psutil", "asyncio")))
"""


def import_time(contender: str, scale: Scale, *, statements: dict[str, str]) -> Sample:
    """Measure the import in several new interpreters; return the shortest time, in ms.

    The shortest, because disturbances can only make an import slower.
    """
    program = _PROGRAM.format(statement=statements[contender])
    seconds, heavy = [], 0
    for _ in range(scale.count(10, at_least=4)):
        output = subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        ).stdout.split()
        seconds.append(float(output[0]))
        heavy = int(output[1])
    return Sample(1000 * min(seconds), {"psutil and asyncio": float(heavy)})


def _doorway(contender: str, scale: Scale) -> Sample:
    return import_time(contender, scale, statements=_DOORWAY)


def _everything(contender: str, scale: Scale) -> Sample:
    return import_time(contender, scale, statements=_EVERYTHING)


_TARGETS: Final = (AtLeastTimes(1 / 1.5, STDLIB), Within(0, key="psutil and asyncio", unit="loaded"))

WORKLOADS: Final = (
    Workload(
        "import",
        "imports",
        "import mpkit | import multiprocessing, concurrent.futures",
        "ms",
        "lower",
        _doorway,
        ("mpkit", STDLIB),
        STDLIB,
        _TARGETS,
    ),
    Workload(
        "import-all",
        "imports",
        "import of all classes of either",
        "ms",
        "lower",
        _everything,
        ("mpkit", STDLIB),
        STDLIB,
        _TARGETS,
    ),
)
