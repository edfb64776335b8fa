"""A stock Transformers model that computes what a plan computes: for profiling and evaluation, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sti_hf.model import Matrix, get_architecture
from sti_hf.model.fused import split_fused
from sti_hf.shards.layout import FULL
from sti_hf.shards.partition import inverse_order, join_layer
from sti_hf.shards.reading import read_full_layer, read_quantized_layer
from sti_hf.shards.store import ShardStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlanWeights:
    """Gives the layers of a model the weights of any fidelities that its store has.

    Args:
        model: the checkpoint that the store was made from, in float32. Its linear layers are overwritten.
        store: the layers' codes are read from it once, and stay in memory at a byte a weight.
    """

    def __init__(self, model: PreTrainedModel, store: ShardStore) -> None:
        self.store = store
        self.architecture = get_architecture(model.config)
        split_fused(model, self.architecture)
        self._linears = self.architecture.linears(model)
        self._quantized = [read_quantized_layer(store, layer) for layer in range(store.grid.layers)]
        self._bits = np.full((store.grid.layers, store.grid.slices), -1)
        self._fraction = 1.0

    def linears(self) -> Iterator[tuple[int, Matrix, nn.Linear]]:
        """All linear layers whose weights are set: layer, matrix, module."""
        for layer, modules in enumerate(self._linears):
            for matrix in self.architecture.matrices:
                yield layer, matrix, modules[matrix.name]

    def shards(self, layer: int, bits: int) -> Tensor:
        """All shards of a layer at one fidelity: float32 `[M, slice_rows, row_length]`, slices as stored."""
        if bits == FULL:
            return read_full_layer(self.store, layer).float()
        return self._quantized[layer].dequantize(bits)

    def weights(self, layer: int, shards: Tensor) -> dict[str, Tensor]:
        """Shards as `shards` gives them, as weights of the model's linear layers by matrix, heads in its order."""
        order = inverse_order(self.store.stack.slice_order[layer])
        return join_layer(shards, self.architecture.matrices, self.store.grid, order)

    @torch.no_grad()
    def set(self, bits: np.ndarray, fraction: float = 1.0) -> None:
        """The model computes with fidelities `bits` int `[N, M]`, slices as stored. A shard of 0 bits adds nothing to
        its layer. With a `fraction` below 1 the weights are only so far on the way from full to these. Only layers
        that change are touched.
        """
        changed = (bits != self._bits).any(axis=1) | (fraction != self._fraction)
        for layer in np.flatnonzero(changed).tolist():
            shards = torch.zeros(self._quantized[layer].codes.shape)
            for fidelity in np.unique(bits[layer][bits[layer] > 0]).tolist():
                chosen = torch.from_numpy(bits[layer] == fidelity)
                shards[chosen] = self.shards(layer, fidelity)[chosen]
            if fraction != 1:
                shards = torch.lerp(self.shards(layer, FULL), shards, fraction)
            for name, weight in self.weights(layer, shards).items():
                self._linears[layer][name].weight.copy_(weight)
            self._bits[layer] = bits[layer]
        self._fraction = fraction
