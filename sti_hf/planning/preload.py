"""Which pieces the preload buffer holds, as the fidelities of a plan change."""

from __future__ import annotations

import numpy as np

from sti_hf.planning.reads import PieceTable, ReadSet
from sti_hf.shards.layout import BLOCK


class PlannedReads:
    """The pieces that a plan needs, split into those in the preload buffer and those that are streamed.

    The buffer holds the pieces of the first layers in reading order, up to the first that does not fit. So which ones
    it holds follows from what is needed: a piece added early pushes later ones out, a piece removed lets them in.
    After each `add` and `remove`, `settle` brings this up to date and tells which layers' streamed reads have changed.

    Args:
        table: the pieces of the n layers that run.
        needed: bool `[n, KINDS * M]`.
        budget: S, bytes.
    """

    def __init__(self, table: PieceTable, needed: np.ndarray, budget: int) -> None:
        held = table.preloaded(needed, budget)
        streamed = needed & ~held
        blocks = list(zip(table.first.tolist(), table.last.tolist()))
        self.streamed = [ReadSet(*args) for args in zip(blocks, streamed, *table.reads(streamed))]
        self._held = [ReadSet(*args) for args in zip(blocks, held, *table.reads(held))]
        self._held_blocks = sum(reads.blocks for reads in self._held)
        self._capacity = budget // BLOCK
        self._pieces = needed.shape[1]
        # A place is layer * pieces + piece. All needed pieces before this one are held, all others streamed.
        self._end = 0
        self._changed: set[int] = set()
        self._admit()
        self._freed = False

    def add(self, layer: int, piece: int) -> None:
        """A piece of a layer (its position among the n) is needed from now on."""
        if layer * self._pieces + piece < self._end:
            self._held_blocks += self._held[layer].add(piece)
        else:
            self.streamed[layer].add(piece)
            self._changed.add(layer)

    def remove(self, layer: int, piece: int) -> None:
        """A piece is needed no more."""
        place = layer * self._pieces + piece
        # More can fit only when a held piece goes, or the one that did not fit.
        self._freed |= place <= self._end
        if place < self._end:
            self._held_blocks -= self._held[layer].remove(piece)
        else:
            self.streamed[layer].remove(piece)
            self._changed.add(layer)

    def settle(self) -> set[int]:
        """Fills the buffer as it must be. Returns the layers whose streamed reads changed since the last call."""
        if self._held_blocks > self._capacity:
            self._evict()
        elif self._freed:
            self._admit()
        self._freed = False
        changed, self._changed = self._changed, set()
        return changed

    def _evict(self) -> None:
        while self._held_blocks > self._capacity:
            layer, piece = divmod(self._end - 1, self._pieces)
            piece = self._held[layer].present.rfind(1, 0, piece + 1)
            self._end = layer * self._pieces + max(piece, 0)
            if piece >= 0:
                self._held_blocks -= self._held[layer].remove(piece)
                self.streamed[layer].add(piece)
                self._changed.add(layer)

    def _admit(self) -> None:
        while self._end < len(self.streamed) * self._pieces:
            layer, piece = divmod(self._end, self._pieces)
            piece = self.streamed[layer].present.find(1, piece)
            if piece < 0:
                self._end = (layer + 1) * self._pieces
                continue
            self._end = layer * self._pieces + piece
            blocks, _ = self._held[layer].growth(piece)
            if self._held_blocks + blocks > self._capacity:
                return
            self.streamed[layer].remove(piece)
            self._held_blocks += self._held[layer].add(piece)
            self._changed.add(layer)
            self._end += 1
