"""Memory that several processes see, and who takes part.

``names`` (who removes what, and when), ``sweep`` (what the killed left in the temporary directory),
``segment`` (mapped files), ``blob`` (files written once), ``semaphore`` (named semaphores), ``trail`` (how
what a killed process had made is found), ``rows`` (the table of processes).
"""
