"""From fidelities to a plan: the staging buffer that they need, and the times that they predict."""

from __future__ import annotations

import numpy as np

from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.request import PlanRequest
from sti_hf.planning.staging import choose_staging
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.timeline import Timeline, simulate


def predict(
    submodel: Submodel,
    bits: np.ndarray,
    preloaded: np.ndarray,
    *,
    allocator: str | None = None,
    distortion: float | None = None,
) -> ExecutionPlan:
    """The plan for fidelities `[n, m]` of a submodel with these pieces `[n, KINDS * M]` in the preload buffer."""
    request = submodel.request
    pieces = np.zeros((request.grid.layers, preloaded.shape[1]), dtype=bool)
    pieces[list(submodel.layers)] = preloaded
    pipeline = _Pipeline(submodel, bits, preloaded, overlap=request.strategy != "load_exec")
    staging_bytes = pipeline.staging_bytes()
    return ExecutionPlan(
        strategy=request.strategy,
        allocator=allocator,
        fidelities=request.fidelities,
        target_latency=request.target_latency,
        preload_budget=request.preload_budget,
        workload=request.workload,
        layers=submodel.layers,
        bits=submodel.matrix(bits),
        preloaded_pieces=pieces.reshape(request.grid.layers, -1, request.grid.slices),
        preload_bytes=int(pipeline.preload_bytes.sum()),
        streamed_bytes=sum(pipeline.streamed_bytes),
        staging_bytes=staging_bytes,
        timeline=pipeline.run(staging_bytes),
        first_latency=pipeline.run(staging_bytes, fill_preload=True).end,
        distortion=distortion,
        submodels=request.submodels if request.strategy == "sti" else None,
        accuracy=request.submodel_accuracy.get((submodel.depth, submodel.width)),
        staging_budget=request.staging_budget,
    )


def predict_latency(request: PlanRequest, plan: ExecutionPlan) -> float:
    """Seconds of a plan's forward, on a filled preload buffer, with the workload of `request` in place of its own.

    The plan runs as it is: fidelities, preloaded pieces and staging buffer. Of the request only layouts, profile,
    workload and what that reads and computes outside the layers are asked.
    """
    submodel = Submodel(request.changed(fidelities=tuple(plan.fidelity_counts())), *plan.submodel)
    executed = list(plan.layers)
    bits = plan.bits[executed, : submodel.width]
    preloaded = plan.preloaded_pieces[executed].reshape(len(executed), -1)
    pipeline = _Pipeline(submodel, bits, preloaded, overlap=plan.strategy != "load_exec")
    return pipeline.run(plan.staging_bytes).end


class _Pipeline:
    """What every layer of a plan costs."""

    def __init__(self, submodel: Submodel, bits: np.ndarray, preloaded: np.ndarray, overlap: bool) -> None:
        self.request, self.overlap = submodel.request, overlap
        io_seconds = self.request.profile.io_seconds
        streamed_bytes, requests = submodel.pieces.reads(submodel.needed(bits) & ~preloaded)
        self.preload_bytes, preload_requests = submodel.pieces.reads(preloaded)
        self.streamed_bytes: list[int] = streamed_bytes.tolist()
        self.streaming = io_seconds(streamed_bytes, requests)
        self.filling = io_seconds(self.preload_bytes, preload_requests)
        self.decompress = submodel.decompress_seconds(bits)
        # Where all is read before anything is computed, reading delays nothing.
        delay_seconds = self.request.profile.delay_seconds
        self.compute = submodel.gemm_seconds + self.decompress + overlap * delay_seconds(streamed_bytes)
        self.filling_delay = overlap * delay_seconds(self.preload_bytes)

    def run(self, staging_bytes: int, fill_preload: bool = False) -> Timeline:
        """The predicted pipeline; `fill_preload`: with the reads that fill the preload buffer."""
        io, compute = self.streaming, self.compute
        if fill_preload:
            io, compute = io + self.filling, compute + self.filling_delay
        return simulate(
            io.tolist(),
            self.streamed_bytes,
            compute.tolist(),
            self.decompress.tolist(),
            first_io=self.request.embedding_seconds,
            before=self.request.before_seconds,
            after=self.request.after_seconds,
            staging_bytes=staging_bytes,
            overlap=self.overlap,
        )

    def staging_bytes(self) -> int:
        """Size of the staging buffer: where all is read before anything is computed, it holds everything."""
        if not self.overlap:
            return sum(self.streamed_bytes)
        return choose_staging(
            self.streamed_bytes,
            self.request.staging_budget,
            lambda size: self.run(size).end,
            self.request.target_latency,
        )
