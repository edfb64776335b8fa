"""What a refined run reads, until when, and at which fidelities its layers then run."""

from __future__ import annotations

import numpy as np

from sti_hf.planning import ExecutionPlan
from sti_hf.planning.refinement import EXTRA, LatestStarts, seconds_per_byte
from sti_hf.runtime.reads.placement import Placement
from sti_hf.shards.layout import FULL_PIECE


class Refinement:
    """The requests of one run of a plan (`Placement.requests`), of which those that come too late are given up."""

    def __init__(self, placement: Placement, plan: ExecutionPlan, requests: np.ndarray) -> None:
        self._placement = placement
        self._steps, self._ends = requests["step"], requests["offset"] + requests["length"]
        purposes = placement.purposes(requests)
        self._beyond = purposes == EXTRA
        byte_seconds = seconds_per_byte(plan.timeline, [placed.staging_image.bytes for placed in placement.layers])
        self._starts = LatestStarts(plan, byte_seconds, self._steps, requests["length"], purposes)

    def latest(self, begun: float, times: np.ndarray, now: float, margin: float = 0.0) -> np.ndarray:
        """float64 `[r]`: when each request must begin at the latest, for a forward that began at `begun` and aims to
        end `margin` before T.

        `times` `native.TIMING` `[r]`: when each began and ended. All on one clock, in seconds.
        """
        return begun + self._starts.at(self._starts.pace(times, now), margin)

    def fidelities(self, step: int, times: np.ndarray) -> np.ndarray:
        """int64 `[M]`: what a layer's shards can run at, when all its requests are read or given up."""
        placed = self._placement.layers[step]
        layout = self._placement.store.layouts[placed.layer]
        read = (self._steps == step) & ~np.isnan(times["end"])
        ends = layout.piece_offset + layout.piece_bytes
        there = placed.preloaded.copy()
        # Requests are read in the order of the file, so that all before the last one are there.
        for pieces, chosen in ((placed.streamed, read & ~self._beyond), (placed.extra, read & self._beyond)):
            there |= pieces & (ends <= self._ends[chosen].max(initial=0))
        return np.logical_and.accumulate(there[1:FULL_PIECE]).sum(axis=0)
