"""Pricing sets of pieces, held against the layout's own read ranges."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning.reads import PieceTable, ReadSet
from sti_hf.shards.layout import BLOCK, FIDELITIES, KINDS
from tests.planning.problems import SIZES, make_layouts, naive_preload

SLICES = 3
sizes = st.sampled_from(sorted(SIZES))
seeds = st.integers(0, 2**32 - 1)


@given(sizes, seeds, st.floats(0, 1))
@settings(deadline=None)
def test_reads_are_those_of_the_layout(size: str, seed: int, share: float) -> None:
    layouts = make_layouts(2, SLICES, size, seed=seed)
    pieces = np.random.default_rng(seed).random((2, KINDS, SLICES)) < share
    num_bytes, requests = PieceTable(layouts).reads(pieces.reshape(2, -1))
    for layer, layout in enumerate(layouts):
        ranges = layout.read_ranges(pieces[layer])
        assert (num_bytes[layer], requests[layer]) == (ranges[:, 1].sum(), len(ranges))


@given(seeds)
@settings(deadline=None)
def test_needed_pieces_are_those_of_the_layout(seed: int) -> None:
    layouts = make_layouts(3, SLICES)
    bits = np.random.default_rng(seed).choice((0, *FIDELITIES), size=(3, SLICES))
    needed = PieceTable(layouts).needed(bits).reshape(3, KINDS, SLICES)
    assert all((needed[layer] == layouts[layer].pieces_of(bits[layer])).all() for layer in range(3))


@given(sizes, seeds, st.floats(0, 1.2))
@settings(deadline=None)
def test_preloaded_pieces_are_a_prefix_that_fits(size: str, seed: int, share: float) -> None:
    layouts = make_layouts(4, SLICES, size, seed=seed)
    bits = np.random.default_rng(seed).choice((0, *FIDELITIES), size=(4, SLICES))
    table = PieceTable(layouts)
    needed = table.needed(bits)
    budget = int(share * table.reads(needed)[0].sum())
    held = table.preloaded(needed, budget).reshape(4, KINDS, SLICES)
    assert (held == naive_preload(layouts, bits, budget)).all()


@given(sizes, seeds, st.lists(st.integers(0, KINDS * SLICES - 1), max_size=40))
@settings(deadline=None)
def test_a_read_set_stays_exact_as_pieces_come_and_go(size: str, seed: int, flips: list[int]) -> None:
    layout = make_layouts(1, SLICES, size, seed=seed)[0]
    table = PieceTable([layout])
    pieces = np.random.default_rng(seed).random((1, KINDS * SLICES)) < 0.5
    num_bytes, requests = table.reads(pieces)
    reads = ReadSet((table.first[0].tolist(), table.last[0].tolist()), pieces[0], num_bytes[0], requests[0])
    for piece in flips:
        before = reads.blocks
        if pieces[0, piece]:
            assert reads.remove(piece) == before - reads.blocks
        else:
            assert reads.add(piece) == reads.blocks - before
        pieces[0, piece] ^= True
        ranges = layout.read_ranges(pieces.reshape(KINDS, SLICES))
        assert (reads.blocks * BLOCK, reads.requests) == (ranges[:, 1].sum(), len(ranges))


def test_take_keeps_the_rows_of_some_layers() -> None:
    layouts = make_layouts(3, SLICES)
    taken = PieceTable(layouts).take([2, 0])
    for row, layer in enumerate((2, 0)):
        alone = PieceTable([layouts[layer]])
        assert (taken.first[row] == alone.first[0]).all() and (taken.last[row] == alone.last[0]).all()
