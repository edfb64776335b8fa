"""Fidelities where a bounded staging buffer makes reading wait for room."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from sti_hf.planning.importance import ImportanceProfile
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.predict import predict
from sti_hf.planning.submodel import Submodel

Allocator = Callable[[Submodel, ImportanceProfile], np.ndarray]
"""Fidelities, bits `[n, m]`, for a submodel that keeps T at the lowest one."""

AIMS = 5
"""Shorter T that are tried, each halving where the longest lies that is kept."""


def allocate_bounded(submodel: Submodel, importance: ImportanceProfile, allocator: Allocator) -> ExecutionPlan:
    """The plan with the least distortion that is found, of a submodel that keeps T at the lowest fidelity.

    Allocators count on reading that never waits. Where that makes their plan miss T, fidelities are allocated for
    shorter T too, and the plan of each is judged by its simulated timeline; then whatever else can be raised is.
    """
    lowest = submodel.uniform(submodel.request.lowest)
    found = [_layer_by_layer(submodel, importance, lowest)]
    plan = plan_of(submodel, allocator(submodel, importance), importance)
    found += [plan] if plan.feasible else _shorter_aims(submodel, importance, allocator)
    best = min(found, key=distortion_of)
    bits = best.bits[list(submodel.layers), : submodel.width]
    return min(best, _layer_by_layer(submodel, importance, bits), key=distortion_of)


def _shorter_aims(submodel: Submodel, importance: ImportanceProfile, allocator: Allocator) -> list[ExecutionPlan]:
    """Plans that keep T, allocated for shorter ones."""
    request = submodel.request
    low, high = submodel.latency(submodel.uniform(request.lowest)), request.target_latency
    found: list[ExecutionPlan] = []
    for _ in range(AIMS):
        middle = (low + high) / 2
        aimed = Submodel(request.changed(target_latency=middle), submodel.depth, submodel.width)
        if not aimed.is_valid(aimed.uniform(request.lowest)):
            break
        plan = plan_of(submodel, allocator(aimed, importance), importance)
        if plan.feasible:
            low, found = middle, [*found, plan]
        else:
            high = middle
    return found


def plan_of(submodel: Submodel, bits: np.ndarray, importance: ImportanceProfile) -> ExecutionPlan:
    """The plan for the fidelities `[n, m]` that the request's allocator chose."""
    distortion = importance.distortion(submodel.matrix(bits))
    allocator = submodel.request.allocator
    return predict(submodel, bits, submodel.preloaded(bits), allocator=allocator, distortion=distortion)


def at_lowest(submodel: Submodel, importance: ImportanceProfile | None = None) -> ExecutionPlan:
    """The plan with the lowest fidelity everywhere; with its distortion, given an importance profile."""
    bits = submodel.uniform(submodel.request.lowest)
    distortion = importance.distortion(submodel.matrix(bits)) if importance else None
    return predict(submodel, bits, submodel.preloaded(bits), distortion=distortion)


def distortion_of(plan: ExecutionPlan) -> float:
    """What plans of one submodel are compared by."""
    assert plan.distortion is not None
    return plan.distortion


def _layer_by_layer(submodel: Submodel, importance: ImportanceProfile, bits: np.ndarray) -> ExecutionPlan:
    """The best plan on the way from fidelities that keep T: layer by layer from the first, one fidelity after the
    other, whatever lies below is raised where T is still kept and the distortion falls."""
    best = plan_of(submodel, bits, importance)
    for lower, higher in pairwise(submodel.request.fidelities):
        for k in range(submodel.depth):
            raised = bits.copy()
            raised[k] = np.where(bits[k] == lower, higher, bits[k])
            if (raised[k] == bits[k]).all() or not submodel.is_valid(raised):
                continue
            plan = plan_of(submodel, raised, importance)
            if plan.feasible and distortion_of(plan) < distortion_of(best):
                bits, best = raised, plan
    return best
