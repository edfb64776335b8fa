"""Which weights a slice keeps exactly: few, but they carry most of some outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OUTLIER_SHARE = 0.001
"""Share of a matrix that is kept exactly for what its inputs make of it, besides weights that are large in their row.
Each takes 8 bytes, where a weight at 2 bits takes a quarter."""


def find_outliers(weights: Tensor, moments: Tensor) -> Tensor:
    """Bool, as `weights` `[groups, outputs, inputs]`: the weights that contribute most to the squares of the outputs.

    `moments` `[groups or 1, inputs, inputs]`: second moments of the inputs.
    """
    contribution = weights.square() * moments.diagonal(dim1=-2, dim2=-1)[:, None]
    count = round(OUTLIER_SHARE * contribution[0].numel())
    if not count:
        return torch.zeros(weights.shape, dtype=torch.bool)
    least = contribution.flatten(1).topk(count, dim=1).values[:, -1]
    return (contribution >= least[:, None, None]) & (contribution > 0)


@dataclass(frozen=True)
class SparseWeights:
    """Weights of a linear layer that are not zero: `rows` and `columns` int64 `[k]`, `values` float32 `[k]`."""

    rows: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> SparseWeights:
        """Those of `weight` `[outputs, inputs]`."""
        rows, columns = weight.nonzero(as_tuple=True)
        return cls(rows, columns, weight[rows, columns])

    def add_product(self, output: Tensor, x: Tensor) -> Tensor:
        """`output` `[..., outputs]` plus these weights times `x` `[..., inputs]`."""
        inputs = x.flatten(0, -2).t().index_select(0, self.columns)
        rows = self.rows[:, None].expand_as(inputs)  # index_add would keep all products for the backward pass
        added = output.flatten(0, -2).t().scatter_add(0, rows, inputs * self.values[:, None])
        return added.t().contiguous().view(output.shape)
