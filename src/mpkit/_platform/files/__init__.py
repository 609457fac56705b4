"""Descriptors, mappings, locks on files, and files without a name.

- `descriptors`: whether one still is what it was, whose a file is, and how one is opened
- `positioned`: reading and writing at an offset
- `file_maps`: mapping files
- `own_locks`: locks of open file descriptions
- `filelock`: a lock that the kernel frees
- `use_marks`: whether anybody has a file open
- `anonymous`: files without a name
"""

from __future__ import annotations
