"""The native part: decompressed bit-planes, the streamer that reads ahead of compute, a reader of rows, and CRC-32C.

It takes NumPy arrays and PyTorch tensors without copying them and is not linked against PyTorch. `Decompression`
and `crc32c` have an implementation for each instruction set, of which the fastest is chosen at run time.
"""

from __future__ import annotations

from sti_hf.native._native import (
    Decompression,
    RowReader,
    Streamer,
    available_isas,
    crc32c,
    evict,
    isa,
    set_isa,
)
from sti_hf.native.errors import Cancelled, StreamError
from sti_hf.native.records import PIECE, REQUEST, SLICE, TIMING, Outcome

__all__ = [
    "PIECE",
    "REQUEST",
    "SLICE",
    "TIMING",
    "Cancelled",
    "Decompression",
    "Outcome",
    "RowReader",
    "StreamError",
    "Streamer",
    "available_isas",
    "crc32c",
    "evict",
    "isa",
    "set_isa",
]
