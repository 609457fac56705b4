"""What a worker and its parent agree on: ``channel`` (the memory that they share), ``payload`` (arguments and
outcomes as bytes), ``logs`` (records on their way), ``stack_signal``, ``patience`` (how long to look before
sleeping).
"""
