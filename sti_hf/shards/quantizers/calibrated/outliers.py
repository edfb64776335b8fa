"""Which weights a slice keeps exactly: few, but they carry most of some outputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

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
    """Weights of a linear layer that are not zero: `matrix` `[outputs, inputs]` and its transpose, both sparse CSR."""

    matrix: Tensor
    transposed: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> SparseWeights:
        """Those of `weight` `[outputs, inputs]`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return cls(weight.to_sparse_csr(), weight.t().to_sparse_csr())

    def add_product(self, output: Tensor, x: Tensor) -> Tensor:
        """`output` `[..., outputs]` plus these weights times `x` `[..., inputs]`."""
        added: Tensor = _AddProduct.apply(output.flatten(0, -2), x.flatten(0, -2), self)
        return added.view(output.shape)


class _AddProduct(torch.autograd.Function):
    """Keeps nothing for the backward pass: the weights take no gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weights: SparseWeights) -> Tensor:
        ctx.weights = weights
        return torch.addmm(output.t(), weights.matrix, x.t()).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, (ctx.weights.transposed @ gradient.t()).t(), None
