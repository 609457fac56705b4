"""Shared-memory building blocks: what processes have in common, and how they stay safe when one of them dies.

Rooms, from the ground up:

- names and files: ``names`` (who removes what, and when), ``remains`` (what a killed process has left) and
  ``trail`` (how that process is found), ``sweep`` (what killed programs left in the temporary directory),
  ``segment`` (mapped files), ``blob`` (files written once), ``semaphore`` (named semaphores);
- who takes part: ``rows`` (the table of processes), ``robust_lock`` (a lock that survives its holder) and
  ``thread_lock`` (the part of it between threads), ``spin`` and ``sleepers`` (how to wait), ``shared_object``
  and ``handle`` (opening, closing, pickling);
- the queue: ``ring`` (a byte ring whose truth is two words, used by the pool), ``layout`` and ``queue_file``
  (what lies where), ``generations`` (one ring after the other), ``records`` and ``packs`` (what is in them),
  ``put_ring`` (where a record goes), ``put_side`` and ``get_side`` (who waits and wakes), ``open_queue``
  (both sides, as one process has them), ``async_waiters`` (coroutines), ``outside`` (a look from another
  process);
- big items: ``regions`` (recycled memory), ``places`` (where it lies), ``region_uses`` (when a use is over),
  ``held_items`` and ``views`` (what a getter has of them), ``borrowers`` (what a fork gives to a child);
- the others: ``counter_file``, ``lock_file`` and ``lock_rows`` (who holds a lock).
"""
