from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.model.grid import Grid
from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers import QUANTIZERS, get_quantizer
from sti_hf.shards.quantizers.base import codebooks_of_means
from sti_hf.shards.quantizers.gobo import OUTLIER_LOG_DENSITY, gaussian_log_density
from sti_hf.shards.quantizers.lloyd import nested_cells

GRID = Grid(1, 2, 64, (("q", 16), ("k", 16), ("v", 16), ("o", 16), ("up", 32), ("down", 32)))


def shards(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = 0.02 + 0.05 * torch.rand(GRID.slices, GRID.slice_rows, 1, generator=generator)
    return torch.randn(GRID.slices, GRID.slice_rows, GRID.row_length, generator=generator) * rows


def relative_error(weights: torch.Tensor, approximation: torch.Tensor) -> float:
    return float((weights - approximation).square().mean() / weights.square().mean())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_error_falls_with_every_bit(name: str) -> None:
    weights = shards()
    layer = get_quantizer(name).quantize_layer(0, weights, GRID)
    errors = [relative_error(weights, layer.dequantize(bits)) for bits in range(2, PLANES + 1)]
    assert all(finer < 0.6 * coarser for coarser, finer in pairwise(errors))
    assert errors[0] < 0.25


@pytest.mark.parametrize("name", QUANTIZERS)
def test_shards_are_quantized_independently(name: str) -> None:
    weights = shards()
    changed = weights.clone()
    changed[1] = shards(1)[1]
    first = get_quantizer(name).quantize_layer(0, weights, GRID)
    second = get_quantizer(name).quantize_layer(0, changed, GRID)
    assert torch.equal(first.codes[0], second.codes[0])
    assert torch.equal(first.dequantize(3)[0], second.dequantize(3)[0])


def test_gobo_keeps_outliers_exactly_and_bins_the_rest_by_population() -> None:
    weights = shards()
    weights[0, 3, 5] = 1.5
    layer = get_quantizer("gobo").quantize_layer(0, weights, GRID)
    assert layer.outliers is not None
    outlier = gaussian_log_density(weights[0]) < OUTLIER_LOG_DENSITY
    assert outlier[3, 5]
    assert torch.equal(layer.dequantize(2)[0][outlier], weights[0][outlier])
    population = torch.bincount(layer.codes[0][~outlier].long() >> 4, minlength=4)
    assert population.max() - population.min() <= 1
    kept = weights[0][~outlier]
    lowest = kept[layer.codes[0][~outlier] >> 4 == 0]
    assert torch.allclose(layer.codebooks[2][0, 0, 0], lowest.mean())


def test_gobo_is_the_quantile_binning_of_each_fidelity() -> None:
    # Nesting: the bins among 64, joined, are the bins among 2**k that a quantizer for k bits alone would make.
    weights = shards()
    layer = get_quantizer("gobo").quantize_layer(0, weights, GRID)
    kept = gaussian_log_density(weights[0]) >= OUTLIER_LOG_DENSITY
    ranks = weights[0][kept].argsort().argsort()
    for bits in range(2, PLANES + 1):
        expected = ranks * 2**bits // len(ranks)
        assert torch.equal(layer.codes[0][kept].long() >> (PLANES - bits), expected)


def brute_force_two_way_split(values: torch.Tensor) -> float:
    ordered = values.sort().values
    return min(
        float(((ordered[:i] - ordered[:i].mean()) ** 2).sum() + ((ordered[i:] - ordered[i:].mean()) ** 2).sum())
        for i in range(1, len(ordered))
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_four_cells_rise_with_the_value_and_beat_the_best_two(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bins = torch.randint(0, 40, (200,), generator=generator)
    centers = torch.linspace(-2, 2, 40, dtype=torch.float64)
    histogram = torch.bincount(bins, minlength=40).double()[None]
    codes = nested_cells(histogram, centers)[0][bins]
    order = bins.argsort()
    assert (codes[order].int().diff() >= 0).all()
    values = centers[bins]
    cells = [values[codes >> 4 == cell] for cell in range(4)]
    error = sum(float((cell - cell.mean()).square().sum()) for cell in cells if len(cell))
    assert error < brute_force_two_way_split(values)


def test_lloyd_reaches_the_known_optimum_for_gaussian_weights() -> None:
    # Max (1960): the best 4-level quantizer of a Gaussian has a relative squared error of 0.1175, levels 0.453, 1.510.
    grid = Grid(1, 1, 512, (("q", 512),))
    weights = torch.randn(1, 512, 512, generator=torch.Generator().manual_seed(0))
    layer = get_quantizer("lloyd").quantize_layer(0, weights, grid)
    assert relative_error(weights, layer.dequantize(2)) == pytest.approx(0.1175, rel=0.02)
    assert layer.codebooks[2][0, 0].abs().sort().values.tolist() == pytest.approx([0.453, 0.453, 1.51, 1.51], rel=0.05)


def test_lloyd_follows_the_scale_of_each_row() -> None:
    weights = shards()
    scaled = weights * torch.logspace(-2, 2, GRID.slice_rows)[None, :, None]
    layer = get_quantizer("lloyd").quantize_layer(0, scaled, GRID)
    error = (scaled - layer.dequantize(4)).square().sum(-1) / scaled.square().sum(-1)
    assert error.max() < 0.05


def test_codebooks_of_empty_codes_take_their_ancestors_mean() -> None:
    sums, counts = torch.zeros(1, 64, dtype=torch.float64), torch.zeros(1, 64, dtype=torch.float64)
    sums[0, 0], counts[0, 0] = 3.0, 2.0
    codebooks = codebooks_of_means(sums, counts)
    assert codebooks[6][0, 0] == 1.5
    assert codebooks[6][0, 1] == 1.5
    assert torch.isfinite(codebooks[2]).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_constant_and_zero_weights(name: str) -> None:
    for value in (0.0, 0.3):
        weights = torch.full((GRID.slices, GRID.slice_rows, GRID.row_length), value)
        approximation = get_quantizer(name).quantize_layer(0, weights, GRID).dequantize(2)
        assert torch.allclose(approximation, weights, atol=1e-3)


def test_unknown_quantizer_is_named() -> None:
    with pytest.raises(ValueError, match="no quantizer 'nope'; choose one of calibrated, gobo, lloyd"):
        get_quantizer("nope")
