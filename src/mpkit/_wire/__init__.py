"""Objects to bytes and back.

- `codec`: pickle 5 with the reducers of multiprocessing, big buffers out of band
- `failure`: exceptions with the traceback of where they were raised
- `salvage`: the items of a list of which one cannot be unpickled
- `unsendable`: what belongs to its process
"""

from __future__ import annotations
