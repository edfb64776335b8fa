"""Which matrices of which layers are raised by a bit first, within a number of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from sti_hf.model.architecture import HEAD_MATRICES
from sti_hf.model.grid import Grid
from sti_hf.shards.layout import HEADER_PIECE
from sti_hf.shards.store import ShardStore

Unit = tuple[int, tuple[str, ...]]
"""A layer, and the matrices of it that are raised together."""

LAYERS = "whole layers"
"""What the planner does where nothing was measured."""


class MatrixBytes:
    """What a store's layers take where each matrix has a fidelity of its own: planes, codebooks and scales; padding to
    whole blocks is left out. Matrix bits are int `[N, matrices]`, matrices as `grid.matrices`."""

    def __init__(self, store: ShardStore) -> None:
        self.grid = store.grid
        self._scales = store.index.has_scales
        self._headers = sum(int(layout.piece_bytes[HEADER_PIECE].sum()) for layout in store.layouts)

    def of(self, bits: np.ndarray) -> int:
        """Bytes of the whole model."""
        return self._headers + sum(
            self._matrix(name, int(fidelity)) for row in bits for name, fidelity in zip(self.grid.matrices, row)
        )

    def budget(self, average: Fraction) -> int:
        """Bytes of `average` bits everywhere, interpolated between fidelities."""
        low = int(average)
        base, raised = self.of(self.uniform(low)), self.of(self.uniform(low + 1))
        return base + int((average - low) * (raised - base))

    def uniform(self, bits: int) -> np.ndarray:
        """The matrix bits of one fidelity everywhere."""
        return np.full((self.grid.layers, len(self.grid.matrices)), bits)

    def _matrix(self, name: str, bits: int) -> int:
        rows = self.grid.matrix_rows[name]
        planes = bits * rows * self.grid.row_length // 8
        tables = sum(4 * 2**plane + (2 * rows if self._scales else 0) for plane in range(2, bits + 1))
        return self.grid.slices * (planes + tables)


def orders(grid: Grid) -> dict[str, list[Unit]]:
    """Units by what their order is called: kinds of matrices in turn, each in all layers from the first."""
    attention = HEAD_MATRICES
    ffn = tuple(name for name in grid.matrices if name not in attention)
    into_ffn = tuple(name for name in ffn if name != "down")
    by_kind = {
        LAYERS: [grid.matrices],
        "all but q and k, then these": [("v", "o", *ffn), ("q", "k")],
        "all but up, then up": [(*attention, "down"), into_ffn],
        "attention, then FFN": [attention, ffn],
        "FFN, then attention": [ffn, attention],
        "v and down, then o and up, then q and k": [("v", "down"), ("o", *into_ffn), ("q", "k")],
        "o and down, then v and up, then q and k": [("o", "down"), ("v", *into_ffn), ("q", "k")],
        "v and o, then down, then up, then q and k": [("v", "o"), ("down",), into_ffn, ("q", "k")],
        "q and k, then o and up, then v and down": [("q", "k"), ("o", *into_ffn), ("v", "down")],
    }
    return {name: units_of(grid, kinds) for name, kinds in by_kind.items()}


def units_of(grid: Grid, kinds: Iterable[Sequence[str]]) -> list[Unit]:
    """Each of these kinds in each layer."""
    return [(layer, tuple(kind)) for kind in kinds for layer in range(grid.layers)]


def raised(sizes: MatrixBytes, units: Iterable[Unit], average: Fraction) -> np.ndarray:
    """Matrix bits within `average` bits: units are raised in turn above the fidelity below it; of one that does not
    fit whole, the matrices that do."""
    budget, bits = sizes.budget(average), sizes.uniform(int(average))
    for layer, names in units:
        if sizes.of(whole := _with(bits, sizes.grid, layer, names)) <= budget:
            bits = whole
            continue
        for name in names:
            if sizes.of(part := _with(bits, sizes.grid, layer, (name,))) <= budget:
                bits = part
    return bits


def _with(bits: np.ndarray, grid: Grid, layer: int, names: Sequence[str]) -> np.ndarray:
    changed = bits.copy()
    changed[layer, [grid.matrices.index(name) for name in names]] += 1
    return changed
