"""Everything that a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.utils import logging

from sti_hf.config import STIConfig
from sti_hf.errors import ConfigurationError
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.store_planner import StorePlanner, importance_name
from sti_hf.planning import DeviceProfile, ExecutionPlan, make_plan
from sti_hf.planning.importance_file import read_profile
from sti_hf.reporting.importance import Importance, read_importance
from sti_hf.reporting.plan_grid import PlanGrid, choose_budgets, choose_latencies, plan_grid
from sti_hf.reporting.results import Results
from sti_hf.reporting.runs import MeasuredRun, chosen_plans, measure_runs, telling_plan
from sti_hf.shards.store import ShardStore


@dataclass(frozen=True, eq=False)
class Report:
    """What a page is drawn from. `planned_with` is the importance profile behind the plans, None: the default order;
    `shown` the plan that is seen first."""

    store: ShardStore
    device: DeviceProfile
    importance: list[Importance]
    planned_with: str | None
    grid: PlanGrid
    shown: ExecutionPlan
    runs: list[MeasuredRun]
    results: list[Results]


def gather(store: ShardStore, config: STIConfig, results: Sequence[Results] = ()) -> Report:
    """Plans a store over a grid of T and S, and runs a few of the plans, with progress bars. Takes seconds.

    T and S of `config` are one point of the grid; all else of it holds for every plan. Raises `ValueError` with one
    sentence, before anything is measured, where its strategy is not "sti", or an importance profile cannot be read.
    """
    if config.strategy != "sti":
        raise ConfigurationError(
            f"A report shows plans of strategy 'sti', and this store's default is {config.strategy!r}."
        )
    importance = read_importance(store)
    name = importance_name(store, config)
    if name is not None:
        read_profile(store, name)
    device = device_profile(store, config.compute_dtype)
    grid = _plans(store, device, config)
    chosen = chosen_plans(grid, config.preload_budget)
    with logging.tqdm(total=len(chosen), desc="Running plans", unit="plan", leave=False) as bar:
        runs = list(measure_runs(store, config, chosen, bar.update))
    return Report(
        store=store,
        device=device,
        importance=importance,
        planned_with=name,
        grid=grid,
        shown=telling_plan(grid, config.preload_budget),
        runs=runs,
        results=list(results),
    )


def _plans(store: ShardStore, device: DeviceProfile, config: STIConfig) -> PlanGrid:
    planner = StorePlanner(store, device)
    workload = planner.workload(config)

    def plan(wanted: STIConfig) -> ExecutionPlan:
        return make_plan(planner.request(wanted, workload))

    latencies, budgets = choose_latencies(plan, config), choose_budgets(store, config)
    with logging.tqdm(total=len(latencies) * len(budgets), desc="Planning", unit="plan", leave=False) as bar:
        return plan_grid(plan, config, latencies, budgets, bar.update)
