"""Nested codes chosen with error feedback, for all fidelities at once.

Error feedback (GPTQ, Frantar et al., 2022) rounds the weights of a row one after another, and moves what a rounding
does to the row's outputs into the weights still to come. Here every weight has one code, of which each fidelity reads
a prefix. So each fidelity with feedback keeps its own moved weights, and the code is the one of least summed error
over all fidelities: a code that serves 2 bits alone would leave 4 bits no value near the weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sti_hf.shards.layout import PLANES

DAMPING = 0.01
"""Added to the diagonal of second moments, in units of its mean: inputs that never vary stay harmless."""

BLOCK_COLUMNS = 64
"""Columns between which errors are fed back one by one; those after the block get them in one product."""


def feedback_codes(
    weights: Tensor,
    scales: Tensor,
    codebooks: Mapping[int, Tensor],
    moments: Mapping[int, Tensor],
    error_weights: Mapping[int, float],
    is_outlier: Tensor,
) -> Tensor:
    """Codes uint8 `[groups, rows, columns]` of weights whose outputs are sums over columns.

    Args:
        weights: float32 `[groups, rows, columns]`; errors are fed back within a row.
        scales: float32, broadcastable to `weights`.
        codebooks: for each fidelity float32 `[groups, 2**bits]`.
        moments: second moments of the inputs, float32 `[groups or 1, columns, columns]`, for each fidelity that takes
            part in the feedback; the others are held against the weights as they are.
        error_weights: what a fidelity's squared error counts for.
        is_outlier: bool, as `weights`: those that are kept exactly, whatever their code.
    """
    columns = weights.shape[-1]
    order = next(iter(moments.values())).diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True)
    factor_of = {id(moment): _feedback_factor(moment[:, order][:, :, order]) for moment in moments.values()}
    factors = {bits: factor_of[id(moment)] for bits, moment in moments.items()}
    original, is_outlier = weights[..., order], is_outlier[..., order]
    scales = scales.expand_as(weights)[..., order].contiguous()
    moved = {bits: original.clone() for bits in factors}
    codes = torch.empty(original.shape, dtype=torch.uint8)
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(columns, start + BLOCK_COLUMNS)
        errors = {bits: torch.empty(*original.shape[:2], end - start) for bits in factors}
        for column in range(start, end):
            scale = scales[..., column]
            targets = {bits: moved.get(bits, original)[..., column] / scale for bits in codebooks}
            code = best_codes(targets, codebooks, error_weights)
            codes[..., column] = code
            for bits, factor in factors.items():
                coded = codebooks[bits].gather(1, code >> (PLANES - bits)) * scale
                value = torch.where(is_outlier[..., column], original[..., column], coded)
                row = factor[:, column]
                error = (moved[bits][..., column] - value) / row[:, column, None]
                errors[bits][..., column - start] = error
                moved[bits][..., column + 1 : end] -= error[..., None] * row[:, None, column + 1 : end]
        for bits, factor in factors.items():
            moved[bits][..., end:] -= errors[bits] @ factor[:, start:end, end:]
    return codes[..., order.argsort()]


def best_codes(
    targets: Mapping[int, Tensor], codebooks: Mapping[int, Tensor], error_weights: Mapping[int, float]
) -> Tensor:
    """Codes int64 `[groups, rows]`, 0 .. 63, of least squared error summed over fidelities 2 .. 6.

    `targets[bits]` float32 `[groups, rows]`: what each fidelity should come to, in units of the codebook.
    """
    cost: Tensor | None = None
    for bits in range(2, PLANES + 1):
        error = (targets[bits][..., None] - codebooks[bits][:, None]).square_().mul_(error_weights[bits])
        cost = error if cost is None else error.add_(cost.repeat_interleave(2, dim=-1))
    assert cost is not None
    return cost.argmin(-1)


def _feedback_factor(moment: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped second moments, float32 `[groups, columns, columns]`."""
    moment = moment.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, 1.0)
    damped = moment + torch.diag_embed((DAMPING * mean)[:, None].expand(moment.shape[:2]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
