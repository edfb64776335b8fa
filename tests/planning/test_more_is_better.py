"""More T, S, staging or memory never gives a worse plan; and what a memory budget holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.errors import PlanError
from sti_hf.planning import (
    AdditiveImportance,
    EffectsImportance,
    ExecutionPlan,
    ImportanceProfile,
    LayerOrder,
    PlanRequest,
    make_plan,
)
from sti_hf.planning.submodel import Submodel
from tests.planning.problems import make_importance, make_layouts, make_request, naive_preload

LAYERS, SLICES = 4, 4
LAYOUTS = tuple(make_layouts(LAYERS, SLICES))
WORKING = (100_000, 200_000, 200_000, 200_000)

TOLERANCE = 0.02
"""Of the distortion of all-lowest, by which a plan may be worse than one of less T or S.

To fill a budget best is a knapsack problem, which allocators do not solve but approach. Only a choice among plans that
are the same for every T and S could never lose anything, and would lose more everywhere."""


def profiles(kind: str, seed: int) -> ImportanceProfile:
    if kind == "default":
        return LayerOrder(LAYERS)
    if kind == "additive":
        return make_importance(LAYERS, SLICES, seed)
    random = np.random.default_rng(seed)
    scale = np.array([2.0**-bits for bits in range(2, 7)])[:, None]
    return EffectsImportance(random.normal(size=(LAYERS, SLICES, 1, 40)) * scale)


budgets = {
    "target_latency": st.floats(0.012, 0.12),
    "preload_budget": st.integers(0, 1_500_000),
    "staging_budget": st.none() | st.integers(0, 800_000),
    "memory_budget": st.none() | st.integers(500_000, 3_000_000),
}


@given(
    one=st.fixed_dictionaries(budgets),
    other=st.fixed_dictionaries(budgets),
    allocator=st.sampled_from(["marginal", "two_pass"]),
    kind=st.sampled_from(["default", "additive", "effects"]),
    seed=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_more_never_gives_a_worse_plan(
    one: dict[str, Any], other: dict[str, Any], allocator: str, kind: str, seed: int
) -> None:
    def most(name: str) -> Any:
        values = (one[name], other[name])
        return None if None in values else max(values)

    importance = profiles(kind, seed)
    asked: dict[str, Any] = {"submodels": "none", "allocator": allocator, "importance": importance}
    request = make_request(LAYOUTS, working_bytes=WORKING, **asked, **one)
    less, more = make_plan(request), make_plan(replace(request, **{name: most(name) for name in budgets}))
    assert more.feasible or not less.feasible
    if less.feasible:
        everything = importance.distortion(np.full((LAYERS, SLICES), 2))
        assert more.distortion is not None and less.distortion is not None
        assert more.distortion <= less.distortion + TOLERANCE * everything


def total(plan: ExecutionPlan) -> int:
    return plan.preload_bytes + plan.staging_bytes + WORKING[plan.submodel[1] - 1]


@given(**budgets, rule=st.sampled_from(["any", "none"]), seed=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_a_memory_budget_holds_all_three_buffers(rule: str, seed: int, **asked: Any) -> None:
    request = make_request(
        LAYOUTS, working_bytes=WORKING, submodels=rule, importance=make_importance(LAYERS, SLICES, seed), **asked
    )
    plan = make_plan(request)
    assert plan.preload_bytes <= request.preload_budget
    if request.memory_budget is not None:
        assert total(plan) <= request.memory_budget
    if plan.staging_budget is not None:
        lowest = Submodel(request, *plan.submodel).largest_lowest
        assert plan.staging_bytes <= max(plan.staging_budget, lowest)
    assert (plan.preloaded_pieces == naive_preload(LAYOUTS, plan.bits, plan.preload_bytes)).all(), "as by a smaller S"


@pytest.mark.parametrize(("rule", "submodel"), [("none", (LAYERS, SLICES)), ("any", (1, 1))])
def test_the_least_memory_is_named_and_will_do(rule: str, submodel: tuple[int, int]) -> None:
    request = make_request(LAYOUTS, working_bytes=WORKING, submodels=rule, memory_budget=1000, target_latency=1e-4)
    with pytest.raises(
        PlanError, match=r"A memory_budget of 1000 bytes is too small: .* need \d+ bytes at least"
    ) as no:
        make_plan(request)
    least = int(str(no.value).split("need ")[1].split()[0])
    plan = make_plan(replace(request, memory_budget=least))
    assert (plan.submodel, total(plan)) == (submodel, least)
    with pytest.raises(PlanError, match="too small"):
        make_plan(replace(request, memory_budget=least - 1))


def test_a_baseline_that_exceeds_the_memory_budget_is_refused() -> None:
    request = make_request(LAYOUTS, working_bytes=WORKING, strategy="preload", fidelity=6, memory_budget=10**6)
    with pytest.raises(PlanError, match="too small") as no:
        make_plan(request)
    least = int(str(no.value).split("need ")[1].split()[0])
    assert total(make_plan(replace(request, memory_budget=least))) == least


def ample(importance: ImportanceProfile | None, **changes: Any) -> PlanRequest:
    return make_request(LAYOUTS, target_latency=9.0, importance=importance, **changes)


@pytest.mark.parametrize("kind", ["default", "additive", "effects"])
def test_full_fidelity_has_to_be_worth_its_bytes(kind: str) -> None:
    importance = profiles(kind, 0)
    assert make_plan(ample(importance)).fidelity_counts() == {6: 16}
    assert make_plan(ample(importance, fidelities=(2, 32))).fidelities == (2, 32)
    asked = replace(ample(importance), strategy="std_pipeline", fidelity=32)
    assert make_plan(asked).fidelity_counts() == {32: 16}


def test_planes_that_win_little_leave_it_to_full_fidelity() -> None:
    # A quantizer whose 6 bits still have half of the error of 2.
    table = np.ones((LAYERS, SLICES, 1)) * np.array([1.0, 0.9, 0.8, 0.7, 0.5, 0.0])
    assert make_plan(ample(AdditiveImportance(table))).fidelity_counts() == {32: 16}
