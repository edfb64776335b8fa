"""A layer's weights cut into M slices, and joined again: exact, bit for bit.

Slice i of a layer (STI, section 4) is its attention head i with the i-th of M equal blocks of its FFN neurons. A
permutation of a layer's slices changes nothing in its function, so slices may be stored in any `slice_order`. Slices
that are not droppable (`Grid`) are the i-th of M equal parts of every matrix, and stored in the checkpoint's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sti_hf.errors import UnsupportedModelError
from sti_hf.model import Architecture, Grid, Matrix
from sti_hf.model.architecture import CUT_BY_COLUMNS


def split_layer(
    weights: Mapping[str, Tensor], matrices: Sequence[Matrix], grid: Grid, slice_order: Sequence[int]
) -> Tensor:
    """Cut a layer into slices.

    Args:
        weights: weight of every matrix of the layer, by the matrix's name, as in its `nn.Linear`: `[out, in]`.
        matrices: the architecture's matrices, in stored order.
        grid: the cut.
        slice_order: a permutation of the M slices; slice k of the result is slice `slice_order[k]` of the checkpoint.

    Returns:
        `[M, slice_rows, row_length]`, in the dtype of the weights.

    Raises:
        ValueError: a weight is missing, has another shape than the grid says or another dtype than the rest, or
            `slice_order` is no permutation.
    """
    _check_order(slice_order, grid.slices)
    if len(slice_order) != grid.slices:
        raise UnsupportedModelError(
            f"slice_order has {len(slice_order)} of {grid.slices} slices: it must have all of them."
        )
    dtype = _check_weights(weights, matrices, grid)
    slices = torch.empty(grid.slices, grid.slice_rows, grid.row_length, dtype=dtype)
    for matrix in matrices:
        rows, first = grid.matrix_rows[matrix.name], grid.first_row[matrix.name]
        weight = weights[matrix.name].detach()
        by_row = weight.t() if matrix.by_columns else weight
        for k, index in enumerate(slice_order):
            slices[k, first : first + rows] = by_row[index * rows : (index + 1) * rows]
    return slices


def split_vocabulary(weight: Tensor, grid: Grid, layer: int) -> Tensor:
    """The strips of one layer of the vocabulary's `grid`, `[M, slice_rows, row_length]`, of its whole `weight`
    `[words, row_length]`; zeros behind the last word."""
    rows = grid.slices * grid.slice_rows
    words = weight[layer * rows : (layer + 1) * rows]
    strips = weight.new_zeros(rows, grid.row_length)
    strips[: len(words)] = words
    return strips.view(grid.slices, grid.slice_rows, grid.row_length)


def join_layer(
    slices: Tensor, matrices: Sequence[Matrix], grid: Grid, slice_order: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Weights of a layer that consists of some slices.

    Args:
        slices: `[m, slice_rows, row_length]`, the slices at hand.
        matrices: the architecture's matrices, in stored order.
        grid: the cut.
        slice_order: slice k of the joined layer is `slices[slice_order[k]]`; as they stand if absent. With all
            slices and the `inverse_order` of the one they were cut in, this is the checkpoint's layer.

    Returns:
        By the matrix's name, contiguous weights as in an `nn.Linear`, in the dtype of the slices: with m slices of
        r rows `[m * r, row_length]` each, and `[row_length, m * r]` of the matrices that are cut by columns.

    Raises:
        ValueError: the slices are not of this grid, or `slice_order` names one that is not there or one twice.
    """
    if slices.ndim != 3 or slices.shape[1:] != (grid.slice_rows, grid.row_length):
        raise UnsupportedModelError(
            f"Slices of shape {list(slices.shape)} are not of this grid: "
            f"it must be [m, {grid.slice_rows}, {grid.row_length}]."
        )
    if slice_order is not None:
        _check_order(slice_order, len(slices))
        slices = slices[list(slice_order)]
    weights = {}
    for matrix in matrices:
        rows, first = grid.matrix_rows[matrix.name], grid.first_row[matrix.name]
        by_row = slices[:, first : first + rows].reshape(len(slices) * rows, grid.row_length)
        weights[matrix.name] = (by_row.t() if matrix.by_columns else by_row).contiguous()
    return weights


