"""The shards of a model that is calibrated: its full ones, and its layers with the values of a fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sti_hf.model.architecture import Matrix
from sti_hf.model.grid import Grid
from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.layout import FULL
from sti_hf.shards.partition import join_layer, split_layer, write_slice
from sti_hf.shards.quantizers.calibrated.fitted_files import digest_of, load_fitted
from sti_hf.shards.quantizers.calibrated.nested_fit import FittedLayer
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights
from sti_hf.shards.quantizers.calibrated.scratch import Scratch


class CalibratedShards:
    """The shards of `linears`, the modules of every layer by matrix, with what was fitted to them in `scratch`."""

    def __init__(
        self, scratch: Scratch, grid: Grid, matrices: Sequence[Matrix], linears: Sequence[Mapping[str, nn.Linear]]
    ) -> None:
        self._scratch, self._grid, self._matrices, self._linears = scratch, grid, matrices, linears

    def keep(self) -> list[dict[bytes, int]]:
        """Writes the full shards of every layer into the scratch folder; gives the index of each by its digest."""
        slice_indices = []
        for layer, linears in enumerate(self._linears):
            weights = {name: linear.weight.detach() for name, linear in linears.items()}
            shards = split_layer(weights, self._matrices, self._grid, range(self._grid.slices))
            for weight in weights.values():
                page_out(weight)
            slice_indices.append({digest_of(shard): index for index, shard in enumerate(shards)})
            self._scratch.save(f"full.{layer}", {"shards": shards})
            del shards
            return_freed_memory()
        return slice_indices

    def outliers(self) -> list[SparseWeights]:
        """Those of every matrix of the first layer, then of the next."""
        outliers = []
        for layer in range(self._grid.layers):
            kept = self.full(layer) * load_fitted(self._scratch, layer).is_outlier
            weights = join_layer(kept, self._matrices, self._grid)
            outliers += [SparseWeights.of(weights[matrix.name]) for matrix in self._matrices]
            del kept, weights
            return_freed_memory()
        return outliers

    def set_fidelity(self, layer: int, fitted: FittedLayer, bits: int) -> None:
        """Give a layer the values of all its shards at fidelity `bits`."""
        for index, shard in enumerate(self.full(layer)):
            values = fitted.codebook_values(index, bits, self._grid) * fitted.scales[bits][index][:, None]
            values += shard * fitted.is_outlier[index]
            self._set_slice(layer, index, values)

    @torch.no_grad()
    def set_codebook_values(self, fidelities: Tensor) -> None:
        """Give every layer the codebook values, not scaled, of its shards at `fidelities` int64 `[N, M]`."""
        for layer, chosen in enumerate(fidelities.tolist()):
            fitted, shards = load_fitted(self._scratch, layer), self.full(layer)
            for index, bits in enumerate(chosen):
                if bits == FULL:
                    values = shards[index] * ~fitted.is_outlier[index]
                else:
                    values = fitted.codebook_values(index, bits, self._grid)
                self._set_slice(layer, index, values)

    def full(self, layer: int) -> Tensor:
        """Float32 `[M, slice_rows, row_length]`, mapped: in memory where they are read."""
        return self._scratch.load(f"full.{layer}")["shards"]

    def _set_slice(self, layer: int, index: int, values: Tensor) -> None:
        weights = {name: linear.weight for name, linear in self._linears[layer].items()}
        write_slice(weights, index, values, self._matrices, self._grid)
