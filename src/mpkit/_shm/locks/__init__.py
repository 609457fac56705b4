"""Locks that outlive their holders, and what is built on them alone.

``robust_lock`` (a lock that survives its holder) and ``thread_lock`` (the part of it between threads),
``spin`` and ``sleepers`` (how to wait), ``shared_object`` and ``handle`` (opening, closing, pickling),
``remains`` (what a killed process has left), ``counter_file``, ``lock_file`` and ``lock_rows`` (who holds a
lock).
"""
