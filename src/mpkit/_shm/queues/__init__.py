"""The queue.

- items: ``ring`` (a byte ring whose truth is two words, used by the pool), ``layout`` and ``queue_file``
  (what lies where), ``generations`` (one ring after the other), ``records`` and ``packs`` (what is in them),
  ``put_ring`` (where a record goes), ``put_side`` and ``get_side`` (who waits and wakes), ``open_queue``
  (both sides, as one process has them), ``async_waiters`` (coroutines), ``outside`` (a look from another
  process);
- big items: ``regions`` (the table of them), ``region_supply`` (recycled memory), ``region_uses`` (when a use
  is over), ``held_items`` and ``views`` (what a getter has of them), ``borrowers`` (what a fork gives to a
  child).
"""
