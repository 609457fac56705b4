"""How a map is cut into chunks."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mpkit.pool._chunking import automatic_chunks


@given(
    length=st.integers(1, 2000),
    workers=st.integers(1, 70),
    most=st.integers(1, 2000),
)
def test_every_item_is_in_one_chunk_and_none_is_too_large(length: int, workers: int, most: int) -> None:
    items = list(range(length))
    chunks = list(automatic_chunks(items, workers, most))
    assert list(itertools.chain(*chunks)) == items
    sizes = [len(chunk) for chunk in chunks]
    assert 0 not in sizes
    assert max(sizes) <= min(most, -(-length // (4 * workers)))


def test_chunks_shrink_so_that_workers_end_together() -> None:
    sizes = [len(chunk) for chunk in automatic_chunks([None] * 12_800, 2, 12_800)]
    assert sizes == [1600] * 6 + [400] * 6 + [100] * 8
    # This must not cost more than twice as many chunks as with one size.
    assert len(sizes) <= 2.5 * (4 * 2)
    assert [len(chunk) for chunk in automatic_chunks([None] * 3, 2, 3)] == [1, 1, 1]
    assert [len(chunk) for chunk in automatic_chunks([None] * 12_800, 2, 1000)][:4] == [
        1000,
        1000,
        1000,
        1000,
    ]
