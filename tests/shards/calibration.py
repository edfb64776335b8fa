"""Problems of calibration that tests share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from sti_hf.model import Grid, get_architecture
from sti_hf.shards.layout import PLANES
from sti_hf.shards.partition import split_layer
from sti_hf.shards.quantizers.lloyd import quantize_matrix
from tests.models import tiny_inputs

EQUAL = dict.fromkeys(range(2, PLANES + 1), 1.0)


def batches(model: PreTrainedModel, count: int = 4) -> list[dict[str, Tensor]]:
    return [tiny_inputs(model, batch=8, seed=seed) for seed in range(count)]


def layer_shards(model: PreTrainedModel, layer: int, order: list[int] | None = None) -> tuple[Tensor, Grid]:
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    module = model.base_model.get_submodule(architecture.layers)[layer]
    weights = {matrix.name: module.get_submodule(matrix.module).weight for matrix in architecture.matrices}
    return split_layer(weights, architecture.matrices, grid, order or list(range(grid.slices))), grid


def correlated_problem(rows: int = 24, columns: int = 40) -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor, Tensor]:
    """Weights, scales, codebooks, inputs with a few strong directions, and their second moments."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, rows, columns, generator=generator)
    inputs = torch.randn(500, 6, generator=generator) @ torch.randn(6, columns, generator=generator)
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    _, scales, codebooks = nearest(weights)
    return weights, scales, codebooks, inputs, (inputs.t() @ inputs)[None]


def nearest(weights: Tensor) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Codes, scales and codebooks without calibration, and without outliers."""
    return quantize_matrix(weights, weights.square().mean(-1).sqrt(), none(weights))


def none(weights: Tensor) -> Tensor:
    return torch.zeros_like(weights, dtype=torch.bool)


def output_error(weights: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    return float(((weights - approximation) @ inputs.t()).square().mean() / (weights @ inputs.t()).square().mean())


def all_codes(targets: Mapping[int, Tensor], codebooks: Mapping[int, Tensor], group: int, row: int) -> list[float]:
    return [
        sum(
            float((targets[bits][group, row] - codebooks[bits][group, code >> (PLANES - bits)]) ** 2) for bits in EQUAL
        )
        for code in range(2**PLANES)
    ]
