"""Measures what computing a layer costs, by tokens, slices and bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sti_hf.profiling.consistency import Measurement, Point, measure_until_consistent, monotone
from sti_hf.shards.layout import FULL

BITS = 4
"""At which layers are measured: they compute in the same way at any other."""


@dataclass(frozen=True)
class Compute:
    """Seconds: `layer` float64 `[tokens, widths]` of a layer without decompression, `fixed` float64 `[tokens]` of a
    forward outside the layers, `decompress` of all slices of a layer by bits. None falls as tokens, slices or bits
    (but for 32, which takes another path) rise. `busy`: the machine was too busy for them to be believed."""

    layer: np.ndarray
    fixed: np.ndarray
    decompress: dict[int, float]
    busy: bool


def measure_compute(
    measure: Callable[[Point], Measurement], tokens: Sequence[int], widths: Sequence[int], fidelities: Sequence[int]
) -> Compute:
    """Measures at all of these token counts and numbers of slices, and at each of these fidelities once."""
    grid = [[Point(count, width, BITS) for width in widths] for count in tokens]
    whole = {bits: Point(tokens[0], widths[-1], bits) for bits in fidelities}
    points = dict.fromkeys([*(point for row in grid for point in row), *whole.values()])
    found = measure_until_consistent(measure, list(points))
    fastest = found.fastest
    quantized = sorted(bits for bits in fidelities if bits != FULL)
    rising = monotone(np.array([fastest[whole[bits]].decompress for bits in quantized]))
    mended = dict(zip(quantized, rising.tolist()))
    return Compute(
        layer=monotone(np.array([[fastest[point].layer for point in row] for row in grid])),
        fixed=monotone(np.array([fastest[row[-1]].fixed for row in grid])),
        decompress={bits: mended.get(bits, fastest[point].decompress) for bits, point in whole.items()},
        busy=found.busy,
    )
