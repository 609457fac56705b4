"""What is running and what it is doing, read from outside, without affecting it.

* `snapshot` and `ProcessSnapshot`: one process, at one moment.
* `tree` and `ProcessTree`: a process and everything it started.
* `watch`: one process at regular intervals, with the CPU share of each interval.
* `pools` and `PoolSnapshot`, `queues` and `QueueSnapshot`: the mpkit objects of a process.

All results are immutable: they do not change later, and can be pickled, compared and kept. None of these
functions signals, stops or reaps a process. (The command ``python -m mpkit stacks`` does send a signal: it
makes pool workers write their stacks.) This is the only package of mpkit that imports psutil when it is
loaded, and `import mpkit` alone does not load it.

Examples:
    >>> from mpkit import introspect
    >>> me = introspect.snapshot()
    >>> me.rss_bytes > 0
    True
"""

from __future__ import annotations

from mpkit.introspect._pools import PoolSnapshot, pools
from mpkit.introspect._processes import ProcessSnapshot, snapshot
from mpkit.introspect._queues import QueueSnapshot, queues
from mpkit.introspect._tree import ProcessTree, tree
from mpkit.introspect._watch import watch

__all__ = [
    "PoolSnapshot",
    "ProcessSnapshot",
    "ProcessTree",
    "QueueSnapshot",
    "pools",
    "queues",
    "snapshot",
    "tree",
    "watch",
]
