"""Locks that outlive their holders, and what is built on them alone.

``robust_lock`` (a lock that survives its holder) and ``thread_lock`` (the part of it between threads),
``spin`` and ``sleepers`` (how to wait), ``shared_file`` (what all files begin with), ``participant`` (a
process takes part), ``shared_object`` and ``handle`` (opening, closing, pickling), ``users`` and ``remains``
(whether anybody needs a name, and what a killed process has left), ``counter_file``; ``lock_file``,
``own_rows`` and ``lock_rows`` (who holds a lock).
"""
