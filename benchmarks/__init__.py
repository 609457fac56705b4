"""mpkit beside the standard library and the packages that do the same work, in one run on one machine.

``python -m benchmarks --help`` tells the choices; ``docs/explanation/performance.md`` shows what
the last full run found.

- `benchmarks.workload`: what a workload, a target and a result are, and the ratios between them; runs nothing
- `benchmarks.queue`, `.arrays`, `.sync`, `.pool`, `.imports`: the workloads, one module for each area
- `benchmarks.peers`: one adapter for each package that is compared
- `benchmarks.crew`: processes that start together and are timed inside
- `benchmarks.cell`: one measurement, in an interpreter of its own
- `benchmarks.runner`: the order of measurements: A B C, A B C, ...
- `benchmarks.report`, `benchmarks.plot`: tables in Markdown, bars in SVG
"""

from __future__ import annotations
