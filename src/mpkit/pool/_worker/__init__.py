"""What runs in a worker.

``worker`` (its loop), ``calls`` (what it does for a task), ``chunks`` (many calls as one task), ``opened``
(the shared objects that tasks need), ``outbox`` and ``bells`` (how outcomes go back, and who is woken),
``fork`` (when a task forks), ``importing`` (whether it is just importing a module).
"""
