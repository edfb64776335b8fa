"""A layer of a store back as what it was written from, for what needs whole layers in memory: not for inference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sti_hf import native
from sti_hf.errors import StoreError
from sti_hf.shards.layout import FULL_PIECE, HEADER_PIECE, PLANES, piece_name
from sti_hf.shards.quantizers.base import Outliers, QuantizedLayer
from sti_hf.shards.store import TABLES_FILE, ShardStore


def read_quantized_layer(store: ShardStore, layer: int) -> QuantizedLayer:
    """The nested codes of layer `layer`, slices as stored. Raises `StoreError` where a piece is damaged."""
    grid, layout = store.grid, store.layouts[layer]
    codes = np.zeros((grid.slices, grid.slice_weights), dtype=np.uint8)
    codebooks = {bits: np.empty((grid.slices, len(grid.rows), 2**bits), "<f4") for bits in range(2, PLANES + 1)}
    scales = {bits: np.empty((grid.slices, grid.slice_rows), "<f2") for bits in codebooks}
    for index in range(grid.slices):
        for plane in range(1, PLANES + 1):
            piece = read_piece(store, layer, plane, index)
            bits = np.unpackbits(piece[layout.bits_offset(plane) :], bitorder="little")
            codes[index] |= bits << (PLANES - plane)
            if plane >= 2:
                books = layout.codebook_bytes(plane)
                codebooks[plane][index] = piece[:books].view("<f4").reshape(len(grid.rows), -1)
                if store.index.has_scales:
                    scales[plane][index] = piece[books:].view(np.uint8)[: 2 * grid.slice_rows].view("<f2")
    return QuantizedLayer(
        grid,
        torch.from_numpy(codes).view(grid.slices, grid.slice_rows, grid.row_length),
        {bits: torch.from_numpy(values) for bits, values in codebooks.items()},
        {bits: torch.from_numpy(values) for bits, values in scales.items()} if store.index.has_scales else None,
        tuple(
            _outliers(read_piece(store, layer, HEADER_PIECE, index), len(grid.rows)) for index in range(grid.slices)
        ),
    )


def read_full_layer(store: ShardStore, layer: int) -> Tensor:
    """The checkpoint's own weights of layer `layer`: `[M, slice_rows, row_length]` in the checkpoint's dtype.

    Raises `StoreError` where a piece is damaged, or the store was written without them.
    """
    if store.full_dtype is None:
        raise StoreError(f"The store {store.path} has no full weights; shard the model again, without --no-full.")
    pieces = [read_piece(store, layer, FULL_PIECE, index) for index in range(store.grid.slices)]
    weights = torch.from_numpy(np.stack(pieces)).view(getattr(torch, store.full_dtype))
    return weights.view(store.grid.slices, store.grid.slice_rows, store.grid.row_length)


def read_table(store: ShardStore, name: str) -> Tensor:
    """A table of the store: `[rows, columns]` in its own dtype. Raises `StoreError` where a row is damaged."""
    table = store.stack.tables[name]
    raw = np.fromfile(store.path / TABLES_FILE, np.uint8, table.rows * table.row_bytes, offset=table.offset)
    rows = raw.reshape(table.rows, table.row_bytes)
    for row, expected in zip(rows, store.row_checksums(name)):
        if native.crc32c(row) != expected:
            raise StoreError(f"The table {name} in {store.path / TABLES_FILE} is damaged; shard the model again.")
    return torch.from_numpy(rows).view(getattr(torch, table.dtype))


def read_piece(store: ShardStore, layer: int, kind: int, index: int) -> np.ndarray:
    """The bytes of one piece, uint8. Raises `StoreError` where it is damaged."""
    layout = store.layouts[layer]
    offset, size = int(layout.piece_offset[kind, index]), int(layout.piece_bytes[kind, index])
    piece = np.fromfile(store.layer_path(layer), np.uint8, size, offset=offset)
    if native.crc32c(piece) != store.stack.checksums[layer, kind, index]:
        raise StoreError(
            f"{piece_name(kind)} of shard ({layer}, {index}) in {store.layer_path(layer)} is damaged; "
            "shard the model again."
        )
    return piece


def _outliers(header: np.ndarray, matrices: int) -> Outliers:
    words = header.view("<u4")
    counts = torch.from_numpy(words[:matrices].astype(np.int64))
    positions, values = words[matrices:].reshape(2, -1)
    return Outliers(counts, torch.from_numpy(positions.astype(np.int64)), torch.from_numpy(values.view("<f4").copy()))
