from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sti_hf.native import TIMING
from sti_hf.planning import ExecutionPlan, Workload
from sti_hf.planning.refinement import (
    EXTRA,
    EXTRA_MARGIN,
    IN_TIME,
    LARGEST_MARGIN,
    PLANNED,
    PRIOR_SECONDS,
    RECENT_SECONDS,
    REQUIRED,
    RUNS,
    LatestStarts,
    Margin,
    can_refine,
    compute_deadlines,
    refined_staging,
    seconds_per_byte,
    wanted_bits,
)
from sti_hf.planning.timeline import Timeline
from sti_hf.shards.layout import KINDS

T = 1.0
COMPUTE = np.array([0.1, 0.2, 0.05])
FIXED = 0.03


def plan(bits: list[list[int]] | None = None, strategy: str = "sti") -> ExecutionPlan:
    """Three layers, whose compute takes `COMPUTE`, and `FIXED` after them."""
    matrix = np.array(bits or [[4, 4]] * 3)
    start = 0.4 + COMPUTE.cumsum() - COMPUTE
    timeline = Timeline(start - 0.3, start - 0.1, start, start + COMPUTE, COMPUTE / 2, 0.4 + COMPUTE.sum() + FIXED)
    return ExecutionPlan(
        strategy=strategy,
        allocator="marginal",
        fidelities=(2, 3, 4, 5, 6),
        target_latency=T,
        preload_budget=0,
        workload=Workload(16),
        layers=(0, 1, 2),
        bits=matrix,
        preloaded_pieces=np.zeros((3, KINDS, 2), dtype=bool),
        preload_bytes=0,
        streamed_bytes=0,
        staging_bytes=0,
        timeline=timeline,
        first_latency=1.0,
        distortion=None,
    )


def test_deadlines_leave_the_compute_that_is_left() -> None:
    left = [sum(COMPUTE[step:]) + FIXED for step in range(3)]
    assert compute_deadlines(plan()) == pytest.approx([T - seconds for seconds in left])
    late = replace(plan(), target_latency=0.2)
    assert compute_deadlines(late) == pytest.approx([late.predicted_latency - seconds for seconds in left])


READS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 50), st.sampled_from([REQUIRED, PLANNED, EXTRA])), min_size=1
)


@given(READS, st.floats(1, 5), st.floats(0, 0.3))
def test_latest_starts_by_hand(reads: list[tuple[int, int, int]], pace: float, margin: float) -> None:
    reads = sorted(reads, key=lambda read: (read[0], read[2]))
    steps, sizes, purposes = np.array(reads).T
    byte_seconds = 1e-3
    latest = LatestStarts(plan(), byte_seconds, steps, sizes, purposes).at(pace, margin)
    for index, (step, size, purpose) in enumerate(reads):
        if purpose == REQUIRED:
            assert latest[index] == np.inf
            continue
        spared = margin + (EXTRA_MARGIN * T if purpose == EXTRA else 0.0)
        under_way = reads[index - 1][1] if index else 0
        begins = []
        for layer in range(step, 3):
            needed = sum(bytes_ for at, bytes_, other in reads if step < at <= layer and other < purpose)
            begins.append(
                compute_deadlines(plan())[layer] - spared - pace * byte_seconds * (needed + size + under_way)
            )
        assert latest[index] == pytest.approx(min(begins))


@pytest.mark.parametrize("pace", [1.0, 1.67, 3.0])
@pytest.mark.parametrize("under_way", [1, 2])
def test_pace_of_a_steady_disk(pace: float, under_way: int) -> None:
    """Reads one after the other, each begun when the one `under_way` before it ended."""
    sizes = np.random.default_rng(0).integers(1, 8, 60)
    byte_seconds = 1e-3
    ends = pace * byte_seconds * sizes.cumsum()
    begins = np.concatenate((np.zeros(under_way), ends[:-under_way]))
    starts = LatestStarts(plan(), byte_seconds, np.zeros_like(sizes), sizes, np.full_like(sizes, PLANNED))
    for now in np.linspace(0.02, ends[-1], 50):
        times = np.empty(len(sizes), dtype=TIMING)
        times["start"] = np.where(begins > now, np.nan, begins)
        times["end"] = np.where(ends > now, np.nan, ends)
        seen = min(now, RECENT_SECONDS)
        expected = (PRIOR_SECONDS + seen) / (PRIOR_SECONDS + seen / pace)
        longest = pace * byte_seconds * sizes.max() * under_way  # what is under way is not known
        assert starts.pace(times, now) == pytest.approx(
            expected, abs=(pace - 1) * longest / (PRIOR_SECONDS + seen) + 0.1
        )


