"""From a store, a device, T and S to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sti_hf.errors import PlanError
from sti_hf.planning.baselines import BASELINES, baseline_plan
from sti_hf.planning.cost import DeviceProfile
from sti_hf.planning.importance import ImportanceProfile, default_importance
from sti_hf.planning.marginal import marginal
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.predict import predict
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel, choose_submodel, fastest_submodel
from sti_hf.planning.two_pass import two_pass
from sti_hf.shards.layout import LayerLayout

Allocator = Callable[[Submodel, ImportanceProfile], np.ndarray]
"""Fidelities, bits `[n, m]`, for a submodel that keeps T at the lowest one."""

ALLOCATORS: dict[str, Allocator] = {"marginal": marginal, "two_pass": two_pass}
STRATEGIES = ("sti", *BASELINES)

_TRIES = 8


def make_plan(
    layouts: Sequence[LayerLayout],
    profile: DeviceProfile,
    *,
    target_latency: float,
    preload_budget: int,
    seq_len: int,
    strategy: str = "sti",
    fidelity: int | None = None,
    allocator: str = "marginal",
    importance: ImportanceProfile | None = None,
    submodel_accuracy: Mapping[tuple[int, int], float] | None = None,
    row_bytes: int = 0,
    position_bytes: int = 0,
    staging_budget: int | None = None,
    extra_seconds: float = 0.0,
    fidelities: Sequence[int] = (),
) -> ExecutionPlan:
    """Plans one inference (STI, section 5).

    Strategy "sti": of the submodels that keep T at the lowest fidelity the best, by `submodel_accuracy` where that was
    measured for (n, m), else the largest; for that, fidelities by `importance` (None: `default_importance`). Where
    none keeps T: the fastest submodel at the lowest fidelity, a plan that is not `feasible`. The other strategies are
    baselines, the whole model at a uniform `fidelity`.

    Args:
        layouts: of every layer of the store, first to last.
        profile: of the device.
        target_latency: T, seconds.
        preload_budget: S, bytes.
        seq_len: tokens of the inference.
        strategy: "sti", "load_exec", "std_pipeline" or "preload".
        fidelity: bits of all shards, for a baseline.
        allocator: "marginal" or "two_pass" (the paper's).
        row_bytes: size of an embedding row that is read by token id; 0 where there are none.
        position_bytes: size of all rows that are read by position.
        staging_budget: bound of the staging buffer in bytes; None: what the plan needs.
        extra_seconds: compute after the layers that the profile does not know, such as a head streamed by rows.
        fidelities: that may be used; none given: all that the store has.

    Raises `ValueError` for a value that makes no sense, and for a fidelity that the store or the profile lacks.
    """
    request = PlanRequest(
        layouts=tuple(layouts),
        profile=profile,
        target_latency=target_latency,
        preload_budget=preload_budget,
        seq_len=seq_len,
        row_bytes=row_bytes,
        position_bytes=position_bytes,
        extra_seconds=extra_seconds,
        fidelities=tuple(fidelities),
        staging_budget=staging_budget,
    )
    if strategy not in STRATEGIES:
        raise PlanError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}.")
    if allocator not in ALLOCATORS:
        raise PlanError(f"allocator must be one of {', '.join(ALLOCATORS)}, not {allocator!r}.")
    if (fidelity is None) != (strategy == "sti"):
        raise PlanError("Give a fidelity for a baseline strategy, and none for strategy 'sti', which plans them.")
    if fidelity is not None:
        return baseline_plan(request, strategy, fidelity)
    importance = importance or default_importance(request.grid)
    submodel = choose_submodel(request, _keeps_target, submodel_accuracy)
    if submodel is None:
        return _at_lowest(fastest_submodel(request, request.lowest))
    return _allocate(submodel, allocator, importance)


def _keeps_target(submodel: Submodel) -> bool:
    """Whether T is kept at the lowest fidelity. A staging buffer without bound never stands in the way of that."""
    if submodel.request.staging_budget is None:
        return submodel.is_valid(submodel.uniform(submodel.request.lowest))
    return _at_lowest(submodel).feasible


def _at_lowest(submodel: Submodel) -> ExecutionPlan:
    bits = submodel.uniform(submodel.request.lowest)
    return predict(submodel, bits, submodel.preloaded(bits))


def _allocate(submodel: Submodel, allocator: str, importance: ImportanceProfile) -> ExecutionPlan:
    """The plan with the allocator's fidelities.

    Valid fidelities keep T where reading never waits for room. A bounded staging buffer may make it wait: then the
    fidelities are allocated anew, for a T that is shorter by what the last ones took too long.
    """
    aimed = submodel
    for _ in range(_TRIES):
        bits = ALLOCATORS[allocator](aimed, importance)
        distortion = importance.distortion(submodel.matrix(bits))
        plan = predict(submodel, bits, submodel.preloaded(bits), allocator=allocator, distortion=distortion)
        if plan.feasible:
            return plan
        late = plan.predicted_latency - plan.target_latency
        shorter = replace(aimed.request, target_latency=aimed.request.target_latency - late)
        aimed = Submodel(shorter, submodel.depth, submodel.width)
        if not aimed.is_valid(aimed.uniform(aimed.request.lowest)):
            break
    return _at_lowest(submodel)
