"""make_plan: whole plans, priced independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.errors import PlanError
from sti_hf.planning import ExecutionPlan, Workload, make_plan
from sti_hf.planning.staging import place_layers, reads_downwards
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import LayerLayout
from tests.planning.problems import (
    blocks_simulation,
    make_importance,
    make_layouts,
    make_profile,
    make_request,
    naive_costs,
    naive_latency,
    naive_preload,
    read_bytes,
)

LAYERS, SLICES = 4, 4
LAYOUTS = make_layouts(LAYERS, SLICES, "minilm")
PROFILE = make_profile()


def plan_for(layouts: list[LayerLayout] = LAYOUTS, **changes: Any) -> ExecutionPlan:
    values: dict[str, Any] = {"target_latency": 0.05, "preload_budget": 100_000}
    return make_plan(make_request(layouts, PROFILE, **(values | changes)))


def simulated(plan: ExecutionPlan) -> float:
    """Seconds of a plan's forward, its staging buffer written block by block."""
    request = make_request(LAYOUTS, PROFILE, preload_budget=plan.preload_budget, workload=plan.workload)
    io, compute = naive_costs(request, plan.bits, plan.layers)
    staged = [
        read_bytes(LAYOUTS[layer], LAYOUTS[layer].pieces_of(plan.bits[layer]) & ~plan.preloaded_pieces[layer])
        for layer in plan.layers
    ]
    places = place_layers(staged, plan.staging_bytes)
    downwards = [reads_downwards(position) for position in range(len(io))]
    _, done = blocks_simulation(
        io, staged, compute, places, downwards, request.embedding_seconds, request.before_seconds
    )
    return done[-1] + request.after_seconds


plans = {
    "target_latency": st.floats(0.015, 0.12),
    "preload_budget": st.integers(0, 1_500_000),
    "allocator": st.sampled_from(["marginal", "two_pass"]),
    "measured": st.booleans(),
    "staging_budget": st.none() | st.integers(0, 600_000),
    "seed": st.integers(0, 9),
}


@given(**plans)
@settings(max_examples=50, deadline=None)
def test_every_plan_is_what_it_says(measured: bool, seed: int, **asked: Any) -> None:
    plan = plan_for(importance=make_importance(LAYERS, SLICES, seed) if measured else None, **asked)
    n, m = plan.submodel
    assert plan.layers == tuple(range(n))
    assert ((plan.bits > 0) == (np.arange(LAYERS)[:, None] < n) & (np.arange(SLICES) < m)).all()
    held = naive_preload(LAYOUTS, plan.bits, plan.preload_budget)
    assert (plan.preloaded_pieces == held).all()
    assert plan.preload_bytes == sum(map(read_bytes, LAYOUTS, held)) <= plan.preload_budget
    assert plan.streamed_bytes == sum(
        read_bytes(layout, layout.pieces_of(row) & ~pieces) for layout, row, pieces in zip(LAYOUTS, plan.bits, held)
    )
    assert simulated(plan) == pytest.approx(plan.predicted_latency, rel=1e-9)
    # The smallest submodel at the lowest fidelity is all there is where T cannot be kept.
    assert plan.feasible or (plan.submodel[0] == 1 and plan.bits.max() == 2)
    assert plan.first_latency >= plan.predicted_latency
    whole = [naive_latency(make_request(LAYOUTS, PROFILE), plan.bits, plan.layers)]
    assert plan.first_latency >= whole[0] - 1e-9


TOGETHER = make_layouts(LAYERS, SLICES, "minilm", droppable=False)
"""Slices that are not droppable."""


@given(
    **plans,
    submodels=st.sampled_from(["measured", "any", "none"]),
    accuracy=st.dictionaries(st.integers(1, LAYERS).map(lambda depth: (depth, SLICES)), st.floats(0.5, 1.0)),
    memory=st.none() | st.integers(400_000, 2_000_000),
)
@settings(max_examples=100, deadline=None)
def test_slices_that_are_not_droppable_all_run(
    measured: bool, seed: int, accuracy: dict[tuple[int, int], float], memory: int | None, **asked: Any
) -> None:
    importance = make_importance(LAYERS, SLICES, seed) if measured else None
    changes = {"importance": importance, "submodel_accuracy": accuracy, "memory_budget": memory, **asked}
    plan = plan_for(TOGETHER, **changes)
    n, m = plan.submodel
    assert m == SLICES
    assert ((plan.bits > 0).all(axis=1) == (np.arange(LAYERS) < n)).all()
    assert not plan.bits[n:].any()
    # Where a plan that may drop slices has all of them, it is this one.
    free = plan_for(**changes)
    if free.submodel[1] == SLICES and free.feasible:
        assert plan.to_json() == free.to_json()


@pytest.mark.parametrize("share", np.linspace(0.1, 1.05, 8))
def test_slices_that_are_not_droppable_run_in_as_many_layers_as_keep_the_target(share: float) -> None:
    def uniform(depth: int) -> float:
        bits = np.zeros((LAYERS, SLICES), dtype=np.int64)
        bits[:depth] = 2
        return naive_latency(make_request(TOGETHER, PROFILE), bits, range(depth))

    target = share * uniform(LAYERS)
    deepest = max((depth for depth in range(1, LAYERS + 1) if uniform(depth) <= target), default=1)
    plan = plan_for(TOGETHER, target_latency=target, preload_budget=0)
    assert (plan.submodel, plan.feasible) == ((deepest, SLICES), uniform(deepest) <= target)


