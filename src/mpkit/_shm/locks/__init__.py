"""Locks that survive their holders, and the objects that need nothing but them.

- Locking inside queues and counters: ``robust_lock``, and ``thread_lock``, its part between threads.
- Waiting: ``sleepers``, and ``spin``.
- The base of all shared objects: ``shared_file`` (how their files begin), ``participant`` (a process's part
  in an object), ``shared_object`` and ``handle`` (opening, closing, pickling).
- Cleaning up: ``users`` (whether a name is still needed), ``remains`` (what a killed process has left).
- `mpkit.LockedCounter`: ``counter_file``. `mpkit.Lock`: ``lock_file`` on ``own_rows`` on ``lock_rows``.
"""
