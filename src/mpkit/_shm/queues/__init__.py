"""The queue.

- Small items: ``layout`` and ``queue_file`` (the layout of the file, and its parts), ``generations`` (the
  sequence of rings), ``records`` and ``packs`` (what is in the rings), ``put_ring`` (where a record goes),
  ``put_side`` and ``get_side`` (putting and taking, waiting and waking), ``open_queue`` (both sides, as one
  process has them open), ``async_waiters`` (waiting coroutines), ``outside`` (reading a queue's state from
  another process).
- Big items: ``regions`` (the table of regions), ``region_supply`` (finding a free one), ``region_uses`` (when
  a region is no longer in use), ``held_items`` and ``views`` (big items that were taken), ``borrowers``
  (views that a forked child has).
- ``ring`` is the plain form of a ring, for one putter and one getter; the pool uses it, and the queue its
  constants.
"""
