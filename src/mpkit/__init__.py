"""Processes, queues, locks, counters and a task pool that stay right when a process dies."""

from __future__ import annotations

__version__ = "0.1.0"
