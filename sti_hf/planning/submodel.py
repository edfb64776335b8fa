"""Compute planning: which n x m submodel runs within T (STI, section 5.3)."""

from __future__ import annotations

import numpy as np

from sti_hf.errors import PlanError
from sti_hf.forking import cached_property
from sti_hf.model.depth import kept_layers
from sti_hf.planning.request import ROUNDING, PlanRequest


def accumulated_io_budget(request: PlanRequest, compute: np.ndarray) -> np.ndarray:
    """AIB(l), seconds `[n]`: the IO time that there is for layers 0 to l (STI, section 5.2).

    `AIB(l) = slack + sum of compute of the layers before l`, slack being what T leaves after all `compute` (seconds
    `[n]`, one a layer), what comes after the layers, and the embedding rows, which are read first. That is what is
    left without the compute from layer l on. `budget_left` says whether a plan keeps T.
    """
    budget = request.target_latency - ROUNDING - request.after_seconds - request.embedding_seconds
    return budget - compute[::-1].cumsum()[::-1]


def budget_left(request: PlanRequest, compute: np.ndarray, io: np.ndarray) -> np.ndarray:
    """What the IO of layers 0 to l (`io`, seconds `[n]`, one a layer) leaves of AIB(l), seconds `[n]`.

    No layer begins before all that comes ahead of the first is computed, however early its shards are there: that
    takes as much of a budget as IO would. A plan keeps T if and only if nothing here is negative.
    """
    return accumulated_io_budget(request, compute) - np.maximum(io.cumsum(), request.before_seconds)


class Submodel:
    """The first `width` slices of `depth` layers, and what fidelities of theirs cost: bits matrices `[n, m]` here.

    Raises `PlanError` for a width that the grid does not have.
    """

    def __init__(self, request: PlanRequest, depth: int, width: int) -> None:
        if width not in request.grid.widths:
            raise PlanError(f"Submodels of this store have all {request.grid.slices} slices, not {width} of them.")
        self.request = request
        self.depth = depth
        self.width = width
        self.layers = kept_layers(request.grid.layers, depth)
        self.pieces = request.pieces.take(self.layers)

    @cached_property
    def gemm_seconds(self) -> float:
        """Compute of one layer, without decompression."""
        return self.request.gemm_seconds(self.width)

    def uniform(self, bits: int) -> np.ndarray:
        """The bits matrix with one fidelity everywhere."""
        return np.full((self.depth, self.width), bits)

    def matrix(self, bits: np.ndarray) -> np.ndarray:
        """A bits matrix over the whole grid `[N, M]`, 0 = not run."""
        matrix = np.zeros((self.request.grid.layers, self.request.grid.slices), dtype=np.int64)
        matrix[list(self.layers), : self.width] = bits
        return matrix

    def needed(self, bits: np.ndarray) -> np.ndarray:
        """bool `[n, KINDS * M]`: the pieces that these fidelities need."""
        return self.pieces.needed(self.matrix(bits)[list(self.layers)])

    def preloaded(self, bits: np.ndarray) -> np.ndarray:
        """bool `[n, KINDS * M]`: the pieces that the preload buffer holds of these fidelities."""
        return self.pieces.preloaded(self.needed(bits), self.request.preload_budget)

    @cached_property
    def largest_lowest(self) -> int:
        """Bytes of the largest layer at the lowest fidelity: what a staging buffer has room for in any case."""
        lowest, _ = self.pieces.reads(self.needed(self.uniform(self.request.lowest)))
        return int(lowest.max())

    @cached_property
    def staging_limit(self) -> int | None:
        """Bytes that a layer may stream where the staging buffer is bounded; all-lowest layers may in any case."""
        if self.request.staging_budget is None:
            return None
        return max(self.request.staging_budget, self.largest_lowest)

    def streamed(self, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bytes and requests of every layer, int64 `[n]`, without what the preload buffer holds."""
        needed = self.needed(bits)
        return self.pieces.reads(needed & ~self.pieces.preloaded(needed, self.request.preload_budget))

    def decompress_seconds(self, bits: np.ndarray) -> np.ndarray:
        """Decompression of every layer, seconds `[n]`."""
        return self.request.shard_decompress[bits].sum(axis=1)

    def budget_left(self, bits: np.ndarray) -> np.ndarray:
        """What the IO of all layers up to each leaves of its AIB, seconds `[n]`; negative where T would be missed."""
        num_bytes, requests = self.streamed(bits)
        io = self.request.profile.io_seconds(num_bytes, requests)
        compute = self.gemm_seconds + self.decompress_seconds(bits) + self.request.profile.delay_seconds(num_bytes)
        return budget_left(self.request, compute, io)

    def latency(self, bits: np.ndarray) -> float:
        """Seconds of a forward whose reading never waits for room in the staging buffer."""
        return self.request.target_latency - ROUNDING - float(self.budget_left(bits).min())

    def is_valid(self, bits: np.ndarray) -> bool:
        """Whether these fidelities keep T, and every layer a bounded staging buffer."""
        return self.fits_staging(bits) and bool(self.budget_left(bits).min() >= 0)

    def fits_staging(self, bits: np.ndarray) -> bool:
        """Whether every layer fits a bounded staging buffer."""
        return self.staging_limit is None or bool(self.streamed(bits)[0].max() <= self.staging_limit)
