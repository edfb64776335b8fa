"""The paper's quantizer: Gaussian outlier-aware dictionaries (STI section 4, after GOBO, Zadeh et al., MICRO 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sti_hf.model.grid import Grid
from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers.base import Outliers, QuantizedLayer, codebooks_of_means, collect_outliers

OUTLIER_LOG_DENSITY = -4.0


class GoboQuantizer:
    """Fits a Gaussian to each shard, keeps weights of log-density under -4 exactly, and sorts the rest into bins of
    equal population, whose means are the codebook. Quantile bins nest: the bin among 4 is the top of the bin among 64.
    """

    @property
    def vocabulary(self) -> GoboQuantizer:
        """See `ModelQuantizer`: this one."""
        return self

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`. One codebook serves all matrices of a shard; there are no row scales."""
        quantized = [self._quantize_shard(shard, grid) for shard in shards]
        codebooks = {
            bits: torch.stack([books[bits] for _, books, _ in quantized])[:, None].repeat(1, len(grid.rows), 1)
            for bits in range(2, PLANES + 1)
        }
        return QuantizedLayer(
            grid,
            codes=torch.stack([codes for codes, _, _ in quantized]),
            codebooks=codebooks,
            outliers=tuple(outliers for _, _, outliers in quantized),
        )

    def _quantize_shard(self, shard: Tensor, grid: Grid) -> tuple[Tensor, dict[int, Tensor], Outliers]:
        is_outlier = gaussian_log_density(shard) < OUTLIER_LOG_DENSITY
        values, order = shard[~is_outlier].sort()
        levels = 2**PLANES
        bins = torch.arange(len(values)) * levels // len(values)
        codes = torch.zeros(shard.shape, dtype=torch.uint8)
        codes[~is_outlier] = torch.empty_like(bins, dtype=torch.uint8).scatter_(0, order, bins.to(torch.uint8))
        sums = torch.bincount(bins, weights=values.double(), minlength=levels)
        counts = torch.bincount(bins, minlength=levels).double()
        return codes, codebooks_of_means(sums, counts), collect_outliers(shard, is_outlier, grid)


def gaussian_log_density(weights: Tensor) -> Tensor:
    """Log-density of each weight under the Gaussian fitted to all of them."""
    mean, std = weights.mean(), weights.std().clamp_min(1e-12)
    return -((weights - mean) ** 2) / (2 * std**2) - torch.log(std) - math.log(2 * math.pi) / 2
