"""The grid of T and S, and which of its plans are run."""

from __future__ import annotations

import numpy as np
import pytest

from sti_hf import ExecutionPlan, ShardStore, STIConfig
from sti_hf.integrations.store_planner import plan_store
from sti_hf.planning import Workload
from sti_hf.reporting.plan_grid import PlanGrid, choose_budgets, choose_latencies, plan_grid
from sti_hf.reporting.runs import chosen_plans, telling_plan
from tests.integrations.checkpoints import DEVICE

CONFIG = STIConfig(target_latency=0.0123, preload_budget=7777, submodels="any")


@pytest.fixture(scope="module")
def grid(bare_store: ShardStore) -> PlanGrid:
    def plan(config: STIConfig) -> ExecutionPlan:
        return plan_store(bare_store, DEVICE, config, Workload(128))

    return plan_grid(plan, CONFIG, choose_latencies(plan, CONFIG), choose_budgets(bare_store, CONFIG))


def test_plans_are_of_their_place(bare_store: ShardStore, grid: PlanGrid) -> None:
    assert len(grid.plans) == len(grid.budgets)
    for budget, row in zip(grid.budgets, grid.plans):
        assert [(plan.target_latency, plan.preload_budget) for plan in row] == [(t, budget) for t in grid.latencies]
    again = plan_store(
        bare_store, DEVICE, CONFIG.replaced(target_latency=grid.latencies[5], preload_budget=0), Workload(128)
    )
    assert np.array_equal(grid.plans[0][5].bits, again.bits)


def test_latencies_go_from_too_short_to_ample(bare_store: ShardStore, grid: PlanGrid) -> None:
    assert list(grid.latencies) == sorted(set(grid.latencies))
    assert CONFIG.target_latency in grid.latencies
    without_buffer = grid.plans[0]
    assert not without_buffer[0].feasible
    assert without_buffer[-1].bits.shape == (bare_store.grid.layers, bare_store.grid.slices)
    assert (without_buffer[-1].bits >= 6).all()
    whole = {plan.bits.tobytes() for plan in without_buffer if plan.bits.all()}
    parts = {plan.submodel for plan in without_buffer if not plan.bits.all()}
    assert len(whole) >= 4
    assert len(parts) >= 4


def test_budgets_are_round_and_fit_the_store(bare_store: ShardStore, grid: PlanGrid) -> None:
    assert list(grid.budgets) == sorted(set(grid.budgets))
    assert {0, CONFIG.preload_budget} <= set(grid.budgets)
    others = set(grid.budgets) - {0, CONFIG.preload_budget}
    assert len(others) >= 4
    assert all(str(budget).rstrip("0") in ("1", "2", "5") for budget in others)
    assert max(others) <= bare_store.shard_bytes(4)


def test_chosen_plans_are_the_shortest_a_telling_and_the_longest_that_keep_t(grid: PlanGrid) -> None:
    chosen = chosen_plans(grid, CONFIG.preload_budget)
    assert {plan.preload_budget for plan in chosen} == {0, CONFIG.preload_budget}
    assert all(plan.feasible for plan in chosen)
    for budget in (0, CONFIG.preload_budget):
        kept = [plan for plan in grid.plans[grid.budgets.index(budget)] if plan.feasible]
        shortest, middle, longest = (plan for plan in chosen if plan.preload_budget == budget)
        assert (shortest, longest) == (kept[0], kept[-1])
        assert middle is telling_plan(grid, budget)
        assert middle.bits.all()
        assert len(middle.fidelity_counts()) > 1


def test_chosen_plans_where_none_keeps_t(grid: PlanGrid) -> None:
    hopeless = PlanGrid(grid.latencies[:1], (0,), (grid.plans[0][:1],))
    assert chosen_plans(hopeless, 0) == [grid.plans[0][0]]
