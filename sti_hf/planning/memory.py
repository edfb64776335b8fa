"""A memory budget: how preload, staging and working buffer share it."""

from __future__ import annotations

from sti_hf.errors import PlanError
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel

SMALLEST_PRELOAD = 1 << 17
"""Preload buffers of so many bytes, twice, four times as many .. are tried. Since these sizes do not depend on the
budget, every split of one is a split of a larger one too, with more room for staging."""


def memory_splits(submodel: Submodel) -> list[Submodel]:
    """The submodel with every split of the memory budget that is tried; itself alone where there is no budget, none
    where not even its lowest fidelity fits.

    Each has a preload and a staging budget that fit together, and no memory budget any more.
    """
    request = submodel.request
    if request.memory_budget is None:
        return [submodel]
    room = request.memory_budget - request.working(submodel.width)
    most = min(request.preload_budget, room - submodel.largest_lowest)
    if most < 0:
        return []
    sizes = {0, most}
    size = SMALLEST_PRELOAD
    while size < most:
        sizes.add(size)
        size *= 2
    return [_with_preload(submodel, preload, room) for preload in sorted(sizes, reverse=True)]


def _with_preload(submodel: Submodel, preload: int, room: int) -> Submodel:
    budget = submodel.request.staging_budget
    staging = room - preload if budget is None else min(budget, room - preload)
    split = submodel.request.changed(preload_budget=preload, staging_budget=staging, memory_budget=None)
    return Submodel(split, submodel.depth, submodel.width)


def least_memory(submodel: Submodel) -> int:
    """Bytes of the smallest memory budget with which a submodel runs: at the lowest fidelity, nothing preloaded."""
    return submodel.request.working(submodel.width) + submodel.largest_lowest


def memory_too_small(request: PlanRequest, needed: int) -> PlanError:
    """The error for a memory budget in which nothing runs that may; `needed` bytes are the least that will do."""
    return PlanError(
        f"A memory_budget of {request.memory_budget} bytes is too small: preload, staging and working buffer need "
        f"{needed} bytes at least."
    )


def check_memory(request: PlanRequest, plan: ExecutionPlan) -> None:
    """Raises `PlanError` where a plan, of a strategy that leaves no choice, takes more than the memory budget."""
    needed = plan.preload_bytes + plan.staging_bytes + request.working(plan.submodel[1])
    if request.memory_budget is not None and needed > request.memory_budget:
        raise memory_too_small(request, needed)
