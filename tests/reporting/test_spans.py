"""Timelines as spans: nothing is lost, nothing overlaps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sti_hf import ExecutionPlan, ShardStore
from sti_hf.config import STIConfig
from sti_hf.integrations.store_planner import plan_store
from sti_hf.planning import Workload
from sti_hf.reporting.spans import (
    COMPUTING,
    DECOMPRESSING,
    OUTSIDE,
    READING,
    REST,
    WAITING,
    WORDS,
    Lanes,
    Span,
    measured_lanes,
    predicted_lanes,
)
from sti_hf.runtime.timeline import LayerTimes, run_timeline
from tests.integrations.checkpoints import DEVICE


@pytest.fixture(scope="module")
def plan(bare_store: ShardStore) -> ExecutionPlan:
    return plan_store(bare_store, DEVICE, STIConfig(target_latency=0.01, preload_budget=4000), Workload(128))


def total(lanes: Lanes, kind: str) -> float:
    return sum(span.end - span.start for span in (*lanes.disk, *lanes.processor) if span.kind == kind)


def check_processor(lanes: Lanes) -> None:
    """The processor's spans fill all of the time."""
    assert lanes.processor[0].start == 0
    assert lanes.processor[-1].end == pytest.approx(lanes.end)
    assert all(one.end == pytest.approx(next.start) for one, next in pairwise(lanes.processor))


def test_predicted(plan: ExecutionPlan) -> None:
    lanes, times = predicted_lanes(plan), plan.timeline
    check_processor(lanes)
    assert lanes.end == plan.predicted_latency
    assert total(lanes, WAITING) == pytest.approx(times.io_start[0] + times.wait.sum())
    assert total(lanes, DECOMPRESSING) == pytest.approx(times.decompress.sum())
    assert total(lanes, DECOMPRESSING) + total(lanes, COMPUTING) == pytest.approx(
        (times.compute_end - times.compute_start).sum()
    )
    assert total(lanes, READING) == pytest.approx((times.io_end - times.io_start).sum())
    assert lanes.disk[0] == Span(WORDS, OUTSIDE, 0.0, times.io_start[0])
    outside = times.ready - times.io_start[0] + times.end - times.compute_end[-1]
    assert total(lanes, REST) == pytest.approx(outside)


@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=3, max_size=3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_measured(
    plan: ExecutionPlan, steps: list[tuple[float, float, float, float]], embedding: float, after: float, unread: int
) -> None:
    """A run of the plan's three layers, of which `unread` read nothing."""
    begun = 100.0
    clock, layers = begun + embedding, []
    for pause, wait, decompress, compute in steps:
        start = clock + pause + wait
        clock = start + decompress + compute
        layers.append(LayerTimes(start, wait, clock, decompress))
    io = np.array([[begun, begun + 0.5]] * 3)
    io[:unread] = np.nan
    run = run_timeline(
        layers,
        io,
        begun=begun,
        ended=clock + after,
        tokens=8,
        embedding=embedding,
        bytes_read=0,
        row_bytes_read=0,
        bits=plan.bits,
        predicted=plan.predicted_latency,
        target_latency=plan.target_latency,
    )
    lanes = measured_lanes(plan, run)
    sums = np.array(steps).sum(axis=0)
    check_processor(lanes) if run.total else None
    assert total(lanes, WAITING) == pytest.approx(embedding + sums[1], abs=1e-9)
    assert total(lanes, DECOMPRESSING) == pytest.approx(sums[2], abs=1e-9)
    assert total(lanes, COMPUTING) == pytest.approx(sums[3], abs=1e-9)
    assert total(lanes, REST) == pytest.approx(sums[0] + after, abs=1e-9)
    assert {span.layer for span in lanes.disk if span.kind == READING} == set(range(unread, 3))
