"""The paper's competitors (STI, section 7.1) as plans: the whole model, every shard at one fidelity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sti_hf.planning.memory import check_memory
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.predict import predict
from sti_hf.planning.request import STRATEGIES, PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.timeline import Timeline
from sti_hf.planning.workload import Workload
from sti_hf.shards.layout import LayerLayout

BASELINES = STRATEGIES[1:]


def baseline_plan(request: PlanRequest, bits: int) -> ExecutionPlan:
    """The whole model at a uniform fidelity, whether that keeps T or not.

    `load_exec` reads all of it and then computes, `std_pipeline` reads layers ahead of compute, `preload` has all of
    it in memory; none has a preload buffer of S bytes. All of them read embedding rows. Raises `PlanError` for a
    fidelity that the store lacks, or a memory budget that the plan exceeds.
    """
    uniform_request = request.changed(fidelities=(bits,), memory_budget=None)
    submodel = Submodel(uniform_request, *request.whole)
    uniform = submodel.uniform(bits)
    needed = submodel.needed(uniform)
    preloaded = needed if request.strategy == "preload" else np.zeros_like(needed)
    plan = predict(submodel, uniform, preloaded)
    check_memory(request, plan)
    return plan


def preloaded_model(layouts: Sequence[LayerLayout], *, layers: int, slices: int, bits: int) -> ExecutionPlan:
    """The first layers and slices at one fidelity, all preloaded: a plan that needs no device profile.

    It predicts nothing (all times are 0); it is what a device profile is measured with.
    """
    grid = layouts[0].grid
    matrix = np.zeros((grid.layers, grid.slices), dtype=np.int64)
    matrix[:layers, :slices] = bits
    pieces = np.stack([layout.pieces_of(row) for layout, row in zip(layouts, matrix)])
    size = sum(int(layout.read_ranges(held)[:, 1].sum()) for layout, held in zip(layouts, pieces))
    return ExecutionPlan(
        strategy="preload",
        allocator=None,
        fidelities=(bits,),
        target_latency=0.0,
        preload_budget=size,
        workload=Workload(1),
        layers=tuple(range(layers)),
        bits=matrix,
        preloaded_pieces=pieces,
        preload_bytes=size,
        streamed_bytes=0,
        staging_bytes=0,
        timeline=Timeline.unknown(layers),
        first_latency=0.0,
        distortion=None,
    )
