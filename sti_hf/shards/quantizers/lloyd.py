"""Row scales and nested codebooks of least squared error: the default where there is no calibration text."""

from __future__ import annotations

import torch
from torch import Tensor

from sti_hf.model.grid import Grid
from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers.base import QuantizedLayer, codebooks_of_means, collect_outliers

HISTOGRAM_BINS = 2048
OUTLIER_SCALES = 6.0
"""Weights of more than this many times the root mean square of the rest of their row are kept exactly."""

HISTOGRAM_RANGE = 8.0
"""Weights are histogrammed between plus and minus this many row scales."""

LLOYD_STEPS = 30
SCALE_STEPS = 2
SCALE_BITS = 3
"""The fidelity whose squared error the row scales are fitted to."""


class LloydQuantizer:
    """One scale a row, and for each matrix of a shard a tree of codebooks: the 4 values of least squared error
    (Lloyd-Max), each of whose cells is then split in the best two, down to 64. Few outliers are kept exactly.
    """

    @property
    def vocabulary(self) -> LloydQuantizer:
        """See `ModelQuantizer`: this one."""
        return self

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`."""
        codes = torch.empty(shards.shape, dtype=torch.uint8)
        start, is_outlier = row_scales(shards)
        scales = {bits: torch.empty(shards.shape[:2], dtype=torch.float16) for bits in range(2, PLANES + 1)}
        codebooks = {bits: torch.empty(len(shards), len(grid.rows), 2**bits) for bits in range(2, PLANES + 1)}
        for index, (name, rows) in enumerate(grid.rows):
            block = slice(grid.first_row[name], grid.first_row[name] + rows)
            codes[:, block], scale, books = quantize_matrix(shards[:, block], start[:, block], is_outlier[:, block])
            for bits, values in books.items():
                codebooks[bits][:, index] = values
                coded = _look_up(values, codes[:, block] >> (PLANES - bits))
                scales[bits][:, block] = fit_scales(shards[:, block], coded * ~is_outlier[:, block], scale).half()
        outliers = tuple(collect_outliers(shard, mask, grid) for shard, mask in zip(shards, is_outlier))
        return QuantizedLayer(grid, codes, codebooks, scales, outliers)


def row_scales(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square float32 `[..., rows]` of every row without its outliers, and which weights those are, bool."""
    is_outlier = torch.zeros(weights.shape, dtype=torch.bool)
    for _ in range(2):
        kept = weights.masked_fill(is_outlier, 0.0)
        scales = (kept.square().sum(-1) / (~is_outlier).sum(-1).clamp_min(1)).sqrt()
        is_outlier = weights.abs() > OUTLIER_SCALES * scales[..., None]
    return _as_stored(scales), is_outlier


def quantize_matrix(weights: Tensor, scales: Tensor, is_outlier: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Codes uint8, scales and codebooks of `weights` `[groups, rows, columns]`, one codebook a group.

    `scales` `[groups, rows]` to start from; weights that are outliers (bool, as `weights`) do not count.
    """
    counted = (~is_outlier).to(weights.dtype)
    for step in range(SCALE_STEPS + 1):
        codes, codebooks = _codes(weights, scales, counted)
        if step < SCALE_STEPS:
            scales = fit_scales(
                weights, _look_up(codebooks[SCALE_BITS], codes >> (PLANES - SCALE_BITS)) * counted, scales
            )
    return codes, scales, codebooks


def fit_scales(weights: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    """The scale of every row with which `values` come nearest to its weights; `scales` where none is positive."""
    fitted = (weights * values).sum(-1) / values.square().sum(-1).clamp_min(1e-12)
    return _as_stored(torch.where(fitted > 0, fitted, scales))


def _as_stored(scales: Tensor) -> Tensor:
    """Scales after a round trip through float16, none of them zero."""
    return scales.clamp(1e-7, 6e4).half().float()


def _look_up(codebook: Tensor, codes: Tensor) -> Tensor:
    return codebook.gather(1, codes.flatten(1).long()).view(codes.shape)


def _codes(weights: Tensor, scales: Tensor, counted: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    groups = len(weights)
    step = 2 * HISTOGRAM_RANGE / HISTOGRAM_BINS
    normalized = weights / scales[..., None]
    bins = ((normalized + HISTOGRAM_RANGE) / step).clamp_(0, HISTOGRAM_BINS - 1).long().flatten(1)
    error_weight = (scales.square()[..., None] * counted).reshape(groups, -1)
    histogram = _sum_by(bins, error_weight, HISTOGRAM_BINS)
    centers = (torch.arange(HISTOGRAM_BINS, dtype=torch.float64) + 0.5) * step - HISTOGRAM_RANGE
    code_of_bin = nested_cells(histogram, centers)
    codes = code_of_bin.gather(1, bins)
    sums = _sum_by(codes.long(), error_weight * normalized.flatten(1), 2**PLANES)
    return codes.view(weights.shape), codebooks_of_means(sums, _sum_by(codes.long(), error_weight, 2**PLANES))


def _sum_by(keys: Tensor, weights: Tensor, size: int) -> Tensor:
    """float64 `[groups, size]`: sums of the weights of every key."""
    offsets = torch.arange(len(keys))[:, None] * size
    sums = torch.bincount((keys + offsets).flatten(), weights=weights.flatten().double(), minlength=len(keys) * size)
    return sums.view(len(keys), size)


def nested_cells(histogram: Tensor, centers: Tensor) -> Tensor:
    """uint8 `[groups, bins]`: the 6-bit code of every histogram bin. Codes rise with the value.

    `histogram` float64 `[groups, bins]`: total weight in each bin; `centers` float64 `[bins]`: the bins' values.
    """
    zero = torch.zeros(len(histogram), 1, dtype=torch.float64)
    mass = torch.cat((zero, histogram.cumsum(1)), 1)
    moment = torch.cat((zero, (histogram * centers).cumsum(1)), 1)
    bins = histogram.shape[1]
    edges = torch.tensor([[0, bins]]).repeat(len(histogram), 1)
    for bits in range(1, PLANES + 1):
        edges = _split_cells(edges, mass, moment)
        if bits == 2:
            edges = _lloyd_max(edges, mass, moment, centers)
    cells = torch.searchsorted(edges[:, 1:-1].contiguous(), torch.arange(bins).repeat(len(histogram), 1), right=True)
    return cells.to(torch.uint8)


def _split_cells(edges: Tensor, mass: Tensor, moment: Tensor) -> Tensor:
    """Splits every cell between two edges where the squared error falls most."""
    positions = torch.arange(mass.shape[1]).repeat(len(edges), 1)
    cell = (torch.searchsorted(edges, positions, right=True) - 1).clamp_max(edges.shape[1] - 2)
    low, high = edges.gather(1, cell), edges.gather(1, cell + 1)
    gain = torch.zeros_like(mass)
    for first, last in ((low, positions), (positions, high)):
        cell_mass = mass.gather(1, last) - mass.gather(1, first)
        cell_moment = moment.gather(1, last) - moment.gather(1, first)
        gain += cell_moment.square() / cell_mass.clamp_min(1e-300)
    cells = edges.shape[1] - 1
    best = torch.full((len(edges), cells), -1.0, dtype=torch.float64).scatter_reduce(1, cell, gain, "amax")
    is_best = gain == best.gather(1, cell)
    split = torch.zeros(len(edges), cells, dtype=torch.long)
    split.scatter_reduce_(1, cell, torch.where(is_best, positions, 0), "amax")
    split = torch.minimum(torch.maximum(split, edges[:, :-1]), edges[:, 1:])
    return torch.cat((torch.stack((edges[:, :-1], split), 2).flatten(1), edges[:, -1:]), 1)


def _lloyd_max(edges: Tensor, mass: Tensor, moment: Tensor, centers: Tensor) -> Tensor:
    """Moves all inner edges half way between the means of their cells until they rest."""
    for _ in range(LLOYD_STEPS):
        cell_mass = mass.gather(1, edges).diff(dim=1)
        cell_moment = moment.gather(1, edges).diff(dim=1)
        means = cell_moment / cell_mass.clamp_min(1e-300)
        moved = edges.clone()
        moved[:, 1:-1] = torch.searchsorted(centers, (means[:, :-1] + means[:, 1:]) / 2)
        moved = moved.cummax(1).values
        if torch.equal(moved, edges):
            break
        edges = moved
    return edges
