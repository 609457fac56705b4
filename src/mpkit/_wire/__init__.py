"""Objects to bytes and back.

- `codec`: pickle 5 with the reducers of multiprocessing, big buffers out of band
- `frame`: how a pickle and its buffers lie in a file
- `failure`: exceptions with the traceback of where they were raised
- `salvage`: the items of a list of which one cannot be unpickled
- `unsendable`: what belongs to its process
"""

from __future__ import annotations
