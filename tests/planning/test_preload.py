"""PlannedReads: the preload buffer follows what is needed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning.preload import PlannedReads
from sti_hf.planning.reads import PieceTable
from sti_hf.shards.layout import BLOCK, KINDS
from tests.planning.problems import SIZES, make_layouts

LAYERS, SLICES = 3, 2
PIECES = KINDS * SLICES
flips = st.lists(st.tuples(st.integers(0, LAYERS - 1), st.integers(0, PIECES - 1)), min_size=1, max_size=12)


@given(st.sampled_from(sorted(SIZES)), st.integers(0, 2**32 - 1), st.floats(0, 1.2), st.lists(flips, max_size=6))
@settings(deadline=None)
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


def test_a_smaller_piece_gets_in_when_the_one_before_it_that_did_not_fit_goes() -> None:
    layout = make_layouts(1, SLICES)[0]
    table = PieceTable([layout])
    needed = np.zeros((1, PIECES), dtype=bool)
    large, small = SLICES, PIECES - 1
    # A store has no such piece after a plane: it is made one block long.
    table.last[0, small] = table.first[0, small] + 1
    needed[0, [large, small]] = True
    planned = PlannedReads(table, needed, BLOCK)
    assert planned.streamed[0].blocks > 1
    planned.remove(0, large)
    assert planned.settle() == {0}
    assert planned.streamed[0].blocks == 0
