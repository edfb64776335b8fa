"""Where the bytes of every shard are in a layer's region of the shards file.

A layer is one contiguous region of *pieces*, in the order in which they are read:

    header of slice 0 .. M-1, plane 1 of slice 0 .. M-1, plane 2 .., .. plane 6 .., full weights of slice 0 .. M-1

so that a whole layer at 2 bits is one sequential read, and raising one shard by one bit is the read of one piece.

- *header*: the outliers: u32 count of every matrix, u32 position inside its matrix (row * row_length + column), f32
  value.
- *plane p* (1 = the most significant bit): from p = 2 on the codebooks of fidelity p, f32 `[matrices, 2**p]`, and
  its f16 scale of every row (absent where the quantizer has none), padded to 4 bytes; then one bit for every weight,
  row by row, the first weight in the lowest bit of the first byte.
- *full*: the checkpoint's own weights, row by row, in the checkpoint's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sti_hf.forking import cached_property
from sti_hf.model.grid import Grid

BLOCK = 4096
"""Reads start and end at multiples of this (bytes): what direct IO asks for on every common disk."""

PLANES = 6
FULL = 32
FIDELITIES = (2, 3, 4, 5, 6, FULL)

HEADER_PIECE = 0
FULL_PIECE = PLANES + 1
KINDS = PLANES + 2
"""Kinds of pieces: header, plane 1 .. plane 6, full."""


def piece_name(kind: int) -> str:
    """What a kind of piece is called in messages."""
    return {HEADER_PIECE: "header", FULL_PIECE: "full weights"}.get(kind, f"plane {kind}")


def kinds_of(bits: int) -> range | tuple[int, ...]:
    """Kinds of pieces that a shard at this fidelity needs (0 bits: not run, none)."""
    if bits == 0:
        return ()
    return (FULL_PIECE,) if bits == FULL else range(bits + 1)


@dataclass(frozen=True)
class LayerLayout:
    """Byte layout of one layer's region.

    `offset` is the region's first byte in the file, a multiple of `BLOCK`; `header_bytes[i]` the size of slice i's
    header; `full_itemsize` the bytes of one full weight, 0 where the store was written without them; `has_scales`
    whether rows have scales.
    """

    grid: Grid
    offset: int
    header_bytes: tuple[int, ...]
    full_itemsize: int
    has_scales: bool = False

    def codebook_bytes(self, plane: int) -> int:
        """Bytes of the codebooks that stand before plane `plane` of a slice."""
        return 0 if plane < 2 else 4 * len(self.grid.matrices) * 2**plane

    def scales_bytes(self, plane: int) -> int:
        """Bytes of the row scales that stand between the codebooks and plane `plane` of a slice."""
        return -(-2 * self.grid.slice_rows // 4) * 4 if self.has_scales and plane >= 2 else 0

    def bits_offset(self, plane: int) -> int:
        """Where inside a plane's piece its bits begin."""
        return self.codebook_bytes(plane) + self.scales_bytes(plane)

    @cached_property
    def piece_bytes(self) -> np.ndarray:
        """int64 `[KINDS, M]`: size of every piece."""
        sizes = np.empty((KINDS, self.grid.slices), dtype=np.int64)
        sizes[HEADER_PIECE] = self.header_bytes
        for plane in range(1, PLANES + 1):
            sizes[plane] = self.bits_offset(plane) + self.grid.slice_weights // 8
        sizes[FULL_PIECE] = self.grid.slice_weights * self.full_itemsize
        return sizes

    @cached_property
    def piece_offset(self) -> np.ndarray:
        """int64 `[KINDS, M]`: first byte of every piece in the file."""
        sizes = self.piece_bytes.ravel()
        return (self.offset + np.cumsum(sizes) - sizes).reshape(self.piece_bytes.shape)

    @cached_property
    def region_bytes(self) -> int:
        """Size of the region, padded to whole blocks."""
        return -(-int(self.piece_bytes.sum()) // BLOCK) * BLOCK

    def pieces_of(self, bits: Iterable[int]) -> np.ndarray:
        """bool `[KINDS, M]`: the pieces that slices 0 .. at these fidelities need."""
        present = np.zeros((KINDS, self.grid.slices), dtype=bool)
        for index, fidelity in enumerate(bits):
            present[list(kinds_of(int(fidelity))), index] = True
        return present

    def read_ranges(self, present: np.ndarray) -> np.ndarray:
        """int64 `[n, 2]`: offset and length of the fewest block-aligned reads that cover the pieces marked present."""
        chosen = present & (self.piece_bytes > 0)
        first = self.piece_offset[chosen] // BLOCK
        last = -(-(self.piece_offset[chosen] + self.piece_bytes[chosen]) // BLOCK)
        if len(first) == 0:
            return np.empty((0, 2), dtype=np.int64)
        starts = np.flatnonzero(np.concatenate(([True], first[1:] > last[:-1])))
        ends = np.concatenate((starts[1:], [len(first)])) - 1
        return np.stack((first[starts], last[ends] - first[starts]), axis=1) * BLOCK
