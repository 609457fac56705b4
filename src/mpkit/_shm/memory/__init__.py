"""Memory that several processes share, and the table of the processes that use it.

``names`` (which process removes which name, and when), ``sweep`` (files that killed processes left in the
temporary directory), ``segment`` (mapped files), ``blob`` (files written once), ``semaphore`` (named
semaphores), ``trail`` (how the descendants of a killed process are found), ``rows`` (the table of processes).
"""
