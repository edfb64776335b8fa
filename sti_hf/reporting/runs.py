"""Cold inferences of a few plans, measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.integrations.session import open_session
from sti_hf.integrations.store_model import load_model_on
from sti_hf.model import get_architecture
from sti_hf.planning import ExecutionPlan
from sti_hf.profiling.examples import longest_input
from sti_hf.reporting.plan_grid import PlanGrid
from sti_hf.runtime.session import STISession
from sti_hf.runtime.timeline import RunTimeline
from sti_hf.shards.store import ShardStore

REPEATS = 3


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """A cold inference that followed a plan."""

    plan: ExecutionPlan
    timeline: RunTimeline


def chosen_plans(grid: PlanGrid, budget: int) -> list[ExecutionPlan]:
    """The plans that are run: without a preload buffer and with one of `budget` bytes, each at the shortest T that can
    be kept, at that of `telling_plan`, and at the longest."""
    plans = []
    for each in sorted({0, budget}):
        kept = _kept(grid, each)
        chosen = (kept[0], telling_plan(grid, each), kept[-1])
        plans += [plan for plan in kept if plan in chosen]
    return plans


def telling_plan(grid: PlanGrid, budget: int) -> ExecutionPlan:
    """With a preload buffer of `budget` bytes, the middle one of the plans in which all shards run, not yet all at one
    fidelity; where there is none, of all that keep T."""
    kept = _kept(grid, budget)
    mixed = [plan for plan in kept if plan.bits.min() > 0 and plan.bits.min() < plan.bits.max()] or kept
    return mixed[len(mixed) // 2]


def _kept(grid: PlanGrid, budget: int) -> list[ExecutionPlan]:
    """The plans with `budget` that keep their T; where none does, the one at the shortest T."""
    row = grid.plans[grid.budgets.index(budget)]
    return [plan for plan in row if plan.feasible] or [row[0]]


def measure_runs(
    store: ShardStore,
    config: STIConfig,
    plans: list[ExecutionPlan],
    progress: Callable[[int], object] = lambda runs: None,
) -> Iterator[MeasuredRun]:
    """Runs each plan, of random inputs: once to fill the preload buffer, then `REPEATS` times with the store's files
    out of memory, which is what T is about. Yields the run of median duration."""
    session = open_session(store, config.replaced(target_latency=max(plan.target_latency for plan in plans)))
    try:
        model = load_model_on(store, session)
        tokens = min(plans[0].workload.tokens, longest_input(model))
        batch = plans[0].workload.batch
        with torch.random.fork_rng():
            torch.manual_seed(0)
            inputs = get_architecture(model.config).example_inputs(model.config, batch, tokens)
        for plan in plans:
            session.use(plan)
            model(**inputs)
            timelines = [_cold_run(store, session, model, inputs) for _ in range(REPEATS)]
            progress(1)
            yield MeasuredRun(plan, sorted(timelines, key=lambda timeline: timeline.total)[REPEATS // 2])
    finally:
        session.close()


def _cold_run(
    store: ShardStore, session: STISession, model: PreTrainedModel, inputs: dict[str, Tensor]
) -> RunTimeline:
    _evict(store)
    model(**inputs)
    assert session.last_run is not None
    return session.last_run


def _evict(store: ShardStore) -> None:
    """Takes the store's files out of the page cache."""
    for name in store.index.files:
        with (store.path / name).open("rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
