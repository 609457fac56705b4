"""The layout of the file of a queue, counted in 8-byte words.

Words that different sides write are on different cache lines (8 words each), so that putters and getters do
not slow each other down::

    line 0      common to all shared objects (see shared_file)
    line 1      written by putters, under their lock
    line 2      written by getters, under their lock
    line 3      written under the getters' lock by task_done and join; and words that never change
    GENERATIONS for each generation (modulo GENERATION_SLOTS) the region that contains its ring
    REGIONS     the table of regions (see regions)
    BORROWERS   the table of loans: which forked children have views of which regions (see borrowers)
    FIRST_RING  "region 0": the ring with which every queue begins
    ROWS        the table of processes (see rows), reserved as it fills

A ring is one line with its tail, one line with its head, the records, and a last word that always is WRAP, so
that a getter at the end of the records need not compare its index with the capacity.
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
# While everything is being discarded: one more than the count of gets at the beginning (else 0); and DONE at
# the beginning.
DISCARD_FROM = 27
DISCARD_DONE = 31
# Written only when the queue is created.
MAXSIZE = 28
MAX_BYTES = 29
FIRST_REGION = 30

#: The bit in PUT_GENERATION that `shutdown` sets, so that one look of the putters at that word shows it. The
#: number of a generation never gets as high, although a queue that keeps filling and idling may begin twenty
#: generations in a second.
SHUT_DOWN = 1 << 48
GENERATION_MASK = SHUT_DOWN - 1

GENERATIONS = 32
GENERATION_SLOTS = 64

REGIONS = GENERATIONS + GENERATION_SLOTS
REGION_SLOTS = 256

BORROWERS = REGIONS + REGION_SLOTS * ENTRY_WORDS
BORROWER_SLOTS = 128

FIRST_RING = BORROWERS + BORROWER_SLOTS * SLOT_WORDS
#: Everything before it, 56 KiB, is reserved when a queue is created.
ROWS = 7 * 1024
FIRST_RING_WORDS = ROWS - FIRST_RING

FORM = Form(
    "queue",
    MAGIC_BASE | 0x51,
    rows_at=ROWS,
    # The permits of the two locks (put, get); then tokens for items, for room, and for `join`.
    semaphores=((1, 1), (1, 1), (0, MAX_VALUE), (0, MAX_VALUE), (0, MAX_VALUE)),
    locks=2,
)

RING_TAIL = 0
#: The index at which the last record before a WRAP ended; only valid while the records go round the end.
RING_WRAPPED_AT = 1
RING_HEAD = 8
RING_RECORDS = 16
