"""Codebooks and row scales of least squared error in the outputs, for codes that are given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CODEBOOK_RIDGE = 1e-3
SCALE_RIDGE = 1e-2
"""Pull towards the present values, in units of the diagonal: values that the inputs say nothing about stay."""

VALUES_FITTED = 512
"""A codebook is fitted to so many of a matrix's outputs that their number times its values is about this: more only
take time."""

ROWS_FITTED = 128
GRADIENT_STEPS = 6
"""Outputs that `refine_codebook` fits a codebook to, and its steps."""

LARGEST_CHANGE = 3.0
"""A row's scale changes at most by this factor, else it is left alone."""


def look_up(codebook: Tensor, codes: Tensor) -> Tensor:
    """Values `[groups, ...]` of `codes` (of any integer type) in `codebook` `[groups, values]`."""
    return codebook.gather(1, codes.flatten(1).long()).view(codes.shape)


def fit_codebook(weights: Tensor, codes: Tensor, scales: Tensor, codebook: Tensor, moments: Tensor) -> Tensor:
    """Codebook `[groups, values]` of least squared error in the outputs.

    `weights` and `codes` `[groups, outputs, inputs]`; `scales` broadcastable to them; `moments` `[groups or 1, inputs,
    inputs]`: second moments of the inputs.
    """
    values = codebook.shape[1]
    some = slice(None, None, max(1, weights.shape[1] * values // VALUES_FITTED))
    weights, codes, scales = weights[:, some], codes[:, some], scales.expand_as(weights)[:, some]
    fitted = torch.empty_like(codebook)
    for group in range(len(weights)):
        moment = moments[group if len(moments) > 1 else 0]
        # An output is linear in the codebook: design[r, c, v] is input c's part in output r times value v.
        design = F.one_hot(codes[group].long(), values).float()
        design *= scales[group, ..., None]
        weighted = torch.matmul(moment, design)
        normal = design.flatten(0, 1).t() @ weighted.flatten(0, 1)
        right = torch.einsum("rcv,rc->v", weighted, weights[group])
        fitted[group] = _solve(normal[None], right[None], codebook[group][None], CODEBOOK_RIDGE)[0]
    return fitted


def refine_codebook(weights: Tensor, codes: Tensor, scales: Tensor, codebook: Tensor, moments: Tensor) -> Tensor:
    """As `fit_codebook`, by conjugate gradients from the present codebook on: many more outputs in the same time.

    A code that few weights have is then fitted to those of many outputs.
    """
    some = slice(None, None, max(1, weights.shape[1] // ROWS_FITTED))
    scales = scales.expand_as(weights)[:, some]
    weights, codes = weights[:, some], codes[:, some].flatten(1).long()

    def summed(terms: Tensor) -> Tensor:
        return torch.zeros_like(codebook).scatter_add_(1, codes, (terms * scales).flatten(1))

    def spread(values: Tensor) -> Tensor:
        return values.gather(1, codes).view(weights.shape) * scales

    diagonal = summed(scales * moments.diagonal(dim1=-2, dim2=-1)[:, None])
    diagonal += 1e-9 * diagonal.mean(1, keepdim=True) + 1e-30
    fitted = codebook.clone()
    residual = summed((weights - spread(codebook)) @ moments)
    direction = torch.zeros_like(codebook)
    before = torch.ones(len(codebook), 1)
    for step in range(GRADIENT_STEPS):
        slope = residual / diagonal
        product = (residual * slope).sum(1, keepdim=True)
        direction = slope + (product / before if step else 0.0) * direction
        curved = summed(spread(direction) @ moments) + CODEBOOK_RIDGE * diagonal * direction
        length = product / (direction * curved).sum(1, keepdim=True).clamp_min(1e-30)
        fitted += length * direction
        residual -= length * curved
        before = product.clamp_min(1e-30)
    return fitted


def fit_scales_of_outputs(weights: Tensor, values: Tensor, scales: Tensor, moments: Tensor) -> Tensor:
    """Scales `[groups, outputs]` of least squared error in the outputs, one scale an output.

    `weights` and `values` (codebook values of the codes) `[groups, outputs, inputs]`, `moments` as in `fit_codebook`.
    """
    projected = values @ moments
    fitted = (projected * weights).sum(-1) / (projected * values).sum(-1).clamp_min(1e-30)
    return _within_bounds(fitted, scales)


def fit_scales_of_inputs(weights: Tensor, values: Tensor, scales: Tensor, moments: Tensor) -> Tensor:
    """Scales `[groups, inputs]` of least squared error in the outputs, one scale an input.

    Shapes as in `fit_scales_of_outputs`; `moments` `[groups, inputs, inputs]`.
    """
    by_input = values.transpose(1, 2)
    normal = (by_input @ values) * moments
    right = ((by_input @ weights) * moments).sum(-1)
    return _within_bounds(_solve(normal, right, scales, SCALE_RIDGE), scales)


def _solve(normal: Tensor, right: Tensor, present: Tensor, ridge: float) -> Tensor:
    diagonal = normal.diagonal(dim1=-2, dim2=-1)
    pull = ridge * diagonal + 1e-9 * diagonal.mean(-1, keepdim=True) + 1e-30
    factor = torch.linalg.cholesky((normal + torch.diag_embed(pull)).double())
    return torch.cholesky_solve((right + pull * present).double()[..., None], factor)[..., 0].float()


def _within_bounds(fitted: Tensor, scales: Tensor) -> Tensor:
    is_sound = (fitted > scales / LARGEST_CHANGE) & (fitted < scales * LARGEST_CHANGE)
    return torch.where(is_sound, fitted, scales)
