"""Reads a plan's shards ahead of compute, in plan order."""

from __future__ import annotations

import os
import time

import numpy as np

from sti_hf import native
from sti_hf.planning import ExecutionPlan
from sti_hf.planning.refinement import Margin, compute_deadlines
from sti_hf.runtime.buffers import Buffers, allocate
from sti_hf.runtime.placement import Placement
from sti_hf.runtime.refinement import Refinement
from sti_hf.shards.store import ShardStore

READING_THREADS = 2
"""So that the disk has a request while the thread whose request is done waits for a busy processor."""

REFINING_SECONDS = 0.005
"""How often a forward that waits for a layer looks at how fast reading is, where the run is refined."""


class ShardStreamer:
    """Brings the shards of one plan into the buffers; step k is the k-th layer that the plan executes.

    What was read into the preload buffer stays there: later runs, and later plans that want the same pieces, do not
    read it again. With `wanted` fidelities a run is refined: reads that come too late are given up, and planes beyond
    the plan are read where there is time.
    """

    def __init__(self, store: ShardStore, buffers: Buffers, rate_limit: float = 0.0) -> None:
        self.store, self.buffers = store, buffers
        self.placement: Placement | None = None
        self.running = False
        self._rate_limit = rate_limit
        self._process = os.getpid()
        self._native: native.Streamer | None = None
        self._held: list[np.ndarray] = []
        self._steps = np.empty(0, dtype=np.int64)
        self._plan: ExecutionPlan
        self._refinement: Refinement | None = None
        self._filling = False
        self._begun: float | None = None
        self._margin = Margin(0.0)

    def adopt(
        self, plan: ExecutionPlan, wanted: np.ndarray | None = None, staging_budget: int | None = None
    ) -> Placement:
        """Makes room for `plan`, keeping what the preload buffer already holds of it. `wanted`: as `Placement`."""
        self.stop()
        placement = Placement(self.store, plan, wanted, staging_budget)
        preload = allocate(placement.preload_bytes)
        self._held = [self._move(placement, step, preload) for step in range(len(placement.layers))]
        self.buffers.preload = preload
        self.buffers.reserve_staging(placement.staging_bytes)
        self.placement, self._plan = placement, plan
        if self._margin.target_latency != plan.target_latency:
            self._margin = Margin(plan.target_latency)
        self.reopen()
        return placement

    def _move(self, placement: Placement, step: int, preload: np.ndarray) -> np.ndarray:
        """Copies what the old preload buffer holds of a layer into the new one; returns those pieces."""
        new = placement.layers[step]
        kept = np.zeros_like(new.preloaded)
        for old, held in zip(self.placement.layers if self.placement else [], self._held, strict=True):
            if old.layer == new.layer:
                kept = held & new.preloaded
                layout = self.store.layouts[new.layer]
                offsets, sizes = layout.piece_offset[kept], layout.piece_bytes[kept]
                if len(offsets):
                    sources, targets = old.preload_image.place(offsets), new.preload_image.place(offsets)
                    for source, target, size in zip(sources, targets, sizes, strict=True):
                        preload[target : target + size] = self.buffers.preload[source : source + size]
        return kept

    def reopen(self) -> None:
        """Opens the files anew, for new buffers; or in a forked child, whose parent keeps its own streamer."""
        if self.placement is None:
            return
        if self._native is not None and self._process == os.getpid():
            self._native.close()
        self._process = os.getpid()
        paths = [str(self.store.path / name) for name in self.placement.files]
        self._native = native.Streamer(paths, threads=READING_THREADS, rate_limit=self._rate_limit)
        self.running = False

    def start(self) -> None:
        """Starts reading for the next inference, unless that is under way."""
        if self.running or self._native is None or self.placement is None:
            return
        missing = [placed.preloaded & ~held for placed, held in zip(self.placement.layers, self._held, strict=True)]
        self._filling = any(pieces.any() for pieces in missing)
        if self._filling:
            requests, pieces = self.placement.requests(missing)
        else:
            requests, pieces = self.placement.streamed_requests
        self._steps = requests["step"]
        self._refinement = Refinement(self.placement, self._plan, requests) if self.placement.refined else None
        self._begun = None
        self._native.start(self.buffers.compressed, requests, pieces)
        self.running = True

    def hold_to(self, begun: float) -> None:
        """From now on, gives up what comes too late for a forward that began at `begun` (`time.perf_counter`)."""
        self._begun = begun
        self._refine()

    def _refine(self) -> None:
        if self._refinement is not None and self._begun is not None and self._native is not None:
            times = self._native.timings()
            now, margin = time.perf_counter(), self._margin.seconds
            self._native.set_latest(self._refinement.latest(self._begun, times, now, margin))

    def wait(self, step: int) -> float:
        """Blocks until the pieces of a step are in memory; returns the seconds it took.

        Raises what went wrong in reading them: `native.StreamError`, with file and offset.
        """
        assert self._native is not None and self.placement is not None
        if self._refinement is None:
            waited = self._native.wait(step)
        else:
            start = time.perf_counter()
            self._refine()
            while not self._native.wait_for(step, REFINING_SECONDS):
                self._refine()
            waited = time.perf_counter() - start
        self._held[step] = self.placement.layers[step].preloaded
        return waited

    def fidelities(self, step: int) -> np.ndarray | None:
        """int64 `[M]`: what a step's shards can run at after `wait`; None: at what the plan says."""
        if self._refinement is None or self._native is None:
            return None
        return self._refinement.fidelities(step, self._native.timings())

    def release(self, step: int) -> None:
        """Gives back the staging memory of a step."""
        assert self._native is not None
        self._native.release(step)

    def finish(self, last_start: float) -> None:
        """Ends a run whose every step was waited for; the last began to compute at `last_start`."""
        if self._refinement is not None and self._begun is not None and not self._filling:
            self._margin.learn(last_start - self._begun - float(compute_deadlines(self._plan)[-1]))
        self.running = False

    def stop(self) -> None:
        """Stops reading; what of the preload buffer is complete by then is kept."""
        if self.running and self._native is not None and self.placement is not None:
            self._native.cancel()
            unchecked = self._steps[self._native.outcomes() != native.Outcome.CHECKED]
            for step, placed in enumerate(self.placement.layers):
                if step not in unchecked:
                    self._held[step] = placed.preloaded
        self.running = False

    @property
    def bytes_read(self) -> int:
        """Bytes read since the last `start`."""
        return 0 if self._native is None else self._native.bytes_read

    def step_times(self, steps: int) -> np.ndarray:
        """float64 `[steps, 2]`: when reading of each step began and ended (`time.perf_counter`); nan: nothing read."""
        times = np.full((steps, 2), np.nan)
        if self._native is not None and len(self._steps):
            timings = self._native.timings()
            read = ~np.isnan(timings["end"])
            for step in np.unique(self._steps[read]):
                of_step = timings[read & (self._steps == step)]
                times[step] = of_step["start"].min(), of_step["end"].max()
        return times

    def close(self) -> None:
        """Stops reading and closes the files."""
        self.stop()
        if self._native is not None:
            self._native.close()
            self._native = None
