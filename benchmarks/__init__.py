"""Measures mpkit, the standard library and similar packages, in one run on one machine.

``python -m benchmarks --help`` lists the options; ``docs/explanation/performance.md`` shows the results of
the last full run.

- `benchmarks.workload`: the types (workload, contender's outcome, target) and their arithmetic; runs nothing
- `benchmarks.queue`, `.arrays`, `.sync`, `.pool`, `.imports`: the workloads, one module for each area
- `benchmarks.peers`: one adapter for each package
- `benchmarks.crew`: runs processes that begin their work together and measure their own times
- `benchmarks.cell`: makes one measurement, in a new interpreter
- `benchmarks.runner`: makes all measurements, in the order A B C, A B C, ...
- `benchmarks.report`, `benchmarks.plot`: make tables in Markdown and bars in SVG

To add a workload, write it in the module of its area and add it to that module's list. To add a package,
write an adapter in `benchmarks.peers`. A "contender" is anything that takes part in a workload: mpkit, the
standard library (or a part of it), or a peer. A "target" is what mpkit is meant to reach.
"""

from __future__ import annotations
