"""The native part: decompressed bit-planes, the streamer that reads ahead of compute, a reader of rows, and CRC-32C.

It takes NumPy arrays and PyTorch tensors without copying them and is not linked against PyTorch. `Decompression`
and `crc32c` have an implementation for each instruction set, of which the fastest is chosen at run time.
"""

from __future__ import annotations

from sti_hf.native._native import (
    Cancelled,
    Decompression,
    RowReader,
    Streamer,
    StreamError,
    available_isas,
    crc32c,
    evict,
    isa,
    set_isa,
)

__all__ = [
    "Cancelled",
    "Decompression",
    "RowReader",
    "StreamError",
    "Streamer",
    "available_isas",
    "crc32c",
    "evict",
    "isa",
    "set_isa",
]
