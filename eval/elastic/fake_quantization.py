"""Low fidelities in training: weights as a quantizer would leave them, gradients as if it had not been there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sti_hf.shards.layout import FIDELITIES, PLANES
from sti_hf.shards.quantizers.base import codebooks_of_means
from sti_hf.shards.quantizers.lloyd import HISTOGRAM_BINS, HISTOGRAM_RANGE, OUTLIER_SCALES, nested_cells

TABLE_OF_BITS = {bits: table for table, bits in enumerate(FIDELITIES)}
STEP = 2 * HISTOGRAM_RANGE / HISTOGRAM_BINS


def fake_quantized(weight: Tensor, bits: Sequence[int], by_columns: bool) -> Tensor:
    """A weight whose slices are at fidelities `bits`; its gradient goes straight through (Bengio et al., 2013).

    `LloydQuantizer` in a form that costs little enough for every step: a row's scale is its root mean square, the
    nested codebook that of a Gaussian, and weights beyond the same `OUTLIER_SCALES` stay exact.

    Args:
        weight: `[out, in]` of m slices, each the same number of rows, or of columns where `by_columns`.
        bits: of each slice, `[m]`, 2 to 6 or 32 (as it is).
        by_columns: slices are columns, so a column is what the store keeps as a row.
    """
    return _StraightThrough.apply(weight, tuple(bits), by_columns)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: tuple[int, ...], by_columns: bool) -> Tensor:
        along, across = (0, 1) if by_columns else (1, 0)
        table_of_row = torch.tensor(
            [TABLE_OF_BITS[fidelity] * HISTOGRAM_BINS for fidelity in bits], device=weight.device
        )
        table_of_row = table_of_row.repeat_interleave(weight.shape[across] // len(bits)).unsqueeze(along)
        scale = weight.square().mean(along, keepdim=True).sqrt_().clamp_min_(1e-7)
        # Conversion to int32 and `index_select` are several times as fast on CPUs as to int64 and `take`.
        place = (weight / scale).add_(HISTOGRAM_RANGE).div_(STEP)
        bins = place.clamp_(0, HISTOGRAM_BINS - 1).int() + table_of_row.int()
        values = gaussian_values().to(weight.device).index_select(0, bins.flatten()).view(weight.shape).mul_(scale)
        return torch.where(values.isnan(), weight, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


@cache
def gaussian_values() -> Tensor:
    """What a weight of a standard Gaussian becomes: float32 `[tables * HISTOGRAM_BINS]`, by the table of a fidelity
    (`TABLE_OF_BITS`) and the bin of `STEP` that it is in; NaN where it stays as it is."""
    centers = (torch.arange(HISTOGRAM_BINS, dtype=torch.float64) + 0.5) * STEP - HISTOGRAM_RANGE
    exact = centers.abs() > OUTLIER_SCALES
    density = torch.exp(-centers.square() / 2).masked_fill(exact, 0.0)[None]
    codes = nested_cells(density, centers)[0].long()
    sums = torch.zeros(1, 2**PLANES, dtype=torch.float64)
    counts = sums.clone()
    sums[0].index_add_(0, codes, density[0] * centers)
    counts[0].index_add_(0, codes, density[0])
    values = torch.full((len(TABLE_OF_BITS), HISTOGRAM_BINS), torch.nan)
    for fidelity, codebook in codebooks_of_means(sums, counts).items():
        values[TABLE_OF_BITS[fidelity]] = codebook[0, codes >> (PLANES - fidelity)]
    return values.masked_fill(exact, torch.nan).flatten()
