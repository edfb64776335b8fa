"""The paper's competitors as plans."""

from __future__ import annotations

import pytest

from sti_hf.planning import ExecutionPlan, make_plan
from sti_hf.planning.baselines import preloaded_model
from sti_hf.shards.layout import FIDELITIES
from tests.planning.problems import make_layouts, make_profile, make_request, naive_costs, naive_latency, read_bytes

LAYOUTS = make_layouts(3, 4)
PROFILE = make_profile()
REQUEST = make_request(LAYOUTS, PROFILE)
UNDELAYED = make_request(LAYOUTS, make_profile(delay_per_byte=0.0))
"""Where nothing is read while layers compute."""


def plan_for(strategy: str, fidelity: int, target_latency: float = 1.0) -> ExecutionPlan:
    asked = {"target_latency": target_latency, "preload_budget": 10**6}
    return make_plan(make_request(LAYOUTS, PROFILE, strategy=strategy, fidelity=fidelity, **asked))


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_load_then_execute(fidelity: int) -> None:
    plan = plan_for("load_exec", fidelity)
    io, compute = naive_costs(UNDELAYED, plan.bits, plan.layers)
    reading = REQUEST.embedding_seconds + max(sum(io), REQUEST.before_seconds)
    expected = reading + sum(compute) + REQUEST.after_seconds
    assert plan.predicted_latency == pytest.approx(expected)
    assert plan.staging_bytes == plan.streamed_bytes
    assert plan.timeline.compute_start[0] == plan.timeline.io_end[-1]


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_standard_pipeline(fidelity: int) -> None:
    plan = plan_for("std_pipeline", fidelity)
    assert plan.predicted_latency == pytest.approx(naive_latency(REQUEST, plan.bits, plan.layers))
    assert plan.streamed_bytes == sum(read_bytes(one, one.pieces_of([fidelity] * 4)) for one in LAYOUTS)
    assert plan.predicted_latency <= plan_for("load_exec", fidelity).predicted_latency


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_preloaded_model(fidelity: int) -> None:
    plan = plan_for("preload", fidelity)
    _, compute = naive_costs(UNDELAYED, plan.bits, plan.layers)
    outside = REQUEST.embedding_seconds + REQUEST.before_seconds + REQUEST.after_seconds
    expected = outside + sum(compute)
    assert plan.predicted_latency == pytest.approx(expected)
    assert plan.preloaded.all()
    assert (plan.streamed_bytes, plan.staging_bytes) == (0, 0)
    assert plan.preload_bytes == plan_for("load_exec", fidelity).streamed_bytes
    assert plan.first_latency == pytest.approx(plan_for("std_pipeline", fidelity).predicted_latency)


@pytest.mark.parametrize("strategy", ["load_exec", "std_pipeline", "preload"])
def test_baselines_run_the_whole_model_whatever_the_target(strategy: str) -> None:
    plan = plan_for(strategy, 3, target_latency=1e-3)
    assert plan.submodel == (3, 4)
    assert plan.fidelity_counts() == {3: 12}
    assert not plan.feasible and plan_for(strategy, 3).feasible
    assert (plan.strategy, plan.allocator, plan.fidelities) == (strategy, None, (3,))
    assert strategy == "preload" or not plan.preloaded_pieces.any()


def test_a_preloaded_model_needs_no_profile() -> None:
    plan = preloaded_model(LAYOUTS, layers=2, slices=3, bits=4)
    assert plan.submodel == (2, 3)
    assert plan.preloaded.sum() == 6
    assert plan.preload_bytes == sum(read_bytes(one, one.pieces_of([4, 4, 4, 0])) for one in LAYOUTS[:2])
    assert plan.feasible and plan.predicted_latency == 0
    assert ExecutionPlan.from_json(plan.to_json()).to_json() == plan.to_json()
