"""From a store, a device, T and S to a plan."""

from __future__ import annotations

from sti_hf.planning.baselines import baseline_plan
from sti_hf.planning.bounded_staging import Allocator, allocate_bounded, at_lowest, distortion_of, plan_of
from sti_hf.planning.full import without_wasted_full
from sti_hf.planning.importance import ImportanceProfile, default_importance
from sti_hf.planning.marginal import marginal
from sti_hf.planning.memory import memory_splits
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.submodel_choice import choose_submodel, last_resort
from sti_hf.planning.two_pass import better_two_pass, two_pass

ALLOCATORS: dict[str, Allocator] = {"marginal": marginal, "two_pass": two_pass}
"""As their authors describe them."""

_PLANNED_WITH: dict[str, Allocator] = {"marginal": marginal, "two_pass": better_two_pass}


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
        lowest = [at_lowest(split) for split in memory_splits(last_resort(request))]
        return min(lowest, key=lambda plan: plan.predicted_latency)
    splits = memory_splits(without_wasted_full(submodel, importance))
    plans = [_allocated(split, importance) for split in splits if _keeps_target(split)]
    return min(plans, key=distortion_of)


def _keeps_target(submodel: Submodel) -> bool:
    """Whether T is kept at the lowest fidelity. A staging buffer without bound never stands in the way of that."""
    if submodel.request.staging_budget is None:
        return submodel.is_valid(submodel.uniform(submodel.request.lowest))
    return at_lowest(submodel).feasible


def _allocated(submodel: Submodel, importance: ImportanceProfile) -> ExecutionPlan:
    """The plan with the allocator's fidelities: valid ones keep T, unless reading waits for room."""
    allocator = _PLANNED_WITH[submodel.request.allocator]
    if submodel.request.staging_budget is not None:
        return allocate_bounded(submodel, importance, allocator)
    return plan_of(submodel, allocator(submodel, importance), importance)
