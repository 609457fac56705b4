"""Where everything lies in the file of a queue, counted in 8-byte words.

Words that different sides write lie on different cache lines (8 words), so that putters and getters do not
slow each other down::

    line 0      what every shared object has (see shared_file)
    line 1      written by putters, under their lock
    line 2      written by getters, under their lock
    line 3      written under the getters' lock by task_done and join; and what is fixed
    GENERATIONS for each generation of the ring (modulo) the region that it lies in
    REGIONS     the table of regions (see regions)
    BORROWERS   which forked children have views of which regions (see borrowers)
    FIRST_RING  region 0: the ring that every queue begins with
    ROWS        the table of processes (see rows), reserved as it fills

A ring in a region is one line with its tail, one with its head, the records, and one last word that always
says WRAP, so that a getter at the end of the records need not compare its index with the capacity.
"""

from __future__ import annotations

from mpkit._shm.locks.shared_file import MAGIC_BASE, Form
from mpkit._shm.memory.semaphore import MAX_VALUE
from mpkit._shm.queues.borrowers import SLOT_WORDS
from mpkit._shm.queues.regions import ENTRY_WORDS

PUT_GENERATION = 8
ITEMS_POSTED = 9
ROOM_SLEPT = 10

GET_GENERATION = 16
ROOM_POSTED = 17
ITEMS_SLEPT = 18
LOANS = 19

DONE = 24
DONE_SLEPT = 25
DONE_POSTED = 26
# Set while everything is being thrown away: one more than the count of gets before, and DONE before.
DISCARD_FROM = 27
DISCARD_DONE = 31
# Fixed, or rarely written.
MAXSIZE = 28
MAX_BYTES = 29
FIRST_REGION = 30

#: Set in PUT_GENERATION by `shutdown`, so that the putters' one look at that word sees it. So high that no
#: number of a generation comes there: a queue that fills and idles all the time may begin twenty in a second.
SHUT_DOWN = 1 << 48
GENERATION_MASK = SHUT_DOWN - 1

GENERATIONS = 32
GENERATION_SLOTS = 64

REGIONS = GENERATIONS + GENERATION_SLOTS
REGION_SLOTS = 256

BORROWERS = REGIONS + REGION_SLOTS * ENTRY_WORDS
BORROWER_SLOTS = 128

FIRST_RING = BORROWERS + BORROWER_SLOTS * SLOT_WORDS
#: What lies before it, 56 KiB, is reserved for a new queue.
ROWS = 7 * 1024
FIRST_RING_WORDS = ROWS - FIRST_RING

FORM = Form(
    "queue",
    MAGIC_BASE | 0x51,
    rows_at=ROWS,
    # The two locks; then the tokens for items, for room, and for the end of all work.
    semaphores=((1, 1), (1, 1), (0, MAX_VALUE), (0, MAX_VALUE), (0, MAX_VALUE)),
    locks=2,
)

RING_TAIL = 0
#: Where the last record before a WRAP ended; means something only while the records go round the end.
RING_WRAPPED_AT = 1
RING_HEAD = 8
RING_RECORDS = 16
