"""The tables that the native part takes and gives: NumPy dtypes with named fields, each the twin of a C++ struct.

The extension compares them with its structs field by field whenever it takes or gives such an array.
A *location* is `buffer_index << 56 | byte_offset` into a sequence of buffers, -1 for what is absent.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

REQUEST = np.dtype(
    [
        ("file", "<i8"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("target", "<i8"),
        ("step", "<i8"),
        ("wait_for", "<i8"),
        ("pieces", "<i8"),
    ]
)
"""A read: index of the file; offset in it and length, multiples of 4096 (the last block may be cut by the end of the
file); location to read to, aligned to 4096 bytes in memory where reads are direct; the step that needs it; how many
steps, all from the first on, must have been released before it may begin; number of pieces that it completes."""

PIECE = np.dtype([("target", "<i8"), ("length", "<i8"), ("crc32c", "<i8"), ("offset", "<i8")])
"""Bytes that are checked together: their location, how many, their CRC-32C, and their offset in the file."""

TIMING = np.dtype([("start", "<f8"), ("end", "<f8")])
"""When a request began and was checked, in seconds of `time.perf_counter`; NaN where it has not."""

SLICE = np.dtype(
    [
        ("fidelity", "<i8"),
        ("full_weights", "<i8"),
        ("planes", "<i8", (6,)),
        ("codebook", "<i8"),
        ("scales", "<i8"),
        ("outliers", "<i8"),
    ]
)
"""One matrix of a slice: its fidelity in bits (2 .. 6 or 32), then locations. At 32 bits: of the full weights, row by
row. Below: of its bits in planes 1 .. 6 (`row_length / 8` bytes a row, the first weight in the lowest bit), of which
the fidelity says how many are used; of the codebook, f32 `[2**bits]`, indexed by a weight's bits with plane 1 as the
most significant; of the f16 scales of the rows; of the slice's outliers: u32 counts `[matrices]`, u32 positions
(`row * row_length + column` inside the matrix), f32 values."""


class Outcome(IntEnum):
    """What became of a request."""

    PENDING = 0
    """Not yet read and checked; after a cancel it never will be."""
    CHECKED = 1
    """Read, and every piece that it completes is what it must be."""
    GIVEN_UP = 2
    """Too late when its turn came: never read."""
    FAILED = 3
    """It could not be read, or a piece that it completes is not what it must be."""
