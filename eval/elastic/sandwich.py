"""Which submodels a training step runs: the largest, the smallest, and some in between (Yu and Huang, ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sti_hf.model import Grid


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward of a training step: a width, and fidelities int `[N, M]`, None for all in full."""

    width: int
    bits: np.ndarray | None = None


def sandwich(
    grid: Grid, widths: Sequence[int], sampled: int, fidelities: Sequence[int], random: np.random.Generator
) -> list[Pass]:
    """The forwards of a step, the largest first; each serves all depths.

    `sampled` widths are drawn from those between the largest and the smallest of `widths`, each at most once. With
    `fidelities`, the largest runs in full and with every shard at the lowest of them: a sandwich of fidelities; and
    narrower submodels have a random fidelity for every shard.
    """
    ascending = sorted({*widths, grid.slices})
    between = ascending[1:-1]
    drawn = random.choice(between, min(sampled, len(between)), replace=False).tolist() if between else []
    narrower = [*drawn, *ascending[:-1][:1]]
    if not fidelities:
        return [Pass(width) for width in (grid.slices, *narrower)]
    shape = (grid.layers, grid.slices)
    lowest = Pass(grid.slices, np.full(shape, min(fidelities)))
    return [Pass(grid.slices), lowest, *(Pass(width, random.choice(list(fidelities), shape)) for width in narrower)]
