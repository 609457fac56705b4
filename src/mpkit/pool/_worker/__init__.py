"""What runs in a worker.

``worker`` (its start and its loop), ``calls`` (runs a task), ``chunks`` (runs a task of many calls),
``opened`` (the shared objects that it has open), ``outbox`` (hands in outcomes and log records), ``bells``
(wakes threads of the parent), ``fork`` (if a task forks), ``importing`` (whether a
module is just being imported).
"""
