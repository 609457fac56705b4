"""Shared-memory building blocks: what processes have in common, and how they stay safe when one of them dies.

From the ground up: `memory` (names, files, semaphores, who takes part), `locks` (locks that survive their
holders, and how to wait), `queues` (rings of records, and memory for big items).
"""