def write_slice(
    weights: Mapping[str, Tensor], index: int, shard: Tensor, matrices: Sequence[Matrix], grid: Grid
) -> None:
    """Put a shard `[slice_rows, row_length]` in place of slice `index` of a layer's `weights`, in their own dtype.

    The weights, by matrix as `split_layer` takes them, change in place: nothing of the layer's size is allocated.
    """
    for matrix in matrices:
        rows, first = grid.matrix_rows[matrix.name], grid.first_row[matrix.name]
        weight = weights[matrix.name].detach()
        by_row = weight.t() if matrix.by_columns else weight
        by_row[index * rows : (index + 1) * rows] = shard[first : first + rows]


def permute_bias(bias: Tensor, grid: Grid, matrix: str, slice_order: Sequence[int]) -> Tensor:
    """Bias of the matrix of that name for the slices `slice_order` (all, or the active ones), in that order.

    The bias of a matrix cut by rows, `[M * rows]`, follows the slices: `[m * rows]`. That of a matrix cut by columns
    adds to the sum over all slices, and is returned unchanged.

    Raises:
        ValueError: the bias has another length than the grid says, or `slice_order` names no slice of the grid or
            one twice.
    """
    _check_order(slice_order, grid.slices)
    by_columns, rows = matrix in CUT_BY_COLUMNS, grid.matrix_rows[matrix]
    size = grid.row_length if by_columns else grid.slices * rows
    if bias.shape != (size,):
        raise UnsupportedModelError(f"Bias {matrix!r} has shape {list(bias.shape)}: the configuration says [{size}].")
    return bias if by_columns else bias.detach().reshape(grid.slices, rows)[list(slice_order)].flatten()


def permute_biases(
    weights: dict[str, Tensor],
    architecture: Architecture,
    grid: Grid,
    slice_orders: Sequence[Sequence[int]],
    prefix: str = "",
) -> None:
    """Puts the biases of a model's sliced matrices in another order, in place: `permute_bias` for every layer.

    `weights` are by their names in the model; those whose names do not begin with `prefix` are another stack's. Biases
    that are not there are left out.
    """
    for layer, slice_order in enumerate(slice_orders):
        for matrix in architecture.matrices:
            bias = f"{architecture.layers}.{layer}.{matrix.module}.bias"
            for name in weights:
                if name.startswith(prefix) and f".{name}".endswith(f".{bias}"):
                    weights[name] = permute_bias(weights[name], grid, matrix.name, slice_order).contiguous()


def inverse_order(slice_order: Sequence[int]) -> list[int]:
    """Where each slice of the checkpoint stands: `inverse_order(order)[order[k]] == k`."""
    return sorted(range(len(slice_order)), key=slice_order.__getitem__)


def _check_order(slice_order: Sequence[int], slices: int) -> None:
    if len(set(slice_order)) != len(slice_order) or not all(0 <= index < slices for index in slice_order):
        raise UnsupportedModelError(
            f"slice_order {list(slice_order)} must name slices from 0 to {slices - 1}, none twice."
        )


def _check_weights(weights: Mapping[str, Tensor], matrices: Sequence[Matrix], grid: Grid) -> torch.dtype:
    for matrix in matrices:
        if matrix.name not in weights:
            raise UnsupportedModelError(f"The layer has no weight {matrix.name!r} ({matrix.module}).")
        rows = (grid.slices * grid.matrix_rows[matrix.name], grid.row_length)
        expected = rows[::-1] if matrix.by_columns else rows
        if weights[matrix.name].shape != expected:
            raise UnsupportedModelError(
                f"Weight {matrix.name!r} ({matrix.module}) has shape {list(weights[matrix.name].shape)}: "
                f"the configuration says {list(expected)}."
            )
    dtypes = {weights[matrix.name].dtype for matrix in matrices}
    if len(dtypes) > 1:
        raise UnsupportedModelError(
            f"A layer's weights must have one dtype, and have {', '.join(sorted(map(str, dtypes)))}."
        )
    return dtypes.pop()
