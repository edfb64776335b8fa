"""Writing the pieces of a store: tables with their rows' checksums, and layers as their layout says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sti_hf import native
from sti_hf.shards.index import Table
from sti_hf.shards.layout import KINDS, PLANES, LayerLayout
from sti_hf.shards.quantizers import QuantizedLayer
from sti_hf.shards.safetensors_file import SafetensorsWriter

SAFETENSORS_DTYPE = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class WrittenLayer:
    """Where a layer was written: `header_bytes` of every slice, `checksums` uint32 `[KINDS, M]`,
    whether its rows have scales."""

    offset: int
    header_bytes: tuple[int, ...]
    checksums: np.ndarray
    has_scales: bool


def bytes_of(tensor: Tensor) -> np.ndarray:
    """uint8: the bytes of a tensor, in order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_table(writer: SafetensorsWriter, name: str, weight: Tensor, decoders: tuple[str, ...]) -> Table:
    """Writes a table and its rows' checksums, which stand behind it: so the first table begins on a block."""
    rows, columns = weight.shape
    raw = bytes_of(weight).reshape(rows, -1)
    offset = writer.position
    writer.append(raw)
    writer.finish_tensor(f"{name}.weight", SAFETENSORS_DTYPE[weight.dtype], (rows, columns))
    checksums_offset = writer.position
    writer.append(np.array([native.crc32c(row) for row in raw], dtype="<u4"))
    writer.finish_tensor(f"{name}.crc32c", "U32", (rows,))
    return Table(offset, rows, columns, str(weight.dtype).removeprefix("torch."), checksums_offset, decoders)


def write_layer(writer: SafetensorsWriter, layer: int, quantized: QuantizedLayer, full: Tensor | None) -> WrittenLayer:
    """Writes a layer; `full` are its shards in the checkpoint's dtype, or None where they are left out."""
    grid = quantized.grid
    offset = writer.position
    checksums = np.zeros((KINDS, grid.slices), dtype=np.uint32)
    headers = [_header(quantized, index) for index in range(grid.slices)]
    for index, header in enumerate(headers):
        checksums[0, index] = writer.append(header)
    codes = quantized.codes.numpy()
    for plane in range(1, PLANES + 1):
        bits = np.packbits((codes >> (PLANES - plane)) & 1, axis=-1, bitorder="little")
        for index in range(grid.slices):
            piece = np.concatenate((_plane_prefix(quantized, plane, index), bits[index].reshape(-1)))
            checksums[plane, index] = writer.append(piece)
    for index in range(grid.slices):
        checksums[-1, index] = writer.append(bytes_of(full[index]) if full is not None else np.empty(0, np.uint8))
    writer.pad()
    writer.finish_tensor(f"layers.{layer}", "U8", (writer.position - offset,))
    header_bytes = tuple(len(header) for header in headers)
    written = WrittenLayer(offset, header_bytes, checksums, quantized.scales is not None)
    itemsize = full.element_size() if full is not None else 0
    layout = LayerLayout(grid, offset, header_bytes, itemsize, written.has_scales)
    if layout.region_bytes != writer.position - offset:
        raise AssertionError(f"layer {layer} was not written as its layout says")
    return written


def _header(quantized: QuantizedLayer, index: int) -> np.ndarray:
    """uint8: the header piece of slice `index` (see `layout`)."""
    if quantized.outliers is None:
        return np.zeros(len(quantized.grid.rows), dtype="<u4").view(np.uint8)
    outliers = quantized.outliers[index]
    parts = (outliers.counts.numpy().astype("<u4"), outliers.positions.numpy().astype("<u4"), outliers.values.numpy())
    return np.concatenate([part.view(np.uint8) for part in parts])


def _plane_prefix(quantized: QuantizedLayer, plane: int, index: int) -> np.ndarray:
    """uint8: what stands before the bits of a plane's piece: codebooks and row scales."""
    if plane < 2:
        return np.empty(0, np.uint8)
    parts = [quantized.codebooks[plane][index].numpy().reshape(-1)]
    if quantized.scales is not None:
        scales = quantized.scales[plane][index].numpy()
        parts.append(np.pad(scales, (0, len(scales) % 2)))
    return np.concatenate([part.view(np.uint8) for part in parts])
