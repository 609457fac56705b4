"""What a worker and its parent agree on.

``channel`` (the memory that they share, and the records in it), ``payload`` (arguments and outcomes as
bytes), ``logs`` (log records as bytes), ``stack_signal`` (the signal that asks for a stack), ``patience``
(how long to spin before sleeping).
"""
