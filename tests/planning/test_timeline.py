"""The predicted pipeline against a simulation that writes the staging buffer block by block."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning.staging import MINIMUM_READ_AHEAD, choose_staging, place_layers, reads_downwards
from sti_hf.planning.timeline import simulate
from sti_hf.shards.layout import BLOCK
from tests.planning.problems import blocks_simulation

layers = st.lists(
    st.tuples(st.floats(0.001, 1), st.integers(0, 12), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8
)


@given(layers, st.integers(0, 40), st.floats(0, 1), st.floats(0, 3))
@settings(deadline=None)
def test_reads_wait_for_the_blocks_that_layers_before_them_hold(
    costs: list[tuple[float, int, float, float]], extra_blocks: int, first_io: float, before: float
) -> None:
    io, blocks, compute, share = (list(column) for column in zip(*costs))
    staged = [BLOCK * count for count in blocks]
    staging_bytes = max(staged) + BLOCK * extra_blocks
    decompress = [work * part for work, part in zip(compute, share)]
    timeline = simulate(
        io, staged, compute, decompress, first_io=first_io, before=before, after=0.5, staging_bytes=staging_bytes
    )
    places = place_layers(staged, staging_bytes)
    downwards = [reads_downwards(position) for position in range(len(io))]
    read, done = blocks_simulation(io, staged, compute, places, downwards, first_io, before)
    assert timeline.io_end == pytest.approx(read)
    assert timeline.compute_end == pytest.approx(done)
    assert timeline.end == pytest.approx(done[-1] + 0.5)
    assert timeline.decompress.tolist() == decompress
    # Waiting and computing fill all the time up to the end of the layers.
    assert first_io + before + timeline.wait.sum() + sum(compute) == pytest.approx(done[-1])
    assert timeline.ready == first_io + before
    assert (timeline.wait >= -1e-12).all()
    assert (timeline.io_start >= np.concatenate(([first_io], timeline.io_end[:-1])) - 1e-12).all()
    assert (timeline.io_end - timeline.io_start >= np.array(io) - 1e-12).all()


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(0, 40))
@settings(deadline=None)
def test_layers_lie_inside_the_buffer_and_neighbours_apart_where_they_fit(blocks: list[int], extra: int) -> None:
    size = max(blocks) + extra
    places = place_layers(blocks, size)
    assert all(place >= 0 and place + count <= size for place, count in zip(places, blocks))
    fit = max(map(sum, pairwise(blocks)), default=0) <= size
    for first, second, place, other in zip(blocks, blocks[1:], places, places[1:]):
        overlap = min(place + first, other + second) - max(place, other)
        assert overlap <= (first + second - size if not fit else max(first, second))
    if sum(blocks) <= size:
        assert places == [sum(blocks[:k]) for k in range(len(blocks))]


@pytest.mark.parametrize(("before", "start"), [(0.25, 3.5), (3.0, 3.5), (3.5, 4.0)])
def test_load_then_execute_computes_after_the_last_read(before: float, start: float) -> None:
    timeline = simulate(
        [1.0, 2.0],
        [BLOCK, BLOCK],
        [0.5, 0.25],
        [0.0, 0.0],
        first_io=0.5,
        before=before,
        after=1.0,
        staging_bytes=2 * BLOCK,
        overlap=False,
    )
    assert timeline.io_end.tolist() == [1.5, 3.5]
    assert timeline.compute_start.tolist() == [start, start + 0.5]
    assert timeline.end == start + 1.75
    assert timeline.wait.tolist() == [start - 0.5 - before, 0.0]


def latency_above(threshold: int, below: float = 1.1) -> Callable[[int], float]:
    return lambda size: 1.0 if size >= threshold else below


MIB = 1 << 20


@pytest.mark.parametrize(
    ("threshold", "budget", "target", "expected"),
    [
        (0, None, 1.0, 4 * MIB + MINIMUM_READ_AHEAD),
        (6 * MIB, None, 1.0, 7 * MIB),
        (6 * MIB, None, 1.1, 4 * MIB + MINIMUM_READ_AHEAD),
        (8 * MIB, None, 1.0, 9 * MIB),
        (8 * MIB, None, 0.5, 9 * MIB),
        (8 * MIB, 7 * MIB, 1.0, 4 * MIB + MINIMUM_READ_AHEAD),
        (6 * MIB, 6 * MIB, 1.0, 6 * MIB),
        (0, MIB, 1.0, 4 * MIB),
        (99 * MIB, None, 1.0, 4 * MIB + MINIMUM_READ_AHEAD),
    ],
)
def test_the_smallest_staging_buffer_that_keeps_the_latency(
    threshold: int, budget: int | None, target: float, expected: int
) -> None:
    layer_bytes = [2 * MIB, 4 * MIB, 3 * MIB]
    assert choose_staging(layer_bytes, budget, latency_above(threshold), target) == expected


def test_no_small_staging_buffer_that_is_much_slower() -> None:
    layer_bytes = [2 * MIB, 4 * MIB, 3 * MIB]
    assert choose_staging(layer_bytes, None, latency_above(6 * MIB, below=1.2), 9.0) == 7 * MIB


def test_no_staging_buffer_where_nothing_is_streamed() -> None:
    assert choose_staging([0, 0], None, lambda size: 1.0, 0.5) == 0
