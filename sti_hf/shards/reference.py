"""Decompression in plain NumPy and PyTorch: what the native kernels are held against, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

ABSENT = -1
OFFSET_BITS = 56

_FULL_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def decompress_reference(
    buffers: Sequence[np.ndarray | torch.Tensor],
    table: np.ndarray,
    matrix: int,
    row_length: int,
    out_rows: int,
    dtype: torch.dtype,
    *,
    matrices: int,
    full_dtype: str = "float32",
) -> torch.Tensor:
    """One matrix of the active slices, as `sti_hf.native.Decompression` writes it.

    `buffers` are 1-D uint8; `table` is `sti_hf.native.SLICE` `[slices]`; `matrix` is the matrix's index among a
    slice's `matrices`. Returns `[out_rows, row_length]` in `dtype` (float32 or bfloat16), every slice giving the same
    number of rows.
    """
    memory = [np.asarray(buffer) for buffer in buffers]
    slice_rows = out_rows // len(table)
    slices = [_slice(memory, row, matrix, slice_rows, row_length, matrices, _FULL_DTYPES[full_dtype]) for row in table]
    return torch.cat(slices).to(dtype)


def _read(memory: list[np.ndarray], location: int, dtype: str, count: int) -> np.ndarray:
    buffer, offset = int(location) >> OFFSET_BITS, int(location) & ((1 << OFFSET_BITS) - 1)
    size = np.dtype(dtype).itemsize * count
    return np.frombuffer(memory[buffer][offset : offset + size].tobytes(), dtype=dtype, count=count)


def _slice(
    memory: list[np.ndarray],
    row: np.void,
    matrix: int,
    slice_rows: int,
    row_length: int,
    matrices: int,
    full_dtype: torch.dtype,
) -> torch.Tensor:
    bits, scales, outliers = int(row["fidelity"]), int(row["scales"]), int(row["outliers"])
    weights = slice_rows * row_length
    if bits == 32:
        full = _read(memory, row["full_weights"], "uint8", weights * full_dtype.itemsize)
        values = torch.from_numpy(full.copy()).view(full_dtype).float()
    else:
        codes = np.zeros(weights, dtype=np.int64)
        for location in row["planes"][:bits]:
            plane = _read(memory, location, "uint8", weights // 8)
            codes = 2 * codes + np.unpackbits(plane, bitorder="little")
        values = torch.from_numpy(_read(memory, row["codebook"], "<f4", 2**bits)[codes])
        if scales != ABSENT:
            scale = torch.from_numpy(_read(memory, scales, "<f2", slice_rows).astype(np.float32))
            values = values * scale.repeat_interleave(row_length)
    if outliers != ABSENT:
        counts = _read(memory, outliers, "<u4", matrices).astype(np.int64)
        first, total = int(counts[:matrix].sum()), int(counts.sum())
        positions = _read(memory, outliers + 4 * matrices, "<u4", total)[first : first + counts[matrix]]
        exact = _read(memory, outliers + 4 * (matrices + total), "<f4", total)[first : first + counts[matrix]]
        values[torch.from_numpy(positions.astype(np.int64))] = torch.from_numpy(exact.copy())
    return values.view(slice_rows, row_length)
