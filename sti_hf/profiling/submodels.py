"""How well the n x m submodels of a model do on a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from sti_hf.model.layer_runner import HiddenStates, LayerRunner
from sti_hf.profiling.evaluation import Scored
from sti_hf.profiling.metrics import Score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import PLANES

WIDTHS = 4
"""So many widths are measured, evenly spread."""


def coarse_grid(layers: int, slices: int, droppable: bool = True) -> list[tuple[int, int]]:
    """Submodels (n, m), width by width, the whole model among them: few widths, of each all depths, since these are
    parts of one forward. Where slices are not `droppable` there is one width.
    """
    widths = sorted({-(-slices * step // WIDTHS) for step in range(1, WIDTHS + 1)}) if droppable else [slices]
    return [(depth, width) for width in widths for depth in range(1, layers + 1)]


def submodel_scores(
    runner: LayerRunner,
    weights: PlanWeights,
    evaluation: Scored,
    submodels: Sequence[tuple[int, int]],
    order: np.ndarray,
    scratch: Path | None = None,
) -> Iterator[tuple[tuple[int, int], Score]]:
    """The score of submodels: the first n layers, and of each the first m of its slices in `order`, at
    6 bits, above which nothing was measured to be won.

    `order` int `[N, M]` names slices as stored. Submodels of one width that stand together share their layers.
    `scratch` is a folder for hidden states where they are too many for memory.
    """
    grid = weights.store.grid
    for width, group in groupby(submodels, lambda submodel: submodel[1]):
        bits = np.zeros((grid.layers, grid.slices), dtype=np.int64)
        np.put_along_axis(bits, order[:, :width], PLANES, axis=1)
        weights.set(bits)
        states = HiddenStates(runner, [batch.inputs for batch in evaluation.batches], scratch)
        for submodel in sorted(group):
            states.advance_to(submodel[0])
            yield submodel, evaluation.score(states.head)
