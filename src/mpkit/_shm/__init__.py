"""Shared-memory building blocks: what processes have in common, and how they stay safe when one of them dies.

Rooms, from the ground up: ``names`` (who removes what, and when), ``segment`` (mapped files), ``semaphore``
(named semaphores), ``ring`` (a byte ring whose truth is two words), ``rows`` (which processes take part),
``robust_lock`` (a lock that survives its holder), ``sleepers`` (who waits for a wake-up), ``regions``
(recycled big buffers), ``put_side`` and ``get_side`` (the two sides of a queue), ``packs`` (many small items
as one record), ``views`` and ``arrivals`` (who holds a big item, who awaits one).
"""
