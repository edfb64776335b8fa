"""The partition is exact: an independent cut of the checkpoint, bit for bit, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sti_hf.model import Grid, Matrix, get_architecture
from sti_hf.model.fused import split_fused
from sti_hf.shards.partition import inverse_order, join_layer, permute_bias, split_layer, write_slice
from tests.models import FAMILIES, HEADS, TASK_HEADS, tiny_model

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MATRICES = tuple(Matrix(name, name) for name in ("q", "k", "v", "o", "up", "gate", "down"))

DTYPES = st.sampled_from(list(INTEGERS))
ORDERS = st.permutations(range(2 * HEADS))
"""Of as many slices as any model here has."""


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Any grid, also with several query heads a slice and a gated FFN."""
    head, group, ffn = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rows = {"q": group * head, "k": head, "v": head, "o": group * head, "up": ffn, "gate": ffn, "down": ffn}
    if draw(st.booleans()):
        del rows["gate"]
    return Grid(1, draw(st.integers(1, 5)), draw(st.sampled_from([8, 16])), tuple(rows.items()))


def random_weights(grid: Grid, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights of any bits, NaNs included."""
    generator, integers, weights = torch.Generator().manual_seed(0), INTEGERS[dtype], {}
    limits = torch.iinfo(integers)
    for name, rows in grid.rows:
        size = grid.slices * rows
        shape = (grid.row_length, size) if name in ("o", "down") else (size, grid.row_length)
        bits = torch.randint(limits.min, limits.max + 1, shape, dtype=integers, generator=generator)
        weights[name] = bits.view(dtype)
    return weights


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.view(INTEGERS[left.dtype]), right.view(INTEGERS[left.dtype]))


def matrices_of(grid: Grid) -> list[Matrix]:
    return [matrix for matrix in MATRICES if matrix.name in grid.matrices]


@given(grid=grids(), dtype=DTYPES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_grid_splits_and_joins_exactly(grid: Grid, dtype: torch.dtype, data: st.DataObject) -> None:
    weights, matrices = random_weights(grid, dtype), matrices_of(grid)
    order = data.draw(st.permutations(range(grid.slices)))
    slices = split_layer(weights, matrices, grid, order)
    assert slices.shape == (grid.slices, grid.slice_rows, grid.row_length)

    for k, index in enumerate(order):
        for name, rows in grid.rows:
            stored = slices[k].split([count for _, count in grid.rows])[grid.matrices.index(name)]
            chunk = weights[name].chunk(grid.slices, dim=1 if name in ("o", "down") else 0)[index]
            assert chunk.numel() == rows * grid.row_length
            assert same_bits(stored, chunk.t() if name in ("o", "down") else chunk)

    joined = join_layer(slices, matrices, grid, inverse_order(order))
    assert list(joined) == [name for name, _ in grid.rows]
    assert all(same_bits(joined[name], weights[name]) and joined[name].is_contiguous() for name in weights)


@given(grid=grids(), dtype=DTYPES, data=st.data())
@settings(deadline=None, max_examples=60)
def test_slices_written_one_by_one_are_the_layer(grid: Grid, dtype: torch.dtype, data: st.DataObject) -> None:
    weights, matrices = random_weights(grid, dtype), matrices_of(grid)
    slices = split_layer(weights, matrices, grid, range(grid.slices))
    written = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for index in data.draw(st.permutations(range(grid.slices))):
        write_slice(written, index, slices[index], matrices, grid)
    assert all(same_bits(written[name], weight) for name, weight in weights.items())


@given(grid=grids(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_join_of_some_slices_has_their_rows_and_columns(grid: Grid, data: st.DataObject) -> None:
    weights, matrices = random_weights(grid, torch.float32), matrices_of(grid)
    order = data.draw(st.permutations(range(grid.slices)))
    active = data.draw(st.integers(1, grid.slices))
    joined = join_layer(split_layer(weights, matrices, grid, order)[:active], matrices, grid)
    for name, rows in grid.rows:
        kept = torch.cat([torch.arange(index * rows, (index + 1) * rows) for index in order[:active]])
        assert same_bits(joined[name], weights[name].index_select(1 if name in ("o", "down") else 0, kept))


@pytest.mark.parametrize("model_type", FAMILIES)
@given(order=ORDERS, dtype=DTYPES, layer=st.integers(0, 2))
@settings(deadline=None, max_examples=15)
def test_every_family_splits_and_joins_exactly(
    model_type: str, order: list[int], dtype: torch.dtype, layer: int
) -> None:
    model = _model(model_type)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    order = [index for index in order if index < grid.slices]
    module = model.base_model.get_submodule(architecture.layers)[layer]
    weights = {
        matrix.name: module.get_submodule(matrix.module).weight.detach().to(dtype) for matrix in architecture.matrices
    }
    slices = split_layer(weights, architecture.matrices, grid, order)
    assert slices.numel() == sum(weight.numel() for weight in weights.values())
    joined = join_layer(slices, architecture.matrices, grid, inverse_order(order))
    assert all(same_bits(joined[name], weights[name]) for name in weights)


_MODELS: dict[str, torch.nn.Module] = {}


def _model(model_type: str) -> torch.nn.Module:
    if model_type not in _MODELS:
        _MODELS[model_type] = model = tiny_model(TASK_HEADS[model_type][-1])
        split_fused(model, get_architecture(model.config))
    return _MODELS[model_type]


@given(grid=grids(), data=st.data())
@settings(deadline=None, max_examples=40)
def test_biases_follow_the_slices(grid: Grid, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(grid.slices)))
    active = order[: data.draw(st.integers(1, grid.slices))]
    for name, rows in grid.rows:
        if name in ("o", "down"):
            bias = torch.rand(grid.row_length)
            assert permute_bias(bias, grid, name, active) is bias
        else:
            bias = torch.rand(grid.slices * rows)
            chunks = bias.chunk(grid.slices)
            assert torch.equal(permute_bias(bias, grid, name, active), torch.cat([chunks[index] for index in active]))


GRID = Grid(1, 3, 8, (("q", 2), ("o", 2)))


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1], [0, 1, 2, 0]])
def test_a_slice_order_that_is_no_permutation_is_rejected(order: list[int]) -> None:
    with pytest.raises(ValueError, match="slice_order"):
        split_layer(random_weights(GRID, torch.float32), matrices_of(GRID), GRID, order)


def test_weights_that_do_not_fit_the_grid_are_rejected() -> None:
    weights, matrices = random_weights(GRID, torch.float32), matrices_of(GRID)
    with pytest.raises(ValueError, match="no weight 'o'"):
        split_layer({"q": weights["q"]}, matrices, GRID, range(3))
    with pytest.raises(ValueError, match=r"'o' \(o\) has shape \[6, 8\]: the configuration says \[8, 6\]"):
        split_layer({**weights, "o": weights["o"].t()}, matrices, GRID, range(3))
    with pytest.raises(ValueError, match=r"one dtype.*bfloat16, torch\.float32"):
        split_layer({**weights, "o": weights["o"].bfloat16()}, matrices, GRID, range(3))


def test_slices_and_biases_that_do_not_fit_the_grid_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"must be \[m, 4, 8\]"):
        join_layer(torch.zeros(3, 5, 8), matrices_of(GRID), GRID)
    with pytest.raises(ValueError, match="slice_order"):
        join_layer(torch.zeros(2, 4, 8), matrices_of(GRID), GRID, [0, 2])
    with pytest.raises(ValueError, match="Bias 'q'"):
        permute_bias(torch.zeros(8), GRID, "q", range(3))
    with pytest.raises(ValueError, match="slice_order"):
        permute_bias(torch.zeros(6), GRID, "q", [3])
