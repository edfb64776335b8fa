"""PlannedReads: the preload buffer follows what is needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sti_hf.planning.preload import PlannedReads
from sti_hf.planning.reads import PieceTable
from sti_hf.shards.layout import BLOCK, KINDS
from tests.planning.problems import SIZES, make_layouts

LAYERS, SLICES = 3, 2
PIECES = KINDS * SLICES
flips = st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, PIECES - 1)), min_size=1, max_size=12)


@given(st.sampled_from(sorted(SIZES)), st.integers(0, 2**32 - 1), st.floats(0, 1.2), st.lists(flips, max_size=6))
def test_streamed_reads_are_those_of_a_fresh_start(
    size: str, seed: int, share: float, steps: list[list[tuple[int, int]]]
) -> None:
    table = PieceTable(make_layouts(LAYERS, SLICES, size, seed=seed))
    needed = np.random.default_rng(seed).random((LAYERS, PIECES)) < 0.6
    budget = int(share * table.reads(needed)[0].sum())
    planned = PlannedReads(table, needed.copy(), budget)
    for step in steps:
        before = [(reads.blocks, reads.requests) for reads in planned.streamed]
        for layer, piece in step:
            (planned.remove if needed[layer, piece] else planned.add)(layer, piece)
            needed[layer, piece] ^= True
        changed = planned.settle()
        streamed = needed & ~table.preloaded(needed, budget)
        num_bytes, requests = table.reads(streamed)
        for layer, reads in enumerate(planned.streamed):
            assert (reads.blocks * BLOCK, reads.requests) == (num_bytes[layer], requests[layer])
            assert bytes(reads.present) == streamed[layer].tobytes()
            assert layer in changed or (reads.blocks, reads.requests) == before[layer]
