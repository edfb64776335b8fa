"""From a store, a device, T and S to a plan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sti_hf.planning.baselines import baseline_plan
from sti_hf.planning.full import without_wasted_full
from sti_hf.planning.importance import ImportanceProfile, default_importance
from sti_hf.planning.marginal import marginal
from sti_hf.planning.memory import memory_splits
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.predict import predict
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.submodel_choice import choose_submodel, last_resort
from sti_hf.planning.two_pass import two_pass

Allocator = Callable[[Submodel, ImportanceProfile], np.ndarray]
"""Fidelities, bits `[n, m]`, for a submodel that keeps T at the lowest one."""

ALLOCATORS: dict[str, Allocator] = {"marginal": marginal, "two_pass": two_pass}

_TRIES = 8


def make_plan(request: PlanRequest) -> ExecutionPlan:
    """Plans one forward (STI, section 5).

    Strategy "sti": of the submodels that may run and keep T at the lowest fidelity the best (`choose_submodel`); for
    that, fidelities by importance. Where none keeps T: `last_resort` at the lowest fidelity, a plan that is not
    `feasible`. The other strategies are baselines, the whole model at a uniform fidelity.

    Raises `PlanError` where the store lacks a fidelity that is asked for, or the memory budget is too small.
    """
    if request.fidelity is not None:
        return baseline_plan(request, request.fidelity)
    importance = request.importance or default_importance(request.grid)
    submodel = choose_submodel(request, lambda each: any(map(_keeps_target, memory_splits(each))))
    if submodel is None:
        lowest = [_at_lowest(split) for split in memory_splits(last_resort(request))]
        return min(lowest, key=lambda plan: plan.predicted_latency)
    splits = memory_splits(without_wasted_full(submodel, importance))
    plans = [_allocate(split, importance) for split in splits if _keeps_target(split)]
    return min(plans, key=lambda plan: plan.distortion or 0.0)


def _keeps_target(submodel: Submodel) -> bool:
    """Whether T is kept at the lowest fidelity. A staging buffer without bound never stands in the way of that."""
    if submodel.request.staging_budget is None:
        return submodel.is_valid(submodel.uniform(submodel.request.lowest))
    return _at_lowest(submodel).feasible


def _at_lowest(submodel: Submodel, importance: ImportanceProfile | None = None) -> ExecutionPlan:
    bits = submodel.uniform(submodel.request.lowest)
    distortion = importance.distortion(submodel.matrix(bits)) if importance else None
    return predict(submodel, bits, submodel.preloaded(bits), distortion=distortion)


def _allocate(submodel: Submodel, importance: ImportanceProfile) -> ExecutionPlan:
    """The plan with the allocator's fidelities.

    Valid fidelities keep T where reading never waits for room. A bounded staging buffer may make it wait: then the
    fidelities are allocated anew, for a T that is shorter by what the last ones took too long.
    """
    aimed, allocator = submodel, submodel.request.allocator
    for _ in range(_TRIES):
        bits = ALLOCATORS[allocator](aimed, importance)
        distortion = importance.distortion(submodel.matrix(bits))
        plan = predict(submodel, bits, submodel.preloaded(bits), allocator=allocator, distortion=distortion)
        if plan.feasible:
            return plan
        late = plan.predicted_latency - plan.target_latency
        if late >= aimed.request.target_latency:
            break
        shorter = aimed.request.changed(target_latency=aimed.request.target_latency - late)
        aimed = Submodel(shorter, submodel.depth, submodel.width)
        if not aimed.is_valid(aimed.uniform(aimed.request.lowest)):
            break
    return _at_lowest(submodel, importance)
