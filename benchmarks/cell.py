"""One measurement of one contender, in a new interpreter: ``python -m benchmarks.cell SPEC ANSWER``.

So whatever a package does to its process (logging, signal handlers, threads, patched modules) does not affect
the figures of another one, and a measurement that hangs can be ended.
"""

from __future__ import annotations

import sys


def main(specification: str, answer: str) -> None:
    """Measure as `specification` (JSON) says, and write the sample, or the error, to the file `answer`."""
    # Not at the top of the module: each worker that is not forked imports this module, which must be quick.
    import json
    import traceback
    from dataclasses import asdict
    from pathlib import Path

    from benchmarks.peers.base import Unsupported
    from benchmarks.workload import Scale
    from benchmarks.workloads import WORKLOADS

    spec = json.loads(specification)
    workload = WORKLOADS[spec["workload"]]
    try:
        sample = workload.run(spec["contender"], Scale(**spec["scale"]))
    except Unsupported:
        outcome: dict[str, object] = {"error": "has no such call"}
    except BaseException as error:
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    else:
        outcome = asdict(sample)
    Path(answer).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
