"""Objects to bytes and back.

- `codec`: pickle 5 with the reducers of multiprocessing, big buffers out of band
- `frame`: the layout of a pickle and its buffers in a file
- `failure`: exceptions, with the traceback of where they were raised
- `salvage`: unpickles a list item by item, if one of the items cannot be unpickled
- `unsendable`: the base of objects that cannot leave their process
"""

from __future__ import annotations
