"""What one inference took: measured, in the same terms as the plan's prediction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass
class LayerTimes:
    """One layer's run: `time.perf_counter` when its compute began and ended, seconds it waited before and seconds of
    decompression in it."""

    start: float
    wait: float
    end: float = 0.0
    decompress: float = 0.0


@dataclass(frozen=True)
class RunTimeline:
    """One inference. All times are seconds, `io` counted from the start of the forward (negative: read ahead of it).

    Per executed layer float64 `[n]`: `wait` for its shards, `decompress`, `compute` (without decompression); `io`
    `[n, 2]`: start and end of its reads, nan where nothing was read. `bytes_read` are the shards', `row_bytes_read`
    the embeddings'. `bits` int64 `[N, M]` are the fidelities that were executed, 0 = not run: the plan's, unless the
    run was refined. `predicted` seconds were expected of it: for its batch, and for filling the preload buffer where
    it did; 0 where nobody knew.
    """

    tokens: int
    total: float
    embedding: float
    bytes_read: int
    row_bytes_read: int
    io: np.ndarray = field(repr=False)
    wait: np.ndarray = field(repr=False)
    decompress: np.ndarray = field(repr=False)
    compute: np.ndarray = field(repr=False)
    start: np.ndarray = field(repr=False)
    bits: np.ndarray = field(repr=False)
    predicted: float = 0.0
    target_latency: float = 0.0

    @property
    def before(self) -> float:
        """Seconds computed before the first layer: without reading embedding rows, and waiting for shards."""
        return float(self.start[0] - self.wait[0]) - self.embedding

    @property
    def after(self) -> float:
        """Seconds computed after the last layer."""
        return self.total - float(self.start[-1] + self.decompress[-1] + self.compute[-1])

    @property
    def kept_target(self) -> bool:
        """Whether it ended within T."""
        return self.total <= self.target_latency


def with_following(run: RunTimeline, followed: RunTimeline) -> RunTimeline:
    """A run of the layers, with what the run that followed it read, and was expected and meant to take."""
    known = run.predicted > 0 and followed.predicted > 0
    return replace(
        run,
        bytes_read=run.bytes_read + followed.bytes_read,
        predicted=run.predicted + followed.predicted if known else 0.0,
        target_latency=run.target_latency + followed.target_latency,
    )


def run_timeline(
    times: list[LayerTimes],
    io: np.ndarray,
    *,
    begun: float,
    ended: float,
    tokens: int,
    embedding: float,
    bytes_read: int,
    row_bytes_read: int,
    bits: np.ndarray,
    predicted: float,
    target_latency: float,
) -> RunTimeline:
    """Puts one inference's measurements together; `begun` and `ended` are `time.perf_counter` of its forward."""
    decompress = np.array([layer.decompress for layer in times])
    busy = np.array([layer.end - layer.start for layer in times])
    return RunTimeline(
        tokens=tokens,
        total=ended - begun,
        embedding=embedding,
        bytes_read=bytes_read,
        row_bytes_read=row_bytes_read,
        io=io - begun,
        wait=np.array([layer.wait for layer in times]),
        decompress=decompress,
        compute=busy - decompress,
        start=np.array([layer.start for layer in times]) - begun,
        bits=bits,
        predicted=predicted,
        target_latency=target_latency,
    )
