"""How the linear over a model's vocabulary falls into shards: strips of its rows."""

from __future__ import annotations

import math

from sti_hf.model.grid import Grid

VOCABULARY = "vocabulary"
"""Name of its matrix."""

STRIP_WEIGHTS = 600 << 10
"""Of a strip at most, unless one row has more: in float32 it fits the working buffer."""

STRIPS = 8
"""Of a layer, as which that many strips are read and run together."""


def vocabulary_grid(words: int, columns: int) -> Grid | None:
    """Cut of a linear of `words` rows, each `columns` weights long; None where its rows are no whole bytes of planes.

    Strip k of layer l are the rows from `(l * slices + k) * rows` on; rows of zeros follow the last word. Every one is
    about as long as `STRIP_WEIGHTS` admits, and there are `STRIPS` at least.
    """
    if columns % 8:
        return None
    layers = math.ceil(words / (STRIPS * max(1, STRIP_WEIGHTS // columns)))
    rows = math.ceil(words / (STRIPS * layers))
    return Grid(layers=layers, slices=STRIPS, row_length=columns, rows=((VOCABULARY, rows),), droppable=False)
