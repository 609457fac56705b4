"""Objects to bytes and back.

- `codec`: pickle 5 with the reducers of multiprocessing, big buffers out of band
- `failure`: exceptions with the traceback of where they were raised
"""

from __future__ import annotations
