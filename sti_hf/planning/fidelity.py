"""IO planning: which fidelities the accumulated IO budget admits (STI, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sti_hf.planning.importance import Unit
from sti_hf.planning.preload import PlannedReads
from sti_hf.planning.submodel import Submodel, budget_left
from sti_hf.shards.layout import BLOCK, FIDELITIES, kinds_of

_KINDS = {bits: frozenset(kinds_of(bits)) for bits in FIDELITIES}
_GAINED = {(a, b): sorted(_KINDS[b] - _KINDS[a]) for a in FIDELITIES for b in FIDELITIES}


class Fidelities:
    """The fidelities of a submodel, with what they cost, kept exact as units change: `Submodel.is_valid`, at once.

    They are *valid* when for every layer the IO of all layers up to it, embedding rows first, fits its AIB: then the
    pipeline ends within T. Pieces in the preload buffer cost no IO. Which pieces those are follows from the fidelities
    (from the first layer up, in reading order, until one does not fit), so that raising one shard may push pieces of
    later layers out. Every change is priced with the preload buffer that the plan would then have.

    Args:
        submodel: whose fidelities these are.
        bits: `[n, m]`, the fidelities to start from.
    """

    def __init__(self, submodel: Submodel, bits: np.ndarray) -> None:
        request = submodel.request
        self.request = request
        self.bits: list[list[int]] = bits.tolist()
        self._position = {layer: k for k, layer in enumerate(submodel.layers)}
        self._slices = request.grid.slices
        self._decompress = request.shard_decompress.tolist()
        self._compute = submodel.gemm_seconds + submodel.decompress_seconds(bits)  # without what reading delays
        self._reads = PlannedReads(submodel.pieces, submodel.needed(bits), request.preload_budget)
        reads = [self._read_seconds(k) for k in range(submodel.depth)]
        self._io, self._delay = (np.array(seconds) for seconds in zip(*reads))
        self._staging_limit = submodel.staging_limit
        # Seconds that every AIB is known to leave over. Much cheaper to keep than to find.
        self._reserve = -np.inf
        self._last_change: tuple[int, Sequence[int], list[int], float]

    def row(self, layer: int) -> list[int]:
        """The fidelities of a layer's slices, bits `[m]`."""
        return self.bits[self._position[layer]]

    @property
    def valid(self) -> bool:
        """Whether the IO of all layers up to each fits its AIB, and every layer a bounded staging buffer."""
        limit = self._staging_limit
        if limit is not None and max(reads.blocks for reads in self._reads.streamed) * BLOCK > limit:
            return False
        if self._reserve < 0:
            self._reserve = float(budget_left(self.request, self._compute + self._delay, self._io).min())
        return self._reserve >= 0

    def change(self, unit: Unit, bits: int) -> float:
        """Sets a unit's fidelity, valid or not. Returns the seconds of IO and compute that this adds in all."""
        layer, slices = unit
        return self._set(layer, slices, [bits] * len(slices))

    def undo(self) -> None:
        """Takes the last change back."""
        layer, slices, bits, reserve = self._last_change
        self._set(layer, slices, bits)
        self._reserve = reserve

    def _set(self, layer: int, slices: Sequence[int], fidelities: list[int]) -> float:
        k = self._position[layer]
        row, width, reads = self.bits[k], self._slices, self._reads
        self._last_change = (layer, slices, [row[i] for i in slices], self._reserve)
        compute = 0.0
        for i, new in zip(slices, fidelities):
            old, row[i] = row[i], new
            for kind in _GAINED[new, old]:
                reads.remove(k, kind * width + i)
            for kind in _GAINED[old, new]:
                reads.add(k, kind * width + i)
            compute += self._decompress[new] - self._decompress[old]
        self._compute[k] += compute
        total, worst = compute, max(compute, 0.0)
        for k in reads.settle():
            io, delay = self._read_seconds(k)
            for seconds, now in ((self._io, io), (self._delay, delay)):  # they count in different AIBs
                growth = now - seconds.item(k)
                seconds[k] = now
                total += growth
                worst += max(growth, 0.0)
        self._reserve -= worst
        return total

    def _read_seconds(self, k: int) -> tuple[float, float]:
        """What a layer's reads take, and by how much they delay compute."""
        reads, profile = self._reads.streamed[k], self.request.profile
        return profile.io_seconds(reads.blocks * BLOCK, reads.requests), profile.delay_seconds(reads.blocks * BLOCK)