def test_no_slice_is_left_out_of_those_that_are_not_droppable_by_any_other_way() -> None:
    for accuracy in ({(LAYERS, SLICES - 1): 0.9}, {(1, 1): 0.9}):
        with pytest.raises(PlanError, match="does not fit this store"):
            plan_for(TOGETHER, submodel_accuracy=accuracy)
    with pytest.raises(PlanError, match="all 4 slices, not 3 of them"):
        Submodel(make_request(TOGETHER), LAYERS, SLICES - 1)
    for strategy in ("load_exec", "std_pipeline", "preload"):
        assert plan_for(TOGETHER, strategy=strategy, fidelity=3).submodel == (LAYERS, SLICES)


@given(st.integers(0, 400_000), st.floats(0.03, 0.12), st.integers(0, 300_000))
@settings(max_examples=25, deadline=None)
def test_a_staging_budget_is_kept(staging: int, target: float, preload: int) -> None:
    importance = make_importance(LAYERS, SLICES)
    plan = plan_for(staging_budget=staging, target_latency=target, preload_budget=preload, importance=importance)
    _, m = plan.submodel
    lowest = max(read_bytes(layout, layout.pieces_of([2] * m)) for layout in LAYOUTS)
    assert plan.staging_bytes <= max(staging, lowest)
    assert plan.feasible


def test_a_bounded_staging_buffer_costs_fidelity_not_time() -> None:
    # Compute of preloaded layers leaves time to read ahead, which takes room.
    asked: dict[str, Any] = {"target_latency": 0.036, "preload_budget": 500_000, "importance": make_importance(4, 4)}
    free = plan_for(**asked)
    bound = plan_for(**asked, staging_budget=200_000)
    assert free.feasible and bound.feasible
    assert bound.staging_bytes < free.staging_bytes
    assert bound.distortion > free.distortion


def test_time_that_is_ample_gives_six_bits_with_and_without_importance() -> None:
    assert plan_for(target_latency=9.0).fidelity_counts() == {6: 16}
    assert plan_for(target_latency=9.0, importance=make_importance(4, 4)).fidelity_counts() == {6: 16}
    assert plan_for(target_latency=9.0, fidelities=(2, 4)).fidelity_counts() == {4: 16}


def test_memory_that_is_ample_leaves_nothing_to_stream() -> None:
    plan = plan_for(preload_budget=10**9, target_latency=9.0)
    assert (plan.streamed_bytes, plan.staging_bytes) == (0, 0)
    assert plan.preloaded.all()
    assert plan.timeline.wait.sum() == pytest.approx(0.0)
    ready = PROFILE.embedding_seconds(128, 1536) + PROFILE.before_layers(Workload(128))
    assert plan.timeline.compute_start[0] == plan.timeline.ready == pytest.approx(ready)


def test_whole_layers_from_the_first_are_raised_by_default() -> None:
    for target in np.linspace(0.03, 0.06, 7):
        plan = plan_for(target_latency=float(target), preload_budget=0)
        levels = plan.bits[: plan.submodel[0], : plan.submodel[1]]
        assert (levels == levels[:, :1]).all()
        if plan.submodel == (LAYERS, SLICES):
            assert levels[0, 0] - levels[-1, 0] in (0, 1)
            assert (np.diff(levels[:, 0]) <= 0).all()


def test_where_nothing_keeps_the_target_the_fastest_plan_says_so() -> None:
    plan = plan_for(target_latency=1e-4)
    assert not plan.feasible
    assert plan.submodel == (1, 1)
    assert plan.fidelity_counts() == {2: 1}
    assert plan.predicted_latency == pytest.approx(simulated(plan)) and plan.predicted_latency > 1e-4


def test_extra_seconds_are_paid() -> None:
    assert plan_for(extra_seconds=0.25, target_latency=9.0).predicted_latency == pytest.approx(
        plan_for(target_latency=9.0).predicted_latency + 0.25
    )


def test_measured_accuracy_chooses_the_submodel() -> None:
    assert plan_for(target_latency=9.0, submodel_accuracy={(2, 3): 0.9, (4, 4): 0.8}).submodel == (2, 3)


def test_the_plan_keeps_what_it_was_asked() -> None:
    plan = plan_for(allocator="two_pass", fidelities=(2, 5))
    assert (plan.strategy, plan.allocator, plan.fidelities) == ("sti", "two_pass", (2, 5))
    assert (plan.target_latency, plan.preload_budget, plan.workload) == (0.05, 100_000, Workload(128))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target_latency": 0.0}, "target_latency"),
        ({"target_latency": -1.0}, "target_latency"),
        ({"preload_budget": -1}, "preload_budget"),
        ({"allocator": "best"}, "allocator must be one of marginal, two_pass"),
        ({"strategy": "fast"}, "strategy must be one of sti, load_exec, std_pipeline, preload"),
        ({"fidelity": 3}, "none for strategy 'sti'"),
        ({"strategy": "preload"}, "Give a fidelity"),
        ({"strategy": "preload", "fidelity": 7}, "7 bits"),
        ({"fidelities": (1, 2)}, "1 bits"),
    ],
)
def test_wrong_input(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        plan_for(**changes)


def test_full_weights_that_the_store_does_not_have() -> None:
    layouts = make_layouts(LAYERS, SLICES, full_itemsize=0)
    assert plan_for(layouts, target_latency=9.0, importance=make_importance(4, 4)).fidelity_counts() == {6: 16}
    with pytest.raises(ValueError, match="without full weights"):
        plan_for(layouts, strategy="load_exec", fidelity=32)
