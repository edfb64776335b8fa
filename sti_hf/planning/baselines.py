"""The paper's competitors (STI, section 7.1) as plans: the whole model, every shard at one fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sti_hf.errors import PlanError
from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.predict import predict
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.timeline import Timeline
from sti_hf.shards.layout import LayerLayout

BASELINES = ("load_exec", "std_pipeline", "preload")


def baseline_plan(request: PlanRequest, strategy: str, bits: int) -> ExecutionPlan:
    """The whole model at a uniform fidelity, whether that keeps T or not.

    `load_exec` reads all of it and then computes, `std_pipeline` reads layers ahead of compute, `preload` has all of
    it in memory; none has a preload buffer of S bytes. All of them read embedding rows. Raises `ValueError` for a
    fidelity that the store lacks, or an unknown strategy.
    """
    if strategy not in BASELINES:
        raise PlanError(f"A baseline is one of {', '.join(BASELINES)}, not {strategy!r}.")
    submodel = Submodel(replace(request, fidelities=(bits,)), request.grid.layers, request.grid.slices)
    uniform = submodel.uniform(bits)
    needed = submodel.needed(uniform)
    preloaded = needed if strategy == "preload" else np.zeros_like(needed)
    return predict(submodel, uniform, preloaded, strategy=strategy)


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
        seq_len=1,
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