def test_pace_of_a_disk_that_stands_still_or_has_nothing_to_do() -> None:
    starts = LatestStarts(plan(), 1e-3, np.zeros(3, int), np.full(3, 5), np.full(3, PLANNED))
    never = (np.nan, np.nan)
    assert starts.pace(np.array([never, never, never], dtype=TIMING), 0.0) == 1.0
    fast = [(0.0, 0.005), (0.005, 0.010)]
    then_idle = np.array([*fast, never], dtype=TIMING)
    assert starts.pace(then_idle, 0.02) == pytest.approx(1.0), "nothing to read since"
    assert starts.pace(then_idle, 9.0) == 1.0, "long ago"
    stuck = np.array([*fast, (0.010, np.nan)], dtype=TIMING)
    paces = [starts.pace(stuck, now) for now in (0.012, 0.02, 0.04, 0.1)]
    assert paces[0] == pytest.approx(1.0) and paces == sorted(paces) and paces[-1] > 3


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6), st.integers(0, 20))
def test_as_many_layers_fit_the_staging_buffer_as_before(layers: list[tuple[int, int]], spare: int) -> None:
    planned = [size for size, _ in layers]
    wanted = [size + more for size, more in layers]
    before = max(planned) + spare
    after = refined_staging(planned, wanted, before)
    assert after >= before
    runs = [(first, last) for first in range(len(layers)) for last in range(first + 1, len(layers) + 1)]
    for first, last in runs:
        if sum(planned[first:last]) <= before or last - first <= 2:
            assert sum(wanted[first:last]) <= after


def test_a_margin_is_what_would_have_kept_most_runs_in_time() -> None:
    margin = Margin(T)
    margin.learn(0.2)
    assert margin.seconds == 0.0, "one slow run is no reason"
    for _ in range(RUNS):
        margin.learn(-0.1)
    assert margin.seconds == 0.0, "runs that keep T need none"
    disturbed = np.random.default_rng(0).uniform(-0.1, 0.2, 20 * RUNS)
    late = []
    for seconds in disturbed:
        late.append(seconds - margin.seconds)
        margin.learn(late[-1])
    assert np.mean(np.array(late[RUNS:]) <= 0) == pytest.approx(IN_TIME, abs=0.04)
    assert margin.seconds == pytest.approx(np.quantile(disturbed[-RUNS:], IN_TIME))
    for _ in range(RUNS):
        margin.learn(1.0)
    assert margin.seconds == LARGEST_MARGIN * T
    for _ in range(RUNS):
        margin.learn(-0.5)
    assert margin.seconds == 0.0, "what is long ago is forgotten"


def test_the_fastest_layer_tells_what_a_byte_costs() -> None:
    timeline = plan().timeline
    assert seconds_per_byte(timeline, [100, 400, 0]) == pytest.approx(0.2 / 400)
    assert seconds_per_byte(timeline, [0, 0, 0]) == 0.0


def test_planes_beyond_the_plan_are_those_of_the_longer_one() -> None:
    short, long = plan([[2, 3], [4, 0], [5, 2]]), plan([[3, 2], [6, 6], [32, 2]])
    assert wanted_bits(short, long).tolist() == [[3, 3], [6, 0], [6, 2]]


@pytest.mark.parametrize(
    ("bits", "strategy", "can"),
    [([[2, 6]] * 3, "sti", True), ([[2, 32]] * 3, "sti", False), ([[2, 2]] * 3, "std_pipeline", False)],
)
def test_only_planes_can_be_refined(bits: list[list[int]], strategy: str, can: bool) -> None:
    assert can_refine(plan(bits, strategy)) is can
