"""Plans of one store for many T and S."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from sti_hf.config import STIConfig
from sti_hf.planning import ExecutionPlan
from sti_hf.shards.layout import FIDELITIES, PLANES
from sti_hf.shards.store import ShardStore

Plan = Callable[[STIConfig], ExecutionPlan]
"""Plans for a configuration, on one store and device."""

STEPS = 12
"""Target latencies in each of two ranges, in even ratios."""

SOONEST = 1e-6
"""Seconds in which nothing can be answered: asked for this, the planner gives the fastest plan there is."""

BISECTIONS = 6
"""Plans by which the shortest T is found that submodels of measured accuracy keep."""

_TIGHT, _AMPLE = 0.9, 1.05


@dataclass(frozen=True, eq=False)
class PlanGrid:
    """Plans over a grid: `plans[s][t]` is for T `latencies[t]` and S `budgets[s]`.

    `latencies` are seconds and `budgets` bytes, both ascending.
    """

    latencies: tuple[float, ...]
    budgets: tuple[int, ...]
    plans: tuple[tuple[ExecutionPlan, ...], ...]


def plan_grid(
    plan: Plan,
    config: STIConfig,
    latencies: tuple[float, ...],
    budgets: tuple[int, ...],
    progress: Callable[[int], object] = lambda plans: None,
) -> PlanGrid:
    """Plans for every T and S, all else as `config` has it. `progress` is called with how many were just made."""
    rows = []
    for budget in budgets:
        row = []
        for latency in latencies:
            row.append(plan(config.replaced(target_latency=latency, preload_budget=budget)))
            progress(1)
        rows.append(tuple(row))
    return PlanGrid(latencies, budgets, tuple(rows))


def choose_latencies(plan: Plan, config: STIConfig) -> tuple[float, ...]:
    """Target latencies worth looking at, seconds: one that no plan keeps without a preload buffer, those at which more
    and more of the model runs, and those at which all shards rise from the lowest fidelity to 6 bits, above which
    nothing was measured to be won. Rounded to three digits; T of `config` is one of them."""
    without_buffer = config.replaced(preload_budget=0)
    fastest = _shortest_kept(plan, without_buffer)
    lowest, highest = (
        plan(without_buffer.replaced(strategy="std_pipeline", fidelity=bits)).predicted_latency
        for bits in (FIDELITIES[0], PLANES)
    )
    steps = [_TIGHT * fastest, *np.geomspace(fastest, lowest, STEPS), *np.geomspace(lowest, _AMPLE * highest, STEPS)]
    return tuple(sorted({float(f"{step:.2e}") for step in steps} | {config.target_latency}))


def _shortest_kept(plan: Plan, config: STIConfig) -> float:
    """About the shortest T that is kept by the submodels that may run, seconds."""
    too_short, kept = (
        plan(config.replaced(target_latency=SOONEST, submodels=rule)).predicted_latency
        for rule in ("any", config.submodels)
    )
    for _ in range(BISECTIONS if too_short < kept else 0):
        middle = (too_short + kept) / 2
        if plan(config.replaced(target_latency=middle)).feasible:
            kept = middle
        else:
            too_short = middle
    return kept


def choose_budgets(store: ShardStore, config: STIConfig) -> tuple[int, ...]:
    """Preload budgets worth looking at, bytes: none, and round numbers from a twentieth of all shards at the lowest
    fidelity to all of them at 4 bits. S of `config` is one of them."""
    least, most = store.shard_bytes(store.fidelities[0]) / 20, store.shard_bytes(4)
    budgets = {0, config.preload_budget}
    for power in count():
        round_numbers = [step * 10**power for step in (1, 2, 5)]
        if round_numbers[0] > most:
            return tuple(sorted(budgets))
        budgets.update(number for number in round_numbers if least <= number <= most)
    raise AssertionError("unreachable")
