"""Where everything lies in the file of a queue, counted in 8-byte words.

Words that different sides write lie on different cache lines (8 words), so that putters and getters do not slow each other down::

    line 0      what is fixed, and what is rarely written
    line 1      written by putters, under their lock
    line 2      written by getters, under their lock
    line 3      written under the getters' lock by task_done and join
    GENERATIONS for each generation of the ring (modulo) the region that it lies in
    REGIONS     the table of regions (see regions)
    ROWS        the table of processes (see rows)
    FIRST_RING  region 0: the ring that every queue begins with

A ring in a region is one line with its tail, one with its head, the records, and one last word that always says WRAP, so that a getter at
the end of the records need not compare its index with the capacity.
"""

from __future__ import annotations

from mpkit._shm.regions import ENTRY_WORDS
from mpkit._shm.rows import ROW_WORDS

MAGIC_VALUE = 0x6D706B6974_0001
"""ASCII "mpkit" and the version of this layout."""

MAGIC, MAXSIZE, MAX_BYTES, RECOVERIES, ROWS_USED, FILE_END = range(6)

PUT_GENERATION = 8
ITEMS_POSTED = 9
ROOM_SLEPT = 10

GET_GENERATION = 16
ROOM_POSTED = 17
ITEMS_SLEPT = 18

DONE = 24
DONE_SLEPT = 25
DONE_POSTED = 26

#: Set in PUT_GENERATION by `shutdown`, so that the putters' one look at that word sees it.
SHUT_DOWN = 1 << 32
GENERATION_MASK = SHUT_DOWN - 1

GENERATIONS = 32
GENERATION_SLOTS = 64

REGIONS = GENERATIONS + GENERATION_SLOTS
REGION_SLOTS = 128

ROWS = REGIONS + REGION_SLOTS * ENTRY_WORDS
ROW_SLOTS = 512

FIRST_RING = ROWS + ROW_SLOTS * ROW_WORDS
FILE_BYTES = 81920
FIRST_RING_WORDS = FILE_BYTES // 8 - FIRST_RING

RING_TAIL = 0
RING_HEAD = 8
RING_RECORDS = 16
