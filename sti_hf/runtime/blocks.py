"""The working buffer: how much of a matrix is decompressed at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sti_hf import native
from sti_hf.model.grid import Grid
from sti_hf.shards.store import ShardStore

WORKING_BYTES = 2400 << 10
"""Size of the working buffer, unless one slice of a matrix is larger: an attention matrix of a base model in float32
fits, or half an FFN matrix in bfloat16. Larger ones are multiplied block by block."""


@dataclass(frozen=True)
class Block:
    """Some slices of a matrix, decompressed together: which of the matrix's rows (as stored) they are, `first` to
    `last`, their `weight` in the working buffer, and what puts it there."""

    first: int
    last: int
    weight: Tensor
    decompression: native.Decompression


def matrix_blocks(
    store: ShardStore, compressed: Sequence[np.ndarray], working: Tensor, name: str, table: np.ndarray
) -> list[Block]:
    """The blocks of one matrix of a layer, from the `native.SLICE` records of its active slices."""
    grid = store.grid
    rows, index = grid.matrix_rows[name], grid.matrices.index(name)
    return [
        Block(
            first * rows,
            last * rows,
            weight := working[: (last - first) * rows * grid.row_length].view(-1, grid.row_length),
            native.Decompression(
                compressed,
                table[first:last],
                index,
                grid.row_length,
                weight,
                matrices=len(grid.matrices),
                full_dtype=store.index.full_dtype or "float32",
            ),
        )
        for first, last in block_ends(len(table), rows * grid.row_length * working.dtype.itemsize)
    ]


def block_slices(slice_bytes: int, slices: int) -> int:
    """How many slices of a matrix, `slice_bytes` each when decompressed, are multiplied by at a time."""
    return min(slices, max(1, WORKING_BYTES // slice_bytes))


def block_ends(slices: int, slice_bytes: int) -> list[tuple[int, int]]:
    """The first and last slice of every block of a matrix, `slice_bytes` for each slice when decompressed."""
    step = block_slices(slice_bytes, slices)
    return [(start, min(start + step, slices)) for start in range(0, slices, step)]


def working_weights(grid: Grid, slices: int, dtype: torch.dtype) -> int:
    """Weights of the largest block of any matrix: what the working buffer must hold."""
    weights = [rows * grid.row_length for _, rows in grid.rows]
    return max(block_slices(each * dtype.itemsize, slices) * each for each in weights)
