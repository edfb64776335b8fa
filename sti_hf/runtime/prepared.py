"""A plan made ready to run: memory and reads completely, before one assignment puts it in the place of the last."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sti_hf.errors import PlanError
from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.blocks import Block, matrix_blocks, working_weights
from sti_hf.runtime.buffers import PRELOAD, STAGING, allocate
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.reads.placement import LayerPlacement, Placement, matrix_tables
from sti_hf.shards.store import ShardStore


class PreparedStep:
    """One executed layer of a plan: which slices it runs, and the blocks of its matrices.

    `heads` are the checkpoint's indices of the heads in these slices; None where slices are not droppable: they are no
    heads, all of them run, and the layer is as it was made.
    """

    def __init__(
        self,
        store: ShardStore,
        placed: LayerPlacement,
        bits: np.ndarray,
        compressed: list[np.ndarray],
        working: Tensor,
    ) -> None:
        self.layer = placed.layer
        self.slices = int((bits > 0).sum())
        self.heads = store.stack.slice_order[placed.layer][: self.slices] if store.grid.droppable else None
        self._store, self._placed, self._planned = store, placed, bits
        self._bits: np.ndarray | None = bits
        self._tables = matrix_tables(store, placed, bits)
        self.blocks: dict[str, list[Block]] = {
            name: matrix_blocks(store, compressed, working, name, table) for name, table in self._tables.items()
        }

    def run_at(self, bits: np.ndarray | None) -> np.ndarray:
        """Sets the fidelities at which the step runs, int64 `[M]`; None: as planned. Returns them."""
        wanted = self._planned if bits is None else bits
        if self._bits is None or (wanted != self._bits).any():
            self._bits = None  # whatever interrupts this, the tables are written anew before they are used
            for name, table in matrix_tables(self._store, self._placed, wanted).items():
                self._tables[name][:] = table  # the blocks have views of it
            self._bits = wanted
        return wanted


class PreparedPlan:
    """A plan with all that running it takes: memory, the places of its pieces, and what its layers multiply by.

    `held[step]` bool `[KINDS, M]` are the pieces that the preload buffer has: only such as were read and checked.

    Args:
        store, plan, path: what to run, and how to compute it.
        wanted, staging_budget: as `Placement` takes them.
        before: what was run until now, and reads nothing any more: what its preload buffer holds of the same pieces
            is copied, and its working buffer used, if that is large enough. It is left as it is.

    Raises `PlanError` where the plan leaves out slices that are not droppable.
    """

    def __init__(
        self,
        store: ShardStore,
        plan: ExecutionPlan,
        path: ComputePath,
        *,
        wanted: np.ndarray | None = None,
        staging_budget: int | None = None,
        before: PreparedPlan | None = None,
    ) -> None:
        if not (store.grid.droppable or plan.bits[list(plan.layers)].all()):
            raise PlanError(
                "This plan leaves out slices, and this store's layers can only run whole: plan anew for it."
            )
        self.store, self.plan, self.path = store, plan, path
        self.threads = torch.get_num_threads()
        self.placement = Placement(store, plan, wanted, staging_budget)
        self.compressed = [allocate(self.placement.preload_bytes), allocate(self.placement.staging_bytes)]
        self.held = [np.zeros_like(placed.preloaded) for placed in self.placement.layers]
        self._working = self._working_buffer(before)
        self._steps: list[PreparedStep | None] = [None] * len(self.placement.layers)
        if before is not None:
            self._take_over(before)

    def step(self, index: int) -> PreparedStep:
        """A step, prepared when it is first asked for: reading can begin before."""
        prepared = self._steps[index]
        if prepared is None:
            placed = self.placement.layers[index]
            bits = self.plan.bits[placed.layer]
            prepared = PreparedStep(self.store, placed, bits, self.compressed, self._working)
            self._steps[index] = prepared
        return prepared

    def missing(self) -> list[np.ndarray]:
        """Of every step the pieces, bool `[KINDS, M]`, that the preload buffer still lacks."""
        return [placed.preloaded & ~held for placed, held in zip(self.placement.layers, self.held, strict=True)]

    def sizes(self) -> dict[str, int]:
        """Bytes of each buffer."""
        return {
            "preload": self.compressed[PRELOAD].nbytes,
            "staging": self.compressed[STAGING].nbytes,
            "working": self._working.nbytes,
        }

    def give_back(self) -> None:
        """Lets go of all memory: nothing can run any more."""
        self.compressed, self._steps, self._working = [allocate(0), allocate(0)], [], torch.empty(0)

    def _working_buffer(self, before: PreparedPlan | None) -> Tensor:
        dtype = self.path.torch_dtype
        weights = working_weights(self.store.grid, self.plan.submodel[1], dtype)
        last = None if before is None else before._working
        if last is not None and last.dtype == dtype and last.numel() >= weights:
            return last
        return torch.empty(weights, dtype=dtype)

    def _take_over(self, before: PreparedPlan) -> None:
        for step, old_step in self._same_layers(before):
            kept = before.held[old_step] & self.placement.layers[step].preloaded
            self._copy(before, step, old_step, kept)
            self.held[step] = kept

    def _same_layers(self, before: PreparedPlan) -> Iterator[tuple[int, int]]:
        old_steps = {placed.layer: old_step for old_step, placed in enumerate(before.placement.layers)}
        for step, placed in enumerate(self.placement.layers):
            if placed.layer in old_steps:
                yield step, old_steps[placed.layer]

    def _copy(self, before: PreparedPlan, step: int, old_step: int, kept: np.ndarray) -> None:
        if not kept.any():
            return
        new, old = self.placement.layers[step], before.placement.layers[old_step]
        layout = self.store.layouts[new.layer]
        offsets, sizes = layout.piece_offset[kept], layout.piece_bytes[kept]
        sources, targets = old.preload_image.place(offsets), new.preload_image.place(offsets)
        source, target = before.compressed[PRELOAD], self.compressed[PRELOAD]
        for start, place, size in zip(sources, targets, sizes, strict=True):
            target[place : place + size] = source[start : start + size]


def check_plan(plan: ExecutionPlan, store: ShardStore) -> None:
    """Raises `PlanError` for a plan whose shards, or whose pieces, are not those of a store."""
    fits = plan.bits.shape == (store.grid.layers, store.grid.slices)
    if fits:
        placement = Placement(store, plan)
        streamed = sum(placed.staging_image.bytes for placed in placement.layers)
        fits = (placement.preload_bytes, streamed) == (plan.preload_bytes, plan.streamed_bytes)
    if not fits:
        raise PlanError(f"This plan is not for the layers of the store {store.path}: make one for it, or use replan.")
