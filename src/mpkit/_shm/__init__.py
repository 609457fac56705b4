"""Shared-memory building blocks, which stay consistent when any process that uses them dies.

From the bottom up: `memory` (names, files, semaphores, the table of processes), `locks` (locks that survive
their holders, and waiting), `queues` (rings of records, and memory for big items).
"""
