"""Workloads, and the latency of a plan with another workload than its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.errors import PlanError
from sti_hf.planning import OnePlan, Workload, make_plan, predict_latency
from tests.planning.problems import make_importance, make_layouts, make_request, naive_latency

LAYERS, SLICES = 4, 4
LAYOUTS = make_layouts(LAYERS, SLICES)


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 1), (2, 16), (16, 16), (17, 32), (128, 128), (129, 256)])
def test_buckets(tokens: int, bucket: int) -> None:
    assert Workload.bucket(tokens) == bucket


@pytest.mark.parametrize("wrong", [(0, 1), (16, 0), (-1, 1), (1.5, 1), (16, True), ("16", 1)])
def test_workloads_that_make_no_sense(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(PlanError, match="of a workload must be a whole number of at least 1"):
        Workload(*wrong)


@pytest.mark.parametrize("cached", [-1, 0.0, True, "1", None])
def test_a_cache_that_makes_no_sense(cached: Any) -> None:
    with pytest.raises(PlanError, match="cached of a workload must be a whole number of at least 0"):
        Workload(16, cached=cached)


def test_a_workload_in_words() -> None:
    assert [str(Workload(128)), str(Workload(1)), str(Workload(16, 8))] == [
        "128 tokens",
        "1 token",
        "8 sequences of 16 tokens",
    ]
    assert [str(Workload(1, cached=40)), str(Workload(1, 2, 40))] == [
        "1 token after 40",
        "2 sequences of 1 token after 40",
    ]
    assert Workload(16, 8).all_tokens == 128
    assert Workload(16, 8).pairs == 256
    assert Workload(16, 8, cached=100).pairs == 16 * 116


asked = {
    "target_latency": st.floats(0.01, 0.12),
    "preload_budget": st.integers(0, 1_500_000),
    "staging_budget": st.none() | st.integers(0, 600_000),
    "workload": st.builds(Workload, st.sampled_from([16, 32, 128, 256]), st.integers(1, 4)),
    "strategy": st.sampled_from(["sti", "load_exec", "std_pipeline", "preload"]),
}


@given(**asked, batches=st.lists(st.integers(1, 64), min_size=2, max_size=4), seed=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_latency_with_another_batch(strategy: str, batches: list[int], seed: int, **others: Any) -> None:
    fidelity = None if strategy == "sti" else 4
    importance = make_importance(LAYERS, SLICES, seed)
    request = make_request(LAYOUTS, strategy=strategy, fidelity=fidelity, importance=importance, **others)
    plan = make_plan(request)
    assert predict_latency(request, plan) == plan.predicted_latency
    tokens = plan.workload.tokens
    seconds = [predict_latency(request.changed(workload=Workload(tokens, n)), plan) for n in sorted(batches)]
    assert seconds == sorted(seconds), "more batch is never faster"
    smaller = [value for n, value in zip(sorted(batches), seconds) if n <= plan.workload.batch]
    assert all(value <= plan.predicted_latency for value in smaller)


def test_latency_with_another_workload_is_that_of_the_pipeline_event_by_event() -> None:
    request = make_request(LAYOUTS, target_latency=0.05, preload_budget=0, extra_seconds=0.01)
    plan = make_plan(request)
    for workload in (Workload(64), Workload(128, 8), Workload(512), Workload(1, 2, cached=500)):
        other = request.changed(workload=workload)
        assert predict_latency(other, plan) == pytest.approx(naive_latency(other, plan.bits, plan.layers))


def test_a_batch_of_short_sequences_is_not_one_long_sequence() -> None:
    request = make_request(LAYOUTS, target_latency=9.0, preload_budget=10**9, row_bytes=0)
    plan = make_plan(request)
    many, long = (predict_latency(request.changed(workload=each), plan) for each in (Workload(64, 8), Workload(512)))
    attention = [request.changed(workload=each).gemm_seconds(SLICES) for each in (Workload(64, 8), Workload(512))]
    assert long - many == pytest.approx(LAYERS * (attention[1] - attention[0])) and long > 1.1 * many


def test_a_plan_is_for_the_batch_that_is_asked_for() -> None:
    one, eight = (
        make_plan(make_request(LAYOUTS, target_latency=0.047, workload=Workload(32, batch))) for batch in (1, 8)
    )
    assert eight.workload == Workload(32, 8)
    assert one.feasible and eight.feasible
    assert eight.bits.sum() < one.bits.sum()


def test_a_planner_of_one_plan() -> None:
    plan = make_plan(make_request(LAYOUTS))
    planner = OnePlan(plan)
    assert planner.plan(None, Workload(4)) is plan
    assert planner.latency(plan, Workload(4)) == plan.predicted_latency
