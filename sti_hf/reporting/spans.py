"""Timelines, predicted and measured, in one form: what the disk and the processor do, and from when to when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.timeline import RunTimeline

WORDS, READING = "words", "reading"
"""What the disk does: it reads word embeddings, then shards."""

WAITING, DECOMPRESSING, COMPUTING, REST = "waiting", "decompressing", "computing", "rest"
"""What the processor does; `REST` is all of a forward that is outside the layers."""

OUTSIDE = -1
"""In place of a layer, where a span belongs to none."""


class Span(NamedTuple):
    """Something that goes on from `start` to `end`, seconds from the start of the forward."""

    kind: str
    layer: int
    start: float
    end: float


class Lanes(NamedTuple):
    """One inference: the spans of the disk and of the processor, in order, and when it ended."""

    disk: list[Span]
    processor: list[Span]
    end: float


def predicted_lanes(plan: ExecutionPlan) -> Lanes:
    """What a plan predicts, on a filled preload buffer."""
    times = plan.timeline
    disk = [Span(WORDS, OUTSIDE, 0.0, float(times.io_start[0]))]
    processor = [Span(WAITING, OUTSIDE, 0.0, float(times.io_start[0]))]
    for layer, read, done, wait, start, decompress, end in zip(
        plan.layers,
        times.io_start.tolist(),
        times.io_end.tolist(),
        times.wait.tolist(),
        times.compute_start.tolist(),
        times.decompress.tolist(),
        times.compute_end.tolist(),
    ):
        disk.append(Span(READING, layer, read, done))
        processor += _layer(layer, start - wait, start, start + decompress, end)
    return _lanes(disk, processor, times.end)


def measured_lanes(plan: ExecutionPlan, run: RunTimeline) -> Lanes:
    """What was measured of an inference that followed `plan`."""
    disk = [Span(WORDS, OUTSIDE, 0.0, run.embedding)]
    processor = [Span(WAITING, OUTSIDE, 0.0, run.embedding)]
    for layer, (read, done), wait, start, decompress, compute in zip(
        plan.layers,
        run.io.tolist(),
        run.wait.tolist(),
        run.start.tolist(),
        run.decompress.tolist(),
        run.compute.tolist(),
    ):
        if not math.isnan(read):
            disk.append(Span(READING, layer, read, done))
        decompressed = start + decompress
        processor += _layer(layer, start - wait, start, decompressed, decompressed + compute)
    return _lanes(disk, processor, run.total)


def _layer(layer: int, waiting: float, start: float, decompressed: float, end: float) -> Iterable[Span]:
    """What the processor does for a layer. It decompresses matrix by matrix; here all of that stands first."""
    yield Span(WAITING, layer, waiting, start)
    yield Span(DECOMPRESSING, layer, start, decompressed)
    yield Span(COMPUTING, layer, decompressed, end)


def _lanes(disk: list[Span], processor: list[Span], end: float) -> Lanes:
    """Without empty spans, and with the processor's time between them, which is the rest of the forward."""
    filled, clock = [], 0.0
    for span in [*processor, Span(REST, OUTSIDE, end, end)]:
        start = max(clock, span.start)  # rounded, it may begin a moment before the last one ends
        filled += [Span(REST, OUTSIDE, clock, start), span._replace(start=start)]
        clock = max(clock, span.end)
    return Lanes(_not_empty(disk), _not_empty(filled), end)


def _not_empty(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.end > span.start]
