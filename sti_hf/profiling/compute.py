"""Measures what computing a layer costs, by workload, slices and bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sti_hf.planning import Workload
from sti_hf.profiling.consistency import Measurement, Point, measure_until_consistent, monotone
from sti_hf.shards.layout import FULL

BITS = 4
"""At which layers are measured: they compute in the same way at any other."""


@dataclass(frozen=True)
class Compute:
    """Seconds: `layer` float64 `[short, widths]` of a layer without decompression, `attention` float64 `[1 + long]` of
    what the attention of one sequence adds to it, `before` and `after` float64 `[short]` of a forward before and after
    the layers, `decompress` of all slices of a layer by bits. None falls as tokens, slices or bits (but for 32, which
    takes another path) rise. `busy`: the machine was too busy for them to be believed."""

    layer: np.ndarray
    attention: np.ndarray
    before: np.ndarray
    after: np.ndarray
    decompress: dict[int, float]
    busy: bool


def measure_compute(
    measure: Callable[[Point], Measurement],
    short: Sequence[Workload],
    long: Sequence[Workload],
    widths: Sequence[int],
    fidelities: Sequence[int],
) -> Compute:
    """Measures workloads of sequences of about one length, ascending in tokens, at all of these numbers of slices;
    single longer sequences, whose attention counts, at all slices; and each of these fidelities once.

    What a long sequence takes more than as many tokens of short ones is its attention, and that of the short ones is
    counted as 0: what they have of it grows with their tokens. Where they take longer, they count as the long one
    does: one sequence is what most forwards have.
    """
    grid = [[Point(workload, width, BITS) for width in widths] for workload in short]
    attending = [Point(workload, widths[-1], BITS) for workload in long]
    whole = {bits: Point(short[0], widths[-1], bits) for bits in fidelities}
    points = dict.fromkeys([*(point for row in grid for point in row), *attending, *whole.values()])
    found = measure_until_consistent(measure, list(points))
    typical = found.typical
    layer = np.array([[typical[point].layer for point in row] for row in grid])
    tokens = [workload.all_tokens for workload in short]
    for point in attending:
        same = np.equal(tokens, point.workload.all_tokens)
        layer[same, -1] = np.minimum(layer[same, -1], typical[point].layer)
    layer = monotone(layer)
    linear = np.interp([workload.all_tokens for workload in long], tokens, layer[:, -1])
    longer = np.array([typical[point].layer for point in attending]) - linear
    return Compute(
        layer=layer,
        attention=np.concatenate(([0.0], monotone(np.maximum(longer, 0.0)))),
        before=monotone(np.array([typical[row[-1]].before for row in grid])),
        after=monotone(np.array([typical[row[-1]].after for row in grid])),
        decompress=_rising({bits: typical[point].decompress for bits, point in whole.items()}),
        busy=found.busy,
    )


def _rising(decompress: Mapping[int, float]) -> dict[int, float]:
    """Seconds by bits, none of which fall as bits rise; but for full fidelity."""
    quantized = sorted(bits for bits in decompress if bits != FULL)
    rising = monotone(np.array([decompress[bits] for bits in quantized]))
    return {**decompress, **dict(zip(quantized, rising.tolist()))}
