"""Descriptors, mappings, file locks, and unnamed files.

- `descriptors`: whether a descriptor still refers to the same file, the owner of a file, flags for opening
- `positioned`: reading and writing at an offset
- `file_maps`: mapping files
- `own_locks`: locks that belong to an open file description
- `filelock`: a lock that the kernel frees when its holder dies
- `use_marks`: whether any process has a file open
- `anonymous`: unnamed files
"""

from __future__ import annotations
