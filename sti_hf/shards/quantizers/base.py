"""What a quantizer makes of a layer, and what a quantizer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sti_hf.model.grid import Grid
from sti_hf.shards.layout import PLANES


@dataclass(frozen=True)
class Outliers:
    """Weights of one slice that are kept exactly, at every fidelity.

    `counts` int64 `[matrices]`; `positions` int64 (row * row_length + column inside their matrix, matrix after
    matrix); `values` float32.
    """

    counts: Tensor
    positions: Tensor
    values: Tensor


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer's shards as nested codes.

    - `codes` uint8 `[M, slice_rows, row_length]`, 0 .. 63: the code at fidelity k is the top k of the 6 bits.
    - `codebooks[k]` float32 `[M, matrices, 2**k]`, k = 2 .. 6: the value of every code.
    - `scales[k]` float16 `[M, slice_rows]`, or None: a weight is its code's value times its row's scale.
    - `outliers`: one for every slice, or None.
    """

    grid: Grid
    codes: Tensor
    codebooks: dict[int, Tensor]
    scales: dict[int, Tensor] | None = None
    outliers: tuple[Outliers, ...] | None = None

    def dequantize(self, bits: int) -> Tensor:
        """The weights at fidelity `bits` (2 .. 6): float32 `[M, slice_rows, row_length]`."""
        weights = torch.empty(self.codes.shape, dtype=torch.float32)
        codes = (self.codes >> (PLANES - bits)).long()
        for index, (name, count) in enumerate(self.grid.rows):
            first = self.grid.first_row[name]
            rows = codes[:, first : first + count]
            values = self.codebooks[bits][:, index].gather(1, rows.flatten(1))
            weights[:, first : first + count] = values.view(rows.shape)
        if self.scales is not None:
            weights *= self.scales[bits].float()[..., None]
        if self.outliers is not None:
            for shard, outliers in zip(weights, self.outliers, strict=True):
                flat = shard.view(-1)
                starts = torch.tensor([self.grid.first_row[name] for name in self.grid.matrices])
                offsets = (starts * self.grid.row_length).repeat_interleave(outliers.counts)
                flat[offsets + outliers.positions] = outliers.values
        return weights


class Quantizer(Protocol):
    """Turns the shards of a layer into nested codes.

    Nesting is what the store relies on: one record of 6 bit-planes holds every fidelity from 2 to 6 bits.
    """

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """Quantizes layer `layer`, whose shards are float32 `[M, slice_rows, row_length]` in slice order."""
        ...


class ModelQuantizer(Quantizer, Protocol):
    """One for all shards of a model: those of its layers and, by another, those of its vocabulary."""

    @property
    def vocabulary(self) -> Quantizer:
        """That of the strips of the vocabulary. It has row scales where this one has."""
        ...


def codebooks_of_means(sums: Tensor, counts: Tensor) -> dict[int, Tensor]:
    """Codebooks of every fidelity whose values are the means of the weights that share a code.

    `sums` and `counts` float64 `[..., 64]`: sum and number (or total weight) of the weights of each 6-bit code. A code
    that no weight has takes the mean of its nearest ancestor that has one.
    """
    shape = sums.shape[:-1]
    codebooks: dict[int, Tensor] = {}
    parent = (sums.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp_min(1e-300)).expand(*shape, 1)
    for bits in range(1, PLANES + 1):
        group_sums = sums.view(*shape, 2**bits, -1).sum(-1)
        group_counts = counts.view(*shape, 2**bits, -1).sum(-1)
        inherited = parent.repeat_interleave(2, dim=-1)
        parent = torch.where(group_counts > 0, group_sums / group_counts.clamp_min(1e-300), inherited)
        if bits >= 2:
            codebooks[bits] = parent.float()
    return codebooks


def collect_outliers(shard: Tensor, is_outlier: Tensor, grid: Grid) -> Outliers:
    """The weights of a shard `[slice_rows, row_length]` that are marked, bool of the same shape."""
    counts, positions, values = [], [], []
    for name, rows in grid.rows:
        block = slice(grid.first_row[name], grid.first_row[name] + rows)
        found = is_outlier[block].flatten().nonzero().flatten()
        counts.append(len(found))
        positions.append(found)
        values.append(shard[block].flatten()[found])
    return Outliers(torch.tensor(counts), torch.cat(positions), torch.cat(values).float())
