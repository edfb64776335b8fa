"""The grid of shards that a model is cut into."""

from __future__ import annotations

from dataclasses import dataclass

from sti_hf.forking import cached_property


@dataclass(frozen=True)
class Grid:
    """N layers x M slices, and the weights of one shard.

    A shard is a matrix of `slice_rows` rows, each `row_length` weights long. Its rows are grouped by the matrix they
    come from, in the order of `rows`: `("q", 64)` says that a slice has 64 rows of the query projection. Matrices that
    are cut by columns (`o`, `down`) are stored transposed, so that their rows have the same length.

    Where slices are not `droppable` they follow no heads and mean something only together, in the checkpoint's order:
    every submodel has all of them, and is smaller in depth only. They have fidelities of their own all the same.
    """

    layers: int
    slices: int
    row_length: int
    rows: tuple[tuple[str, int], ...]
    droppable: bool = True

    @property
    def widths(self) -> range:
        """Numbers of slices that a submodel may have, ascending; M is the last."""
        return range(1 if self.droppable else self.slices, self.slices + 1)

    @cached_property
    def matrices(self) -> tuple[str, ...]:
        """Names of the matrices of a slice, in stored order."""
        return tuple(name for name, _ in self.rows)

    @cached_property
    def slice_rows(self) -> int:
        """Rows of one shard, over all its matrices."""
        return sum(count for _, count in self.rows)

    @property
    def slice_weights(self) -> int:
        """Weights of one shard."""
        return self.slice_rows * self.row_length

    @property
    def weights(self) -> int:
        """Weights of the whole grid."""
        return self.layers * self.slices * self.slice_weights

    @cached_property
    def first_row(self) -> dict[str, int]:
        """First row of each matrix inside a shard."""
        starts, row = {}, 0
        for name, count in self.rows:
            starts[name] = row
            row += count
        return starts

    @cached_property
    def matrix_rows(self) -> dict[str, int]:
        """Rows of each matrix inside a shard."""
        return dict(self.rows)
