"""When a plan reads and computes: the prediction, event by event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sti_hf.planning.staging import place_layers, reads_downwards


@dataclass(frozen=True, eq=False)
class Timeline:
    """Predicted times of the n executed layers: seconds from the start of the forward, float64 `[n]`.

    Attributes:
        io_start, io_end: of the layer's reads; equal where it reads nothing.
        compute_start, compute_end: of its compute, decompression included.
        decompress: seconds of that which are decompression.
        end: of the forward, seconds.
        ready: when all that comes before the first layer is computed, seconds.
    """

    io_start: np.ndarray
    io_end: np.ndarray
    compute_start: np.ndarray
    compute_end: np.ndarray
    decompress: np.ndarray
    end: float
    ready: float = 0.0

    @property
    def wait(self) -> np.ndarray:
        """Seconds `[n]` that compute waits for each layer's reads."""
        return self.compute_start - np.concatenate(([self.ready], self.compute_end[:-1]))

    @classmethod
    def unknown(cls, layers: int) -> Timeline:
        """Of a plan that was made without a device profile: all times are 0."""
        zero = np.zeros(layers)
        return cls(zero, zero, zero, zero, zero, 0.0)


def simulate(
    io_seconds: Sequence[float],
    staged_bytes: Sequence[int],
    compute_seconds: Sequence[float],
    decompress_seconds: Sequence[float],
    *,
    first_io: float,
    before: float,
    after: float,
    staging_bytes: int,
    overlap: bool = True,
) -> Timeline:
    """Runs the pipeline on paper: reads one after the other in plan order, as early as the staging buffer has room.

    Args:
        io_seconds: `[n]`, to read each layer.
        staged_bytes: `[n]`, of that what goes into the staging buffer, which stays there until the layer is computed.
        compute_seconds: `[n]`, of each layer, decompression included.
        decompress_seconds: `[n]`, of that for decompression.
        first_io: seconds to read the embedding rows, before anything else.
        before: compute ahead of the first layer, on what `first_io` reads; shards are read meanwhile.
        after: compute behind the last layer.
        staging_bytes: size of the staging buffer.
        overlap: False: no layer computes before all are read (load-then-execute).
    """
    places = place_layers(staged_bytes, staging_bytes)
    io_start: list[float] = []
    io_end: list[float] = []
    start: list[float] = []
    end: list[float] = []
    clock, ready = first_io, first_io + before
    for k, seconds in enumerate(io_seconds):
        begin, clock = _read(k, clock, seconds, staged_bytes, places, end if overlap else [])
        io_start.append(begin)
        io_end.append(clock)
        if overlap:
            start.append(max(clock, end[-1] if end else ready))
            end.append(start[-1] + compute_seconds[k])
    for seconds in [] if overlap else compute_seconds:
        start.append(end[-1] if end else max(clock, ready))
        end.append(start[-1] + seconds)
    return Timeline(
        io_start=np.array(io_start),
        io_end=np.array(io_end),
        compute_start=np.array(start),
        compute_end=np.array(end),
        decompress=np.array(decompress_seconds),
        end=end[-1] + after,
        ready=ready,
    )


def _read(
    layer: int, clock: float, seconds: float, sizes: Sequence[int], places: Sequence[int], released: Sequence[float]
) -> tuple[float, float]:
    """Start and end of a layer's reads, which wait wherever they come to bytes that an earlier layer still holds.

    `released` are the times at which the layers before it have been computed.
    """
    size, place = sizes[layer], places[layer]
    end = place + size
    held = [
        (max(end - places[earlier] - sizes[earlier] if reads_downwards(layer) else places[earlier] - place, 0), free)
        for earlier, free in enumerate(released)
        if free > clock and sizes[earlier] and places[earlier] < end and place < places[earlier] + sizes[earlier]
    ]
    begin, done = None, 0
    for offset, free in sorted(held):
        begin = clock if begin is None and offset > 0 else begin
        clock = max(clock + seconds * (offset - done) / size, free)
        done = offset
    return (clock if begin is None else begin), clock + (seconds * (size - done) / size if size else seconds)
