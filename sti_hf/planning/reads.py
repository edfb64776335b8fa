"""What it takes to read a set of pieces: exact bytes and requests.

A layer's pieces are one sequence in the file, `kind * M + slice` (see `sti_hf.shards.layout`). Reads are whole blocks;
pieces that follow each other, or share a block, are read together. So what one more piece costs depends only on the
pieces chosen just before and just after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sti_hf.shards.layout import BLOCK, FIDELITIES, KINDS, LayerLayout, kinds_of

_NEEDED = np.zeros((max(FIDELITIES) + 1, KINDS), dtype=bool)
for _bits in FIDELITIES:
    _NEEDED[_bits, list(kinds_of(_bits))] = True
_NEVER = 1 << 62


class PieceTable:
    """The pieces of n layers in arrays `[n, KINDS * M]`: the blocks they touch, from `first` to `last` (exclusive),
    counted from the start of the layer.
    """

    def __init__(self, layouts: Sequence[LayerLayout]) -> None:
        starts = np.array([[layout.offset // BLOCK] for layout in layouts])
        offsets = np.stack([layout.piece_offset.ravel() for layout in layouts])
        sizes = np.stack([layout.piece_bytes.ravel() for layout in layouts])
        self.first = (offsets // BLOCK - starts).astype(np.int32)
        self.last = (-(-(offsets + sizes) // BLOCK) - starts).astype(np.int32)

    def take(self, layers: Sequence[int]) -> PieceTable:
        """The table of some of the layers."""
        table = object.__new__(PieceTable)
        rows = list(layers)
        table.first, table.last = self.first[rows], self.last[rows]
        return table

    def needed(self, bits: np.ndarray) -> np.ndarray:
        """bool `[n, KINDS * M]`: pieces that the fidelities `[n, M]` need."""
        return _NEEDED[bits].transpose(0, 2, 1).reshape(len(bits), -1)

    def reads(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bytes and requests, int64 `[n]` each, to read the chosen pieces `[n, KINDS * M]` of every layer."""
        covered = _covered(pieces, self.last)
        blocks = _added(pieces, self.first, self.last, covered).sum(axis=1, dtype=np.int64)
        return blocks * BLOCK, (pieces & (self.first > covered)).sum(axis=1)

    def preloaded(self, needed: np.ndarray, budget: int) -> np.ndarray:
        """The needed pieces that a preload buffer of `budget` bytes holds: from the first layer up, in reading order,
        until a piece does not fit. A layer takes as many bytes as reading its preloaded pieces (whole blocks).
        """
        held = np.zeros_like(needed)
        capacity, start, count = budget // BLOCK, 0, 1
        # Most often few layers fit: a growing number is looked at together.
        while start < len(needed) and capacity > 0:
            rows = slice(start, start + count)
            pieces, first, last = needed[rows], self.first[rows], self.last[rows]
            blocks = _added(pieces, first, last, _covered(pieces, last)).cumsum(dtype=np.int64)
            held[rows] = pieces & (blocks <= capacity).reshape(pieces.shape)
            capacity -= int(blocks[-1])
            start, count = start + count, 2 * count
        return held


def _covered(pieces: np.ndarray, last: np.ndarray) -> np.ndarray:
    """For every piece, the end of the blocks that chosen pieces before it in its layer touch; -1 for none."""
    covered = np.full_like(last, -1)
    np.maximum.accumulate(np.where(pieces, last, -1)[..., :-1], axis=-1, out=covered[..., 1:])
    return covered


def _added(pieces: np.ndarray, first: np.ndarray, last: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Blocks that each chosen piece adds to those that chosen pieces before it touch; 0 for others."""
    return np.maximum(last - np.maximum(first, covered), 0) * pieces


class ReadSet:
    """A set of one layer's pieces whose blocks and requests stay exact as pieces come and go, one at a time.

    Args:
        touched: first and last block (exclusive) of each of the layer's pieces.
        pieces: bool `[KINDS * M]`, the set to start from.
        size, requests: bytes and requests, what it takes to read them (`PieceTable.reads`).
    """

    __slots__ = ("blocks", "first", "last", "present", "requests")

    def __init__(self, touched: tuple[list[int], list[int]], pieces: np.ndarray, size: int, requests: int) -> None:
        self.first, self.last = touched
        self.present = bytearray(pieces.tobytes())
        self.blocks = int(size) // BLOCK
        self.requests = int(requests)

    def growth(self, piece: int) -> tuple[int, int]:
        """Blocks and requests that an absent piece adds; requests may fall."""
        present, first, last = self.present, self.first, self.last
        before = present.rfind(1, 0, piece)
        after = present.find(1, piece + 1)
        start, end = first[piece], last[piece]
        left = last[before] if before >= 0 else -1
        right = first[after] if after >= 0 else _NEVER
        blocks = min(end, right) - max(start, left)
        return max(blocks, 0), 1 - (start <= left) - (right <= end) + (right <= left)

    def add(self, piece: int) -> int:
        """Adds an absent piece; returns by how many blocks the set grew."""
        blocks, requests = self.growth(piece)
        self.present[piece] = 1
        self.blocks += blocks
        self.requests += requests
        return blocks

    def remove(self, piece: int) -> int:
        """Removes a present piece; returns by how many blocks the set shrank."""
        self.present[piece] = 0
        blocks, requests = self.growth(piece)
        self.blocks -= blocks
        self.requests -= requests
        return blocks
